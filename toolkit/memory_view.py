"""Memory budgets on the command line: what `--memory` means, and a plan as a table."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rpi_runtime.errors import UsageError, nearest
from toolkit import report

if TYPE_CHECKING:
    from pathlib import Path

    from rpi_runtime.manifest import Manifest
    from rpi_runtime.memory_plan import MemoryPlan
    from rpi_runtime.picture_needs import PictureNeeds
    from rpi_runtime.session import Session
    from rpi_runtime.tiling import Grid


def memory_options(
    memory: str | None,
    branch: str,
    *,
    strict: bool = False,
    stream_weights: bool = False,
    pictures: bool = True,
) -> dict[str, Any]:
    """Arguments of `Session.open` for the options with these names; `pictures` is whether there may be any.
    Raises `UsageError`."""
    if memory is None:
        if strict or stream_weights:
            option = "--strict" if strict else "--stream-weights"
            raise UsageError(f"{option} is given without --memory", "Give a budget, like --memory 512MB.")
        return {}
    from rpi_runtime.encoder import BRANCHES
    from rpi_runtime.memory_plan import parse_budget

    if branch not in (*BRANCHES, "auto"):
        raise nearest(branch, (*BRANCHES, "auto"), "branch")
    branches = (branch,) if branch in BRANCHES else tuple(BRANCHES)
    return {
        "memory_budget": parse_budget(memory),
        "branches": branches if pictures else (),
        "strict": strict,
        "stream_weights": stream_weights,
        "on_measure": _tell_measuring,
    }


def _tell_measuring() -> None:
    report.note("Measuring what the graphs take here, once for this machine and number of threads ...")


def tell_streaming(session: Session) -> None:
    """Says what it costs, if weights do not fit the budget."""
    streamed = session.plan.streamed if session.plan else {}
    if not streamed:
        return
    from rpi_runtime.manifest import DECODER

    rate = read_rate(max((session.bundle.path(name) for name in streamed), key=lambda p: p.stat().st_size))
    for component, count in streamed.items():
        each = "each token" if component == DECODER else "each tile"
        report.warning(
            f"{component}: {_mb(count)} MB of weights do not fit and are read again for {each}, "
            f"{_time(count / rate)} at this storage's {rate / 1e6:,.0f} MB/s"
        )


_RATE_BYTES = 64 << 20


def read_rate(path: Path) -> float:
    """Bytes per second that the storage under `path` gives: of its first 64 MB, out of the page cache."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        started, left = time.perf_counter(), _RATE_BYTES
        while left > 0 and (piece := file.read(min(left, 1 << 20))):
            left -= len(piece)
    return max(1, _RATE_BYTES - left) / max(1e-6, time.perf_counter() - started)


def plan_summary(plan: MemoryPlan | None) -> dict[str, Any] | None:
    """What was planned for one answer, as JSON; None without a budget."""
    if plan is None:
        return None
    return {"budget": plan.budget, "peak": plan.peak, **report.plain(plan.chosen)}


def print_plan(title: str, plan: MemoryPlan) -> None:
    from rpi_runtime.memory_plan import MARGIN

    holders = list(dict.fromkeys(who for phase in plan.phases for who in phase.holds))
    rows: list[list[str]] = [
        [who, *(_mb(phase.holds[who]) if who in phase.holds else "" for phase in plan.phases)]
        for who in holders
    ]
    rows.append(["all", *(_mb(phase.bytes) for phase in plan.phases)])
    names = [phase.name for phase in plan.phases]
    report.table(title, ("MB", *names), rows, right=names)
    chosen = plan.chosen
    report.out.print(
        f"{chosen.context_tokens:,} tokens, graphs {chosen.way}: {_mb(plan.peak)} MB at most, "
        f"{_mb(plan.head_room)} MB of head room; fullest is {plan.fullest.name}, with "
        f"{100 * MARGIN:g} % for what is not counted",
        highlight=False,
    )
    by_row: dict[tuple[str, str], list[str]] = {}  # of context and chunks; one column for each way
    for choice in plan.choices:
        chunks = ", ".join(map(str, choice.prefill_tokens)) or "1"
        row = by_row.setdefault((f"{choice.context_tokens:,}", chunks), [])
        row.append(_mb(choice.peak) + (" *" if choice == chosen else ""))
    ways = list(dict.fromkeys(choice.way for choice in plan.choices))
    rows = [[*key, *cells] for key, cells in by_row.items()]
    title = "MB at most, by tokens of context and of prefill chunks"
    report.table(title, ("context", "chunks", *ways), rows, right=("context", "chunks", *ways))
    if any("picture" in phase.holds for phase in plan.phases):
        room = max(0, plan.picture_bytes)
        report.out.print(
            f"a picture may take {_mb(room)} MB while it is decoded: a PNG of about {room / 4e6:,.1f} "
            f"megapixels, a WebP of {room / 17e6:,.1f}; baseline JPEGs of any size are decoded smaller",
            highlight=False,
        )


