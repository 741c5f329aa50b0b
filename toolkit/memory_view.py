"""Memory budgets on the command line: what `--memory` means, and a plan as a table."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rpi_runtime.errors import UsageError
from toolkit import report

if TYPE_CHECKING:
    from pathlib import Path

    from rpi_runtime.manifest import Manifest
    from rpi_runtime.memory_plan import MemoryPlan
    from rpi_runtime.session import Session


def memory_options(
    memory: str | None, branch: str, strict: bool = False, stream_weights: bool = False
) -> dict[str, Any]:
    """Arguments of `Session.open` for the options with these names. Raises `UsageError`."""
    if memory is None:
        if strict or stream_weights:
            option = "--strict" if strict else "--stream-weights"
            raise UsageError(f"{option} is given without --memory", "Give a budget, like --memory 512MB.")
        return {}
    from rpi_runtime.encoder import BRANCHES
    from rpi_runtime.memory_plan import parse_budget

    branches = (branch,) if branch in BRANCHES else tuple(BRANCHES)
    return {
        "memory_budget": parse_budget(memory),
        "branches": branches,
        "strict": strict,
        "stream_weights": stream_weights,
    }


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
            f"{count / rate:.2f} s at this storage's {rate / 1e6:,.0f} MB/s"
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


def print_plan(title: str, plan: MemoryPlan) -> None:
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
        f"{_mb(plan.head_room)} MB of head room; fullest is {plan.fullest.name}",
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
    if plan.picture_pixels:
        report.out.print(
            f"pictures: JPEGs of any size; others up to {plan.picture_pixels / 1e6:.1f} megapixels",
            highlight=False,
        )


@dataclass(frozen=True)
class PictureTokens:
    """What a picture takes of the context when every tile has the full side."""

    size_px: tuple[int, int]
    columns: int
    rows: int
    thumbnail: bool
    visual_tokens: int


def picture_tokens(manifest: Manifest, sizes: Sequence[tuple[int, int]], most: int) -> list[PictureTokens]:
    """Of pictures of `sizes`, and of `most` with as many tiles as there may be. Raises `UsageError`."""
    from rpi_runtime.tiling import plan_grid

    spec = manifest.vision
    if spec is None:
        if sizes or most:
            raise UsageError("the bundle is for text only", "Leave --image and --images out.")
        return []
    largest = (spec.max_tiles * spec.tile_side, spec.tile_side)  # in one row
    found = []
    for width, height in (*sizes, *[largest] * most):
        grid = plan_grid(width, height, spec)
        tokens = len(grid.tiles) * spec.tokens(spec.tile_side)
        thumbnail = grid.tiles[-1].is_thumbnail
        found.append(PictureTokens((width, height), grid.columns, grid.rows, thumbnail, tokens))
    return found


def print_pictures(pictures: Sequence[PictureTokens], context: int) -> None:
    rows = [
        [
            f"{p.size_px[0]} x {p.size_px[1]}",
            f"{p.columns} x {p.rows}" + (" and a thumbnail" if p.thumbnail else ""),
            f"{p.visual_tokens:,}",
        ]
        for p in pictures
    ]
    title = "Pictures, every tile at the full side"
    report.table(title, ("px", "tiles", "visual tokens"), rows, right=["visual tokens"])
    left = context - sum(p.visual_tokens for p in pictures)
    text = f"{left:,} of {context:,} tokens are left for text"
    if left <= 0:
        text = f"{-left:,} tokens more than the context of {context:,} holds, where routing saves none"
    report.out.print(text, highlight=False)


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f}"
