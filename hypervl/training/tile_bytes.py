"""Tiles as training keeps them: a quarter of the bytes, on disk and between processes."""

from __future__ import annotations

import numpy as np

from rpi_runtime.images import Picture
from rpi_runtime.tiling import Tile, cut


def cut_bytes(picture: Picture, tile: Tile, side: int) -> np.ndarray:
    """[side, side, 3] uint8; divided by 255 it is the device's tile. Only the grey beside a long picture,
    127.5 there, loses its half."""
    return np.asarray(np.rint(cut(picture, tile, side)[0] * 255).astype(np.uint8))
