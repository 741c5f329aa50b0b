"""What one picture takes in memory while it is open, told from its size or from its header."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rpi_runtime.image_header import pixel_bytes
from rpi_runtime.images import Picture, shrinking
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.pixels import BAND_BYTES, settling_bytes
from rpi_runtime.tiling import MAX_STRETCH, Grid

_BYTES_PER_PIXEL = pixel_bytes("RGB")
# A JPEG is decoded at the smallest of its scales that has the pixels of the grid, each half of the last.
_WASTE = 4


@dataclass(frozen=True)
class PictureNeeds:
    """Bytes that one picture takes while it is open."""

    decoding: int
    spooling: int  # decoding it into a file
    tile: int  # cutting one from it
    tiles: int  # their number


def any_picture(spec: VisionSpec) -> PictureNeeds:
    """The most that a baseline JPEG takes, but for strips much longer than the grid, and for those that have
    more than its pixels at the smallest scale."""
    # Across all rows, a thumbnail is largest for a grid with MAX_STRETCH times as many rows as columns.
    rows = max(4, math.sqrt(_WASTE * MAX_STRETCH * spec.max_tiles)) * spec.tile_side
    canvas = _WASTE * spec.max_tiles * spec.tile_side**2
    decoding = _BYTES_PER_PIXEL * canvas
    band = settling_bytes((canvas // spec.tile_side, spec.tile_side), 1, "RGB", spooled=True)
    tile = _cutting(BAND_BYTES, spec.tile_side, spec.tile_side * rows)
    return PictureNeeds(decoding, decoding + band, tile, spec.max_tiles + spec.thumbnail)


def jpeg_of(width: int, height: int, grid: Grid) -> PictureNeeds:
    """What a baseline JPEG of this size takes."""
    jpeg_scale, reduce = shrinking((width, height), grid.content_px)
    size = (math.ceil(width / jpeg_scale), math.ceil(height / jpeg_scale))
    decoded = _BYTES_PER_PIXEL * math.prod(size)
    held, spooled = (settling_bytes(size, reduce, "RGB", spooled=spooled) for spooled in (False, True))
    tile = _largest_cut((width, height), grid, jpeg_scale * reduce)
    return PictureNeeds(decoded + held if reduce > 1 else decoded, decoded + spooled, tile, len(grid.tiles))


def needs_of(picture: Picture, grid: Grid) -> PictureNeeds:
    """What a picture takes whose header was read."""
    jpeg_scale, reduce = shrinking(picture.size, grid.content_px, picture.is_jpeg)
    held, spooled = (picture.decoding_bytes(*grid.content_px, spooled=spooled) for spooled in (False, True))
    tile = _largest_cut(picture.size, grid, jpeg_scale * reduce)
    return PictureNeeds(held, spooled, tile, len(grid.tiles))


def _largest_cut(size: tuple[int, int], grid: Grid, scale: int) -> int:
    """Of the tiles of a picture of `size` that is held at 1/`scale`."""
    narrow = 0.0
    for tile in grid.tiles:
        across = (tile.fill[2] - tile.fill[0]) * grid.tile_side_px
        narrow = max(narrow, across * (tile.box[3] - tile.box[1]) / scale)
    band = _BYTES_PER_PIXEL * math.prod(math.ceil(length / scale) for length in size)
    return _cutting(min(BAND_BYTES, band), grid.tile_side_px, narrow)


def _cutting(band: int, side: int, narrow: float) -> int:
    """A band of pixels; `narrow` pixels, those of the tile across all rows that it is made of; the tile."""
    floats = np.dtype(np.float32).itemsize * 3
    return band + round(_BYTES_PER_PIXEL * narrow + floats * side**2)
