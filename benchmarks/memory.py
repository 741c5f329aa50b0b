"""What answers take in memory: the plan beside what the kernel counts, tiles beside the whole image.

    python -m benchmarks.memory plan BUNDLE -o FOLDER [--branch base] [--threads 1]
    python -m benchmarks.memory whole CHECKPOINT -o FOLDER [--sides 1024,2048]

`plan` has pictures from 256 x 256 to 8192 x 8192 and 30000 x 400, under the budget that each way of the plan
needs. A process is asked about the picture, fills its context with text, and is asked about another picture
of the same size: by then it has held all that an answer may hold at once. What was planned for such pictures
is set beside VmHWM of the process, and beside that of the first answer alone. `whole` converts the base
branch for a tile as large as the picture, and sets what its one pass takes beside what the checkpoint's own
bundle takes, tile by tile: the vision graph alone, without Python and decoder, on both sides.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Column, Table

from benchmarks.command import toolkit

SIZES = ((256, 256), (1100, 1100), (1535, 1535), (2048, 2048), (3071, 3071), (8192, 8192), (30000, 400))
# What is planned for pictures of a size, the peak after an answer about one, and after a full context and
# another one.
_ASK = """
import json, sys
from rpi_runtime.kernel import memory
from rpi_runtime.picture_needs import jpeg_of
from rpi_runtime.session import Session
from rpi_runtime.tiling import plan_grid
bundle, budget, branch, threads, width, height, first, second = sys.argv[1:]
words = "What is shown here, where is it, and which of the things that can be read is the largest? " * 2
with Session.open(bundle, threads=int(threads), memory_budget=int(budget), branches=(branch,)) as session:
    def ask(text, *pictures):
        "".join(session.generate(text, pictures, branch=branch, max_new_tokens=40))
        return memory().peak_resident_bytes
    size = int(width), int(height)
    needs = jpeg_of(*size, plan_grid(*size, session.manifest.vision))
    of_first, text = ask(words, first), words
    while len(session.codec.encode(text + words)) < session.context_tokens - 64:
        text += words
    ask(text)
    print(json.dumps([session.plan.chosen.way, session.plan.peak_with(needs), of_first, ask(words, second)]))
"""
# Of every way, at the longest context and in the largest chunks.
_WAYS = """
import json, sys
from rpi_runtime.session import Session
bundle, branch, threads = sys.argv[1:]
with Session.open(bundle, threads=int(threads), memory_budget=1 << 40, branches=(branch,)) as session:
    choices = session.plan.choices
    same = [c for c in choices if c.context_tokens == choices[0].context_tokens]
    print(json.dumps([c.peak for c in same if c.prefill_tokens == choices[0].prefill_tokens]))
"""
_COLUMNS = ("way", "picture", "plan MB", "peak MB", "above", "first MB")
# Processes that load the same differ by some hundred kilobytes.
_SLACK = 1_000_000


def pictures(folder: Path) -> list[tuple[Path, Path]]:
    """Two of each size, the second a mirror image."""
    import skimage.data

    photo = Image.fromarray(skimage.data.coffee())
    photos = {"photo": photo, "mirrored": ImageOps.mirror(photo)}
    for name, photo in photos.items():
        for width, height in SIZES:
            path = folder / f"{name}-{width}x{height}.jpg"
            if not path.exists():
                photo.resize((width, height)).save(path, quality=90)
    first, second = ([folder / f"{name}-{w}x{h}.jpg" for w, h in SIZES] for name in photos)
    return list(zip(first, second, strict=True))


def compare_plan(bundle: Path, folder: Path, branch: str, threads: int) -> None:
    table = Table(*(Column(name, no_wrap=True) for name in _COLUMNS))
    errors = []
    for budget in (peak + _SLACK for peak in _python(_WAYS, bundle, branch, threads)):
        for (width, height), both in zip(SIZES, pictures(folder), strict=True):
            asked = _python(_ASK, bundle, budget, branch, threads, width, height, *both)
            way, planned, first, peak = asked
            errors.append(planned / peak - 1)
            numbers = (
                f"{planned / 1e6:.1f}",
                f"{peak / 1e6:.1f}",
                f"{errors[-1]:+.1%}",
                f"{first / 1e6:.1f}",
            )
            table.add_row(way, f"{width}x{height}", *numbers)
    Console().print(table)
    print(f"{len(errors)} settings: the plan lies {min(errors):+.1%} to {max(errors):+.1%} above the peak")


def _python(code: str, *arguments: object) -> Any:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def compare_whole(checkpoint: Path, folder: Path, sides: list[int]) -> None:
    from hypervl.checkpoint import Checkpoint, save
    from rpi_runtime.bundle import Bundle
    from rpi_runtime.footprint import measure

    opened = Checkpoint.open(checkpoint)
    model = opened.load_model()
    only = ("--components", "vrc,vision_base", "--recipe", "int8")
    tiled = folder / "tiled"
    if not tiled.exists():
        toolkit("convert", checkpoint, "-o", tiled, *only)
    in_tiles = measure(Bundle.open(tiled)).graphs()["vision_base"]
    table = Table("picture", "one pass MB", "tile by tile MB", "ratio")
    for side in sides:
        one, bundle = folder / f"one-{side}", folder / f"whole-{side}"
        if not bundle.exists():
            tiling = replace(model.config.tiling, tile_side=side, tile_sides=(side,), max_tiles=1)
            model.config = replace(model.config, tiling=tiling)
            save(model, one, opened.text_files)
            toolkit("convert", one, "-o", bundle, *only)
        whole = measure(Bundle.open(bundle)).graphs()["vision_base"]
        row = (
            f"{side} x {side}",
            f"{whole / 1e6:,.0f}",
            f"{in_tiles / 1e6:,.1f}",
            f"{whole / in_tiles:.1f}x",
        )
        table.add_row(*row)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("plan", "whole"))
    parser.add_argument("source", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--branch", default="base")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sides", default="1024,2048")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    if given.what == "plan":
        compare_plan(given.source, given.output, given.branch, given.threads)
    else:
        compare_whole(given.source, given.output, [int(side) for side in given.sides.split(",")])


if __name__ == "__main__":
    main()
