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
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, TiffImagePlugin

from rpi_runtime.errors import ImageError
from rpi_runtime.image_header import (
    Header,
    PictureTooLarge,
    check_size,
    open_file,
    orientation_of,
    pillow_errors,
    read_header,
)
from rpi_runtime.kernel import give_back
from rpi_runtime.pixels import (
    BAND_PIXELS,
    Bands,
    Box,
    HeldPixels,
    Pixels,
    SpooledPixels,
    resample,
    settling_bytes,
)

# What a picture may take while it is decoded, where no memory budget says less.
MAX_DECODED_BYTES = 400_000_000

Source = str | os.PathLike[str] | bytes | Image.Image

_JPEG_SCALES = (8, 4, 2, 1)
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


def open_image(source: Source, *, max_bytes: int = MAX_DECODED_BYTES) -> Picture:
    """Reads the header of `source` (a path, a file's bytes, or a Pillow image) and returns it undecoded.

    `max_bytes` bounds what it takes while it is decoded. Raises `ImageError` naming the source for anything
    that is not a picture in one of `image_header.FORMATS`, is damaged, or is larger than the limits there;
    `PictureTooLarge`, one of them, for a Pillow image or WebP that takes more than `max_bytes`, of which a
    copy is made here; for others `decode` tells.
    """
    if isinstance(source, Image.Image):
        return _from_pillow(source, max_bytes)
    if isinstance(source, bytes):
        return _from_stream(io.BytesIO(source), "the image given as bytes", max_bytes)
    name = os.fspath(source)
    stream = open_file(name)
    try:
        return _from_stream(stream, name, max_bytes)
    except BaseException:
        stream.close()
        raise


