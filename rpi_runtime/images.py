"""Pictures: opened from anywhere, decoded no larger than their tiles need, cut into boxes.

1. `open_image` reads the header (`image_header`): format, size, orientation. Too large is refused here.
2. The caller plans its grid from `Picture.size` and asks `decode()` for as many pixels as the grid has.
3. A JPEG is decoded at the smallest of its scales (1, 1/2, 1/4, 1/8) that still has them. Pillow can decode
   any other format only whole; it is averaged down to the same in bands, and the whole let go of.
4. `crop()` resamples a box of the oriented picture to a tile, in one step.

Orientation (EXIF) turns boxes and finished tiles, never the picture. Transparency is laid on white, the first
frame of an animation is taken, 16-bit samples are scaled by their range, colour profiles are not applied.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image, TiffImagePlugin

from rpi_runtime.errors import ImageError
from rpi_runtime.image_header import (
    Header,
    check_pixels,
    open_file,
    orientation_of,
    pillow_errors,
    read_header,
)

# Pixels held while decoding, 4 bytes each: 200 MB. Baseline JPEGs count after scaling.
MAX_DECODED_PIXELS = 50_000_000

Source = str | os.PathLike[str] | bytes | Image.Image
Box = tuple[float, float, float, float]  # left, upper, right, lower in px of the oriented picture

_JPEG_SCALES = (8, 4, 2, 1)
_BAND_ROWS = 256
# EXIF orientation -> what turns stored pixels upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: Source, *, max_pixels: int = MAX_DECODED_PIXELS) -> Picture:
    """Reads the header of `source` (a path, a file's bytes, or a Pillow image) and returns it undecoded.

    `max_pixels` bounds the pixels held while decoding. Raises `ImageError` naming the source for anything
    that is not a picture in one of `image_header.FORMATS`, is damaged, or is larger than the limits there and
    here.
    """
    if isinstance(source, Image.Image):
        return _from_pillow(source, max_pixels)
    if isinstance(source, bytes):
        return _from_stream(io.BytesIO(source), "the image given as bytes", max_pixels)
    name = os.fspath(source)
    stream = open_file(name)
    try:
        return _from_stream(stream, name, max_pixels)
    except BaseException:
        stream.close()
        raise


class Picture:
    """One picture. `size` is (width, height) in px, oriented and whole; `digest` is a SHA-256, in hex, of its
    file or, for a Pillow image, of its pixels.
    """

    def __init__(self, header: Header, name: str, digest: str, max_pixels: int) -> None:
        self.name = name
        self.size = _turned((header.width, header.height), header.orientation)
        self.digest = digest
        self._header: Header | None = header  # until decode()
        self._pixels: Image.Image | None = None  # after it: RGB or L, not oriented
        self._orientation = header.orientation
        self._scale = 1  # stored px per held px
        self._max_pixels = max_pixels

    def decode(self, width: int, height: int) -> None:
        """Decodes at least `width` x `height` px (oriented) of the picture, or all it has; once.

        Raises `ImageError` when the data is damaged or more pixels than allowed would have to be held.
        """
        if self._header is None:
            raise RuntimeError(f"{self.name} was decoded or closed before")
        header = self._header
        shrink = max(1, min(self.size[0] // max(1, width), self.size[1] // max(1, height)))
        jpeg_scale = next(s for s in _JPEG_SCALES if s <= shrink) if header.is_jpeg else 1
        reduce = shrink // jpeg_scale
        try:
            header.check_pixels(self.name, jpeg_scale, self._max_pixels)
            with pillow_errors(self.name, "cannot be decoded"):
                image = header.image
                if header.is_jpeg:
                    image.draft(None, (header.width // jpeg_scale, header.height // jpeg_scale))
                image.load()
                if isinstance(image, TiffImagePlugin.TiffImageFile):
                    self._orientation = 1  # Pillow turned it while it loaded
                self._pixels = _settle(image, reduce, self.name)
        finally:
            self.close()
        self._scale = jpeg_scale * reduce

    @property
    def held_px(self) -> tuple[int, int]:
        """Width and height of what `decode` kept, as stored; (0, 0) before it."""
        return self._pixels.size if self._pixels is not None else (0, 0)

    def crop(self, box: Box, width: int, height: int) -> np.ndarray:
        """Resamples `box` (antialiased bicubic) to `[height, width, 3]` uint8; neighbours outside it count.

        Decodes the whole picture first if `decode` was not called.
        """
        if self._pixels is None:
            self.decode(*self.size)
        pixels = self._pixels
        assert pixels is not None
        left, upper, right, lower = (v / self._scale for v in _stored_box(box, self.size, self._orientation))
        inside = (max(left, 0.0), max(upper, 0.0), min(right, pixels.width), min(lower, pixels.height))
        tile = pixels.resize(
            _turned((width, height), self._orientation), Image.Resampling.BICUBIC, box=inside
        )
        if self._orientation in _UPRIGHT:
            tile = tile.transpose(_UPRIGHT[self._orientation])
        return np.asarray(tile.convert("RGB"))

    def close(self) -> None:
        """Lets go of the file. `decode` does it; call it for a picture that is never decoded."""
        if self._header is not None:
            self._header.stream.close()
            self._header = None


def _from_stream(stream: IO[bytes], name: str, max_pixels: int) -> Picture:
    header = read_header(stream, name)
    header.check_pixels(name, _JPEG_SCALES[0], max_pixels)
    position = stream.tell()
    stream.seek(0)
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    stream.seek(position)
    return Picture(header, name, digest.hexdigest(), max_pixels)


def _from_pillow(image: Image.Image, max_pixels: int) -> Picture:
    name = "the Pillow image"
    check_pixels(name, *image.size, 1, max_pixels)
    with pillow_errors(name, "cannot be decoded"):
        image.load()
    orientation = 1 if isinstance(image, TiffImagePlugin.TiffImageFile) else orientation_of(image)
    digest = hashlib.sha256(
        repr((image.mode, image.size, orientation, image.info.get("transparency"))).encode()
    )
    digest.update(bytes(image.getpalette() or b""))
    for _, band in _bands(image, _BAND_ROWS):
        digest.update(band.tobytes())
    # A copy, because the caller may go on drawing on its own.
    header = Header(image.copy(), io.BytesIO(), *image.size, orientation, is_jpeg=False, buffered_whole=True)
    return Picture(header, name, digest.hexdigest(), max_pixels)


# Turning: stored pixels and the oriented picture.


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Stored size -> oriented size, and back: orientations 5 to 8 swap the sides."""
    return (size[1], size[0]) if orientation >= 5 else size


def _stored_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """The box of stored pixels that shows as `box` in the oriented picture of `size`."""
    left, upper, right, lower = box
    width, height = size
    if orientation in (2, 3, 6, 7):
        left, right = width - right, width - left
    if orientation in (3, 4, 7, 8):
        upper, lower = height - lower, height - upper
    return (upper, left, lower, right) if orientation >= 5 else (left, upper, right, lower)


# Decoding: any mode to 8-bit RGB or L, in bands, so that two whole copies are never held.


def _settle(image: Image.Image, reduce: int, name: str) -> Image.Image:
    """`image` as RGB or L, averaged down by the whole number `reduce`."""
    plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    if plain and reduce == 1:
        return image
    mode = "L" if plain and image.mode == "L" else "RGB"
    settled = Image.new(mode, (math.ceil(image.width / reduce), math.ceil(image.height / reduce)))
    for top, band in _bands(image, reduce * max(1, _BAND_ROWS // reduce)):
        small = _to_8_bit(band, name)
        if small.mode != mode:
            small = small.convert(mode)
        settled.paste(small.reduce(reduce) if reduce > 1 else small, (0, top // reduce))
    return settled


def _bands(image: Image.Image, rows: int) -> Iterator[tuple[int, Image.Image]]:
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _to_8_bit(image: Image.Image, name: str) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        samples = np.asarray(image).astype(np.int64)
        # Pillow's "I" has 32 bits; PNG and PGM files, and older Pillows, put 16-bit samples there.
        if samples.min() < 0 or samples.max() > 65535:
            raise ImageError(
                f"{name} has samples from {samples.min()} to {samples.max()}; 0 to 65535 is understood",
                "Save it with 8 or 16 bits per sample.",
            )
        return Image.fromarray(((samples * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ImageError(
            f"{name} has floating-point samples, whose white nobody states", "Save it as 8-bit PNG."
        )
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image if image.mode in ("L", "RGB") else image.convert("RGB")
