"""How a picture becomes tiles: an AnyRes grid as InternVL's, and one tile at a time.

The grid is the arrangement of at most `max_tiles` square tiles whose aspect ratio is closest to the
picture's, and the picture is stretched to it. InternVL stretches without bound: a line of 20000 x 20 px would
become 83 times as high, in proportion. Here the scales of the two axes differ by `MAX_STRETCH` at most; the
content is centred, and what it does not fill stays grey (0.5, which the usual mean and std turn into 0). The
thumbnail, a grid of one tile, follows the same rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rpi_runtime.images import Picture
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.pixels import Box

MAX_STRETCH = 2.0
GREY = 0.5


@dataclass(frozen=True)
class Tile:
    """One square tile: the picture's `box` (px of the oriented picture) fills the share `fill` of it."""

    index: int  # in reading order; the thumbnail is last
    row: int
    column: int
    box: Box
    fill: Box = (0.0, 0.0, 1.0, 1.0)  # left, upper, right, lower as shares of the tile's side
    is_thumbnail: bool = False


@dataclass(frozen=True)
class Grid:
    columns: int
    rows: int
    tile_side_px: int
    tiles: tuple[Tile, ...]  # row by row, then the thumbnail if there is one

    @property
    def content_px(self) -> tuple[int, int]:
        """Pixels (width, height) that the picture has on the full-resolution canvas, without grey."""
        left, upper, right, lower = self.tiles[0].fill
        return (
            math.ceil(self.columns * self.tile_side_px * (right - left)),
            math.ceil(self.rows * self.tile_side_px * (lower - upper)),
        )


def tile_picture(picture: Picture, spec: VisionSpec) -> Grid:
    """Plans the grid of `picture` and decodes as many of its pixels as the grid needs."""
    grid = plan_grid(*picture.size, spec)
    picture.decode(*grid.content_px)
    return grid


def plan_grid(width: int, height: int, spec: VisionSpec) -> Grid:
    """The grid of a `width` x `height` px picture. Its tiles cover the picture once, without overlap."""
    columns, rows = closest_arrangement(width, height, spec.tile_side, spec.max_tiles)
    tiles = _tiles(width, height, columns, rows)
    if spec.thumbnail and len(tiles) > 1:
        tiles.append(whole_picture(width, height, index=len(tiles)))
    return Grid(columns, rows, spec.tile_side, tuple(tiles))


def whole_picture(width: int, height: int, index: int = 0) -> Tile:
    """The thumbnail: the whole picture as one tile."""
    (only,) = _tiles(width, height, 1, 1)
    return Tile(index, 0, 0, only.box, only.fill, is_thumbnail=True)


def cut(picture: Picture, tile: Tile, side: int) -> np.ndarray:
    """`tile` at `side` px, resampled from the picture in one step: `[1, side, side, 3]` float32 in [0, 1]."""
    left, right = _pixel_span(tile.fill[0], tile.fill[2], side)
    upper, lower = _pixel_span(tile.fill[1], tile.fill[3], side)
    image = np.full((1, side, side, 3), GREY, np.float32)
    pixels = picture.crop(tile.box, right - left, lower - upper)
    np.multiply(pixels, np.float32(1 / 255), out=image[0, upper:lower, left:right], dtype=np.float32)
    return image


@lru_cache(maxsize=8)
def _arrangements(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """(columns, rows) with at most `max_tiles` tiles, fewest tiles first."""
    sides = range(1, max_tiles + 1)
    return tuple(
        sorted(((c, r) for c in sides for r in sides if c * r <= max_tiles), key=lambda g: g[0] * g[1])
    )


def closest_arrangement(width: int, height: int, tile_side: int, max_tiles: int) -> tuple[int, int]:
    """InternVL's choice of (columns, rows): the smallest difference of aspect ratios.

    Of arrangements that are equally close (1x1, 2x2, 3x3) the larger wins while the picture has more than
    half of its pixels. Source: `find_closest_aspect_ratio` of InternVL, `get_optimal_tiled_canvas` in
    transformers.
    """
    best, best_difference = (1, 1), math.inf
    for columns, rows in _arrangements(max_tiles):
        difference = abs(width / height - columns / rows)
        if difference < best_difference:
            best, best_difference = (columns, rows), difference
        elif difference == best_difference and width * height > 0.5 * tile_side * tile_side * columns * rows:
            best = (columns, rows)
    return best


def _tiles(width: int, height: int, columns: int, rows: int) -> list[Tile]:
    wider = (width / height) / (columns / rows)  # than the canvas
    across = _spans(width, columns, min(1.0, MAX_STRETCH * wider))
    down = _spans(height, rows, min(1.0, MAX_STRETCH / wider))
    return [
        Tile(row * columns + column, row, column, (x0, y0, x1, y1), (fx0, fy0, fx1, fy1))
        for row, (y0, y1, fy0, fy1) in enumerate(down)
        for column, (x0, x1, fx0, fx1) in enumerate(across)
    ]


def _spans(length: int, cells: int, share: float) -> list[tuple[float, float, float, float]]:
    """Per cell along one axis: source px from and to, and between which shares of the cell's side they lie.

    A share below 1 comes only with a single cell along its axis: the aspect ratios 1, 2, 3 ... and their
    inverses are so dense that only a picture beyond the longest or tallest is MAX_STRETCH away from all.
    """
    margin = (1.0 - share) / 2
    edges = [length * i / cells for i in range(cells + 1)]
    return [(edges[i], edges[i + 1], margin, 1.0 - margin) for i in range(cells)]


def _pixel_span(start: float, end: float, side: int) -> tuple[int, int]:
    """Whole pixels of a share of the tile, at least one."""
    length = max(1, round((end - start) * side))
    first = min(round(start * side), side - length)
    return first, first + length