@dataclass(frozen=True)
class PictureCost:
    """What pictures take of the context when every tile has the full side, and of memory."""

    name: str  # of the file, or the size
    size_px: tuple[int, int]
    columns: int
    rows: int
    thumbnail: bool
    visual_tokens: int  # of each
    peak: int  # bytes, of an answer about it
    spooling: int  # bytes, of decoding it into a file
    fits: bool  # the budget
    count: int = 1


def picture_costs(
    manifest: Manifest, plan: MemoryPlan, asked: Sequence[tuple[int, int] | Path], most: int
) -> list[PictureCost]:
    """Of pictures in files, or JPEGs of a size, and of `most` with as many tiles as there may be. Raises
    `UsageError`, `ImageError`."""
    from rpi_runtime.images import open_image
    from rpi_runtime.picture_needs import jpeg_of, needs_of
    from rpi_runtime.tiling import plan_grid

    spec = manifest.vision
    if spec is None:
        if asked or most:
            raise UsageError("the bundle is for text only", "Leave --image and --images out.")
        return []

    def jpeg(width: int, height: int) -> PictureCost:
        grid = plan_grid(width, height, spec)
        return cost(f"{width} x {height}", (width, height), grid, jpeg_of(width, height, grid))

    def cost(name: str, size: tuple[int, int], grid: Grid, needs: PictureNeeds) -> PictureCost:
        tokens, peak = len(grid.tiles) * spec.tokens(spec.tile_side), plan.peak_with(needs)
        shape = (grid.columns, grid.rows, grid.tiles[-1].is_thumbnail)
        return PictureCost(name, size, *shape, tokens, peak, needs.spooling, fits=peak <= plan.budget)

    found = []
    for picture in asked:
        if isinstance(picture, tuple):
            found.append(jpeg(*picture))
        else:
            opened = open_image(picture, max_bytes=1 << 62)
            grid = plan_grid(*opened.size, spec)
            found.append(cost(picture.name, opened.size, grid, needs_of(opened, grid)))
            opened.close()
    if most:
        in_one_row = jpeg(spec.max_tiles * spec.tile_side, spec.tile_side)
        found.append(replace(in_one_row, count=most))
    return found


def print_pictures(pictures: Sequence[PictureCost], context: int) -> None:
    rows = [
        [
            p.name if p.count == 1 else f"{p.count:,} of {p.name}",
            f"{p.columns} x {p.rows}" + (" and a thumbnail" if p.thumbnail else ""),
            f"{p.visual_tokens:,}",
            _mb(p.peak) + ("" if p.fits else " !"),
        ]
        for p in pictures
    ]
    title = "Pictures, every tile at the full side"
    columns = ("picture", "tiles", "visual tokens", "MB at most")
    report.table(title, columns, rows, right=columns[2:])
    left = context - sum(p.count * p.visual_tokens for p in pictures)
    text = f"{left:,} of {context:,} tokens are left for text"
    if left <= 0:
        text = f"{-left:,} tokens more than the context of {context:,} holds, where routing saves none"
    report.out.print(text, highlight=False)
    if not all(p.fits for p in pictures):
        report.out.print("! does not fit the budget", highlight=False)


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"
