"""Decoded pixels, in memory or in a file, and tiles resampled from them a band at a time."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from rpi_runtime.errors import ResourceError

Box = tuple[float, float, float, float]  # left, upper, right, lower in px

BAND_BYTES = 1 << 20  # that a band takes from which a tile is cut
# Pixels of a band that is made RGB or L, or one row (where they are averaged, as many as become one).
BAND_PIXELS = 1 << 16
_BAND_BYTES_PER_PIXEL = 28  # of 16-bit grey, which takes most
_SUPPORT = 2  # pixels that bicubic resampling reads on either side, at scale 1


Bands = Iterable[tuple[int, Image.Image]]  # of a picture, top to bottom, each with its first row's number


class Pixels(Protocol):
    """8-bit pixels of `size` (width, height) and of Pillow's mode "RGB" or "L"."""

    size: tuple[int, int]
    mode: str

    def part(self, left: int, upper: int, right: int, lower: int) -> Image.Image:
        """A copy of a box that lies inside."""


class HeldPixels:
    """In memory."""

    def __init__(self, image: Image.Image) -> None:
        self.size, self.mode = image.size, image.mode
        self._image = image

    @classmethod
    def gather(cls, mode: str, size: tuple[int, int], bands: Bands) -> HeldPixels:
        image = Image.new(mode, size)
        for top, band in bands:
            image.paste(band, (0, top))
        return cls(image)

    def part(self, left: int, upper: int, right: int, lower: int) -> Image.Image:
        return self._image.crop((left, upper, right, lower))


class SpooledPixels:
    """In a file without a name in `folder`, from which each part is read."""

    def __init__(self, mode: str, size: tuple[int, int], bands: Bands, folder: Path) -> None:
        """Raises `ResourceError` when the file cannot be written."""
        import tempfile  # here: it brings much, and without a budget nothing is spooled

        self.size, self.mode = size, mode
        self._bands = len(mode)  # of a pixel: "L" has one, "RGB" three
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            for _, band in bands:
                self._file.write(band.tobytes())
            self._file.flush()
        except OSError as error:
            remedy = "Set XDG_CACHE_HOME to another place."
            if error.errno == errno.ENOSPC:
                remedy = f"Free some space there. {remedy}"
            raise ResourceError(
                f"a picture's pixels cannot be kept in {folder}: {error.strerror}", remedy
            ) from error

    def part(self, left: int, upper: int, right: int, lower: int) -> Image.Image:
        width, row = self.size[0], self.size[0] * self._bands
        raw = os.pread(self._file.fileno(), (lower - upper) * row, upper * row)
        rows = np.frombuffer(raw, np.uint8).reshape(lower - upper, width, self._bands)[:, left:right]
        return Image.fromarray(rows if self._bands > 1 else rows[..., 0])


def settling_bytes(size: tuple[int, int], reduce: int, mode: str, *, spooled: bool) -> int:
    """What it takes to make a decoded picture of `size` RGB or L, averaged down by `reduce`: a band, and what
    becomes of it."""
    width, height = size
    band = _BAND_BYTES_PER_PIXEL * min(width * height, max(BAND_PIXELS, width * reduce))
    settled = (4 if mode == "RGB" else 1) * math.ceil(width / reduce) * math.ceil(height / reduce)
    return band if spooled else band + settled


def resample(pixels: Pixels, box: Box, width: int, height: int) -> Image.Image:
    """`box`, which lies inside, at `width` x `height`: antialiased bicubic, and neighbours of the box count.

    Pillow's two passes of the whole, across and then down, where the first goes by bands of rows. (Since
    version 13 its own `resize` begins with whichever takes less, and differs by a few levels of 255.)
    """
    left, upper, right, lower = (float(np.float32(edge)) for edge in box)  # Pillow's precision
    first, last = _read(left, right, width, pixels.size[0])
    top, bottom = _read(upper, lower, height, pixels.size[1])
    narrow = Image.new(pixels.mode, (width, bottom - top))
    step = max(1, BAND_BYTES // (4 * (last - first)))
    for start in range(top, bottom, step):
        band = pixels.part(first, start, last, min(start + step, bottom))
        across = (left - first, 0, right - first, band.height)
        narrow.paste(
            band.resize((width, band.height), Image.Resampling.BICUBIC, box=across), (0, start - top)
        )
    return narrow.resize((width, height), Image.Resampling.BICUBIC, box=(0, upper - top, width, lower - top))


def _read(start: float, end: float, count: int, length: int) -> tuple[int, int]:
    """Along one axis of `length` px: what resampling start..end to `count` px reads."""
    margin = math.ceil(_SUPPORT * max(1.0, (end - start) / count)) + 1
    return max(0, math.floor(start) - margin), min(length, math.ceil(end) + margin)
