"""Which resolution each tile gets, and which vision branch encodes them.

The VRC looks at a small view of a tile and gives one logit per scale. The most likely scale, rounded up to a
side that a graph was exported for, is the side at which the tile is encoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from rpi_runtime.errors import UsageError, nearest
from rpi_runtime.images import Picture
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.tiling import Grid, Tile, cut, whole_picture

MODES = ("tile", "image", "fixed")
POLICIES = ("auto", "base", "large")

# [1, vrc_side, vrc_side, 3] float32 in [0, 1] -> one logit per scale, [scales] or [1, scales]
Predict = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Routing:
    """`tile`: one prediction per tile. `image`: one for all. `fixed`: no prediction, `scale` for all."""

    mode: str = "tile"
    scale: float | None = None  # of the tile side, in (0, 1]; "fixed" only

    @classmethod
    def parse(cls, text: str) -> Routing:
        """Reads `tile`, `image` or `fixed:<scale>`; raises `UsageError` for anything else."""
        mode, _, value = text.strip().partition(":")
        if mode not in MODES:
            raise UsageError(
                f"unknown routing {text!r}", f"{nearest(mode, MODES, 'routing').remedy} {_FORMS}"
            )
        if mode != "fixed":
            if ":" in text:
                raise UsageError(f"routing {text!r}: {mode} takes no value", _FORMS)
            return cls(mode)
        try:
            scale = float(value)
        except ValueError:
            raise UsageError(f"routing {text!r}: {value!r} is not a number", _FORMS) from None
        if not 0.0 < scale <= 1.0:
            raise UsageError(f"routing {text!r}: the scale must be above 0 and at most 1", _FORMS)
        return cls(mode, scale)

    def __str__(self) -> str:
        return self.mode if self.scale is None else f"{self.mode}:{self.scale:g}"


_FORMS = "Use tile, image or fixed:<scale>, for instance fixed:0.5."


@dataclass(frozen=True)
class RoutedTiles:
    """What routing decided; every tuple has one entry per tile of the grid, the thumbnail last."""

    sides: tuple[int, ...]  # px, each one of VisionSpec.tile_sides
    scales: tuple[float, ...]  # asked for, before rounding up to a side
    tokens: tuple[int, ...]  # visual tokens
    tokens_unrouted: int  # all tiles at the full side
    grid_tiles: int  # without the thumbnail

    @property
    def total_tokens(self) -> int:
        return sum(self.tokens)

    @property
    def grid_sides(self) -> tuple[int, ...]:
        """Sides without the thumbnail's: what `choose_branch` looks at."""
        return self.sides[: self.grid_tiles]


def route(picture: Picture, grid: Grid, spec: VisionSpec, routing: Routing, predict: Predict) -> RoutedTiles:
    """Chooses a side for every tile of `grid`; `predict` is called once per tile, once, or never."""

    def scale_of(tile: Tile) -> float:
        logits = np.asarray(predict(cut(picture, tile, spec.vrc_side))).reshape(len(spec.scales))
        return spec.scales[int(np.argmax(logits))]

    if routing.mode == "tile":
        scales = tuple(scale_of(tile) for tile in grid.tiles)
    else:
        scale = routing.scale if routing.scale is not None else scale_of(whole_picture(*picture.size))
        scales = (scale,) * len(grid.tiles)
    sides = tuple(side_for(scale, spec) for scale in scales)
    return RoutedTiles(
        sides=sides,
        scales=scales,
        tokens=tuple(spec.tokens(side) for side in sides),
        tokens_unrouted=len(sides) * spec.tokens(spec.tile_sides[0]),
        grid_tiles=grid.columns * grid.rows,
    )


def side_for(scale: float, spec: VisionSpec) -> int:
    """The smallest exported side of at least `scale` times the full tile's, or the largest there is."""
    wanted = math.ceil(
        scale * spec.tile_side - 1e-6
    )  # a scale like 5/7 must not be rounded past its own side
    return min((side for side in spec.tile_sides if side >= wanted), default=spec.tile_sides[0])


def choose_branch(
    policy: str, grid_sides: Sequence[int], spec: VisionSpec, available: Collection[str]
) -> str:
    """`base` or `large`. `auto` takes the large branch when at least `auto_large_share` of the tiles in
    `grid_sides` are encoded at the full side; with one branch available, that one.

    Raises `UsageError` for an unknown policy and for a branch that the bundle does not have.
    """
    if policy not in POLICIES:
        raise nearest(policy, POLICIES, "branch")
    if not available:
        raise UsageError("the bundle has no vision branch", "Convert the checkpoint with a vision branch.")
    if policy != "auto":
        if policy not in available:
            offer = " or ".join(sorted(available))
            raise UsageError(
                f"the bundle has no {policy} vision branch",
                f"Use {offer}, or convert with --components including vision_{policy}.",
            )
        return policy
    if len(available) == 1:
        return next(iter(available))
    full = sum(side == spec.tile_sides[0] for side in grid_sides)
    return "large" if grid_sides and full >= spec.auto_large_share * len(grid_sides) else "base"
