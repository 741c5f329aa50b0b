"""What an answer takes in memory: the plan beside what the kernel counts, tiles beside the whole image.

    python -m benchmarks.memory plan BUNDLE -o FOLDER [--branch base]
    python -m benchmarks.memory whole CHECKPOINT -o FOLDER [--sides 1024,2048]

`plan` asks about pictures from 256 x 256 to 8192 x 8192 and 30000 x 400, under the budget that each way of
the plan needs, and sets the planned peak beside VmHWM of the process. `whole` converts the base branch for a
tile as large as the picture, and sets what its one pass takes beside what the checkpoint's own bundle takes,
tile by tile: the vision graph alone, without Python and decoder, on both sides.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.command import toolkit, toolkit_json

SIZES = ((256, 256), (1100, 1100), (1535, 1535), (2048, 2048), (3071, 3071), (8192, 8192), (30000, 400))
# Words that go through the prefill of every length, and an answer of some length.
PROMPT = "What is shown here, where is it, and which of the things that can be read is the largest? " * 2
# Beside the plan: the process that answers has loaded a little more than the one that was planned with.
_SLACK = 2_000_000


def pictures(folder: Path) -> list[Path]:
    import skimage.data

    photo = Image.fromarray(skimage.data.coffee())
    made = []
    for width, height in SIZES:
        made.append(folder / f"{width}x{height}.jpg")
        if not made[-1].exists():
            photo.resize((width, height)).save(made[-1], quality=90)
    return made


def compare_plan(bundle: Path, folder: Path, branch: str) -> None:
    plan = toolkit_json("plan", bundle, "--memory", "64GB", "--branch", branch)
    best = plan["choices"][0]  # of the longest context, in the largest chunks
    same = [c for c in plan["choices"] if all(c[k] == best[k] for k in ("context_tokens", "prefill_tokens"))]
    table = Table("way", "picture", "planned MB", "measured MB", "plan above")
    errors = []
    for way, planned in ((choice["way"], choice["peak"]) for choice in same):
        for picture in pictures(folder):
            ask = ("run", bundle, "--image", picture, "--prompt", PROMPT, "--max-new-tokens", 40)
            done = toolkit_json(*ask, "--memory", planned + _SLACK, "--branch", branch)
            peak = done["memory"]["peak_resident_bytes"]
            errors.append(planned / peak - 1)
            table.add_row(
                way, picture.stem, f"{planned / 1e6:.1f}", f"{peak / 1e6:.1f}", f"{errors[-1]:+.1%}"
            )
    Console().print(table)
    print(f"{len(errors)} settings: the plan lies {min(errors):+.1%} to {max(errors):+.1%} above the peak")


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
    parser.add_argument("--sides", default="1024,2048")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    if given.what == "plan":
        compare_plan(given.source, given.output, given.branch)
    else:
        compare_whole(given.source, given.output, [int(side) for side in given.sides.split(",")])


if __name__ == "__main__":
    main()