class Picture:
    """One picture. `size` is (width, height) in px, oriented and whole; `digest` is a SHA-256, in hex, of its
    file or, for a Pillow image, of its pixels.
    """

    def __init__(self, header: Header, name: str, digest: str, max_bytes: int) -> None:
        self.name = name
        self.size = _turned((header.width, header.height), header.orientation)
        self.digest = digest
        self.is_spooled = False  # its pixels wait in a file
        self._header: Header | None = header  # until decode()
        self._pixels: Pixels | None = None  # after it, not oriented
        self._orientation = header.orientation
        self._scale = 1  # stored px per held px
        self._max_bytes = max_bytes

    @property
    def is_jpeg(self) -> bool:
        """Whether it is decoded at a scale."""
        return self._undecoded().is_jpeg

    def decoding_bytes(self, width: int, height: int, *, spooled: bool = False) -> int:
        """What `decode` of as many px takes."""
        header = self._undecoded()
        jpeg_scale, reduce = shrinking(self.size, (width, height), header.is_jpeg)
        count = header.decoded_bytes(jpeg_scale)
        if spooled or reduce > 1 or not _is_plain(header.image):
            size, mode = header.scaled_px(jpeg_scale), _settled_mode(header.image)
            count += settling_bytes(size, reduce, mode, spooled=spooled)
        return count

    def decode(self, width: int, height: int, *, spool: Path | None = None) -> None:
        """Decodes at least `width` x `height` px (oriented) of the picture, or all it has; once.

        With the folder `spool` its pixels wait in a file there afterwards, and not in memory. Raises
        `ImageError` when the data is damaged; `PictureTooLarge` when it would take more than allowed.
        """
        header = self._undecoded()
        jpeg_scale, reduce = shrinking(self.size, (width, height), header.is_jpeg)
        try:
            needed = self.decoding_bytes(width, height, spooled=spool is not None)
            _check_bytes(self.name, header, needed, self._max_bytes)
            with pillow_errors(self.name, "cannot be decoded"):
                image = header.image
                if header.is_jpeg:
                    image.draft(None, (header.width // jpeg_scale, header.height // jpeg_scale))
                image.load()
                if isinstance(image, TiffImagePlugin.TiffImageFile):
                    self._orientation = 1  # Pillow turned it while it loaded
                self._pixels = _settle(image, reduce, self.name, spool)
        finally:
            self.close()
        self._scale = jpeg_scale * reduce
        if spool:
            self.is_spooled = True
            del header, image
            give_back()

    @property
    def held_px(self) -> tuple[int, int]:
        """Width and height of what `decode` kept, as stored; (0, 0) before it."""
        return self._pixels.size if self._pixels is not None else (0, 0)

    def crop(self, box: Box, width: int, height: int) -> np.ndarray:
        """Resamples `box`, in px of the oriented picture, to `[height, width, 3]` uint8 (`pixels.resample`).

        Decodes the whole picture first if `decode` was not called.
        """
        if self._pixels is None:
            self.decode(*self.size)
        pixels = self._pixels
        assert pixels is not None
        left, upper, right, lower = (v / self._scale for v in _stored_box(box, self.size, self._orientation))
        inside = (max(left, 0.0), max(upper, 0.0), min(right, pixels.size[0]), min(lower, pixels.size[1]))
        tile = resample(pixels, inside, *_turned((width, height), self._orientation))
        if self._orientation in _UPRIGHT:
            tile = tile.transpose(_UPRIGHT[self._orientation])
        return np.asarray(tile.convert("RGB"))

    def _undecoded(self) -> Header:
        if self._header is None:
            raise RuntimeError(f"{self.name} was decoded or closed before")
        return self._header

    def close(self) -> None:
        """Lets go of the file. `decode` does it; call it for a picture that is never decoded."""
        if self._header is not None:
            self._header.stream.close()
            self._header = None


def shrinking(size: tuple[int, int], wanted: tuple[int, int], is_jpeg: bool = True) -> tuple[int, int]:
    """How many times smaller a picture of `size` px is decoded, and then made by averaging, so that it still
    has the `wanted` px."""
    shrink = max(1, min(size[0] // max(1, wanted[0]), size[1] // max(1, wanted[1])))
    jpeg_scale = next(s for s in _JPEG_SCALES if s <= shrink) if is_jpeg else 1
    return jpeg_scale, shrink // jpeg_scale


def _from_stream(stream: IO[bytes], name: str, max_bytes: int) -> Picture:
    header = read_header(stream, name, max_bytes)
    position = stream.tell()
    stream.seek(0)
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    stream.seek(position)
    return Picture(header, name, digest.hexdigest(), max_bytes)


def _from_pillow(image: Image.Image, max_bytes: int) -> Picture:
    name = "the Pillow image"
    check_size(name, *image.size)
    _check_bytes(name, Header(image, io.BytesIO(), "", *image.size, 1), 4 * math.prod(image.size), max_bytes)
    with pillow_errors(name, "cannot be decoded"):
        image.load()
    orientation = 1 if isinstance(image, TiffImagePlugin.TiffImageFile) else orientation_of(image)
    digest = hashlib.sha256(
        repr((image.mode, image.size, orientation, image.info.get("transparency"))).encode()
    )
    digest.update(bytes(image.getpalette() or b""))
    for _, band in _cut_bands(image, max(1, BAND_PIXELS // image.width)):
        digest.update(band.tobytes())
    # A copy, because the caller may go on drawing on its own.
    header = Header(image.copy(), io.BytesIO(), "", *image.size, orientation)
    return Picture(header, name, digest.hexdigest(), max_bytes)


def _check_bytes(name: str, header: Header, needed: int, max_bytes: int) -> None:
    if needed > max_bytes:
        kind = f" ({header.format})" if header.format else ""
        raise PictureTooLarge(f"{name} is {header.width} x {header.height} px{kind}", needed, max_bytes)


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


# Decoding: any mode to 8-bit RGB or L, in bands, so that two whole copies are not held.

_GREY_MODES = ("L", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")


def _is_plain(image: Image.Image) -> bool:
    """Whether its pixels can be kept as they are. Those of a WebP keep its decoder alive, which is larger."""
    return image.mode in ("RGB", "L") and "transparency" not in image.info and image.format != "WEBP"


def _settled_mode(image: Image.Image) -> str:
    return "L" if image.mode in _GREY_MODES and "transparency" not in image.info else "RGB"


def _settle(image: Image.Image, reduce: int, name: str, spool: Path | None) -> Pixels:
    """`image` as RGB or L, averaged down by the whole number `reduce`."""
    if _is_plain(image) and reduce == 1 and spool is None:
        return HeldPixels(image)
    mode = _settled_mode(image)
    size = (math.ceil(image.width / reduce), math.ceil(image.height / reduce))
    settled = _settled_bands(image, reduce, mode, name)
    return SpooledPixels(mode, size, settled, spool) if spool else HeldPixels.gather(mode, size, settled)


def _settled_bands(image: Image.Image, reduce: int, mode: str, name: str) -> Bands:
    rows = reduce * max(1, BAND_PIXELS // (image.width * reduce))
    for top, band in _cut_bands(image, rows):
        small = _to_8_bit(band, name)
        if small.mode != mode:
            small = small.convert(mode)
        yield top // reduce, small.reduce(reduce) if reduce > 1 else small


def _cut_bands(image: Image.Image, rows: int) -> Bands:
    """Copies of `rows` rows at a time."""
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
