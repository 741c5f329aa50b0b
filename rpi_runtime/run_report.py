"""What one answer took: pictures, tokens, time, memory, and what computed it."""

from __future__ import annotations

from dataclasses import dataclass

from rpi_runtime.backends.base import BackendChoice, DelegateUse
from rpi_runtime.encoder import RoutedPicture
from rpi_runtime.kernel import Memory


@dataclass(frozen=True)
class ImageReport:
    """One picture of the prompt. Tuples have one entry per tile, the thumbnail last."""

    name: str
    width_px: int
    height_px: int
    columns: int
    rows: int
    thumbnail: bool
    sides_px: tuple[int, ...]  # at which each tile is encoded
    scales: tuple[float, ...]  # what the VRC or the user asked for, before rounding up to a side
    tokens: tuple[int, ...]
    tokens_unrouted: int  # all tiles at the full side
    branch: str
    encoded_tiles: int  # 0 when the KV cache still had the picture

    @property
    def tiles(self) -> int:
        return len(self.sides_px)

    @property
    def visual_tokens(self) -> int:
        return sum(self.tokens)


@dataclass(frozen=True)
class Times:
    """Milliseconds of each phase; no moment counts twice."""

    load_ms: float  # opening graphs, whenever one was first needed
    open_image_ms: float
    route_ms: float
    encode_ms: float
    prefill_ms: float
    decode_ms: float  # after the first token
    first_token_ms: float  # from the question to the first token, everything included
    total_ms: float


@dataclass(frozen=True)
class RunReport:
    model: str
    images: tuple[ImageReport, ...]
    routing: str
    branch: str  # the branches that were used, "" without a picture
    prompt_tokens: int  # visual tokens included
    visual_tokens: int
    visual_tokens_unrouted: int
    reused_tokens: int  # of the prompt, whose keys and values were still there
    new_tokens: int
    context_tokens: int
    stop_reason: str  # one of generation.STOP_REASONS
    times: Times
    prefill_tokens_per_s: float  # 0 when nothing had to be fed
    decode_tokens_per_s: float  # 0 for less than two tokens
    memory: Memory
    backend: BackendChoice
    delegates: tuple[DelegateUse, ...]  # of the graphs opened so far; empty where only the CPU was asked for
    weight_cache: dict[str, str]  # graph -> "reused", "built" or "off: why", of the graphs opened so far
    threads: int


def describe(picture: RoutedPicture, encoded_tiles: int) -> ImageReport:
    """The report of one picture; `encoded_tiles` were encoded for this answer."""
    return ImageReport(
        name=picture.name,
        width_px=picture.size_px[0],
        height_px=picture.size_px[1],
        columns=picture.grid.columns,
        rows=picture.grid.rows,
        thumbnail=picture.plan.thumbnail,
        sides_px=picture.routed.sides,
        scales=picture.routed.scales,
        tokens=picture.routed.tokens,
        tokens_unrouted=picture.routed.tokens_unrouted,
        branch=picture.plan.branch,
        encoded_tiles=encoded_tiles,
    )
