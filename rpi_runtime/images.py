"""Opens a picture from anywhere, without trusting it and without holding more of it than its tiles need.

1. The header is read: format (a short list), size, orientation. A picture that is too large is refused here.
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
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

# Each import registers one format with Pillow. What is not here is never tried: EPS would start ghostscript.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)

from rpi_runtime.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_FILE_BYTES = 512 << 20
# No header may claim more, whatever its format: 16384 x 16384. Phone cameras take up to 200 megapixels.
MAX_SOURCE_PIXELS = 1 << 28
# Pixels held while decoding, 4 bytes each: 200 MB. Baseline JPEGs count after scaling.
MAX_DECODED_PIXELS = 50_000_000

Source = str | Path | bytes | Image.Image
Box = tuple[float, float, float, float]  # left, upper, right, lower in px of the oriented picture

_JPEG_SCALES = (8, 4, 2, 1)
_BAND_ROWS = 256
_ORIENTATION, _TIFF_WIDTH, _TIFF_HEIGHT = 0x0112, 0x0100, 0x0101
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
_SWAPS_SIDES = (5, 6, 7, 8)


def open_image(source: Source, *, max_pixels: int = MAX_DECODED_PIXELS) -> Picture:
    """Reads the header of `source` (a path, a file's bytes, or a Pillow image) and returns it undecoded.

    `max_pixels` bounds the pixels held while decoding. Raises `ImageError` naming the source for anything
    that is not a picture in one of `FORMATS`, is damaged, or is larger than the limits above.
    """
    if isinstance(source, Image.Image):
        return _from_pillow(source, max_pixels)
    if isinstance(source, bytes):
        return _from_stream(io.BytesIO(source), len(source), "the image given as bytes", max_pixels)
    name = str(source)
    stream, size_bytes = _open_file(name)
    try:
        return _from_stream(stream, size_bytes, name, max_pixels)
    except BaseException:
        stream.close()
        raise


class Picture:
    """One picture. `size` is (width, height) in px, oriented and whole; `digest` is a SHA-256, in hex, of its
    file or, for a Pillow image, of its pixels.
    """

    def __init__(
        self,
        image: Image.Image,
        *,
        name: str,
        digest: str,
        size: tuple[int, int],
        orientation: int,
        max_pixels: int,
        is_jpeg: bool = False,
        buffered_whole: bool = True,
        stream: IO[bytes] | None = None,
    ) -> None:
        self.name = name
        self.size = size
        self.digest = digest
        self._image: Image.Image | None = image  # until decode()
        self._pixels: Image.Image | None = None  # after it: RGB or L, not oriented
        self._orientation = orientation
        self._scale = 1  # stored px per held px
        self._max_pixels = max_pixels
        self._is_jpeg = is_jpeg  # libjpeg can decode it smaller
        self._buffered_whole = buffered_whole  # and yet holds as much as the whole picture while it does
        self._stream = stream

    def decode(self, width: int, height: int) -> None:
        """Decodes at least `width` x `height` px (oriented) of the picture, or all it has; once.

        Raises `ImageError` when the data is damaged or more pixels than allowed would have to be held.
        """
        if self._image is None:
            raise RuntimeError("the picture is decoded already")
        image, self._image = self._image, None
        wanted = _stored_size((width, height), self._orientation)
        stored = _stored_size(self.size, self._orientation)
        shrink = max(1, min(stored[0] // max(1, wanted[0]), stored[1] // max(1, wanted[1])))
        jpeg_scale = next(s for s in _JPEG_SCALES if s <= shrink) if self._is_jpeg else 1
        _check_pixels(self.name, stored, 1 if self._buffered_whole else jpeg_scale, self._max_pixels)
        reduce = shrink // jpeg_scale
        try:
            with _pillow_errors(self.name, "cannot be decoded"):
                if self._is_jpeg:
                    image.draft(None, (stored[0] // jpeg_scale, stored[1] // jpeg_scale))
                image.load()
                if isinstance(image, TiffImagePlugin.TiffImageFile):
                    self._orientation = _orientation(image)  # newer Pillows turn a TIFF while they load it
                self._pixels = _settle(image, reduce, self.name)
        finally:
            self.close()
        self._scale = jpeg_scale * reduce

    @property
    def held_px(self) -> tuple[int, int]:
        """Width and height of what `decode` kept, stored way round; (0, 0) before it."""
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
            _stored_size((width, height), self._orientation), Image.Resampling.BICUBIC, box=inside
        )
        if self._orientation in _UPRIGHT:
            tile = tile.transpose(_UPRIGHT[self._orientation])
        return np.asarray(tile.convert("RGB"))

    def close(self) -> None:
        """Lets go of the file. `decode` does it; call it for a picture that is never decoded."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


# Opening: from a path, bytes or a Pillow image to a Picture with a checked header.


def _open_file(name: str) -> tuple[IO[bytes], int]:
    try:
        status = Path(name).stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name} is a folder, not an image", "Name one image file.")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name} is not a regular file", "Save the image to a file first.")
        return Path(name).open("rb"), status.st_size
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist", "Check the path of the image.") from None
    except PermissionError:
        raise ImageError(
            f"{name} may not be read by this user", f"Give it the right: chmod +r {name}"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL inside the path
        raise ImageError(f"{name!r} cannot be opened: {error}", "Check the path of the image.") from None


def _from_stream(stream: IO[bytes], size_bytes: int, name: str, max_pixels: int) -> Picture:
    if size_bytes == 0:
        raise ImageError(f"{name} is empty", "Copy or save the image again.")
    if size_bytes > MAX_FILE_BYTES:
        raise ImageError(
            f"{name} has {size_bytes / 1e6:,.0f} MB; an image may have {MAX_FILE_BYTES / 1e6:,.0f}",
            "Scale it down or save it as JPEG first.",
        )
    image = _read_header(stream, name)
    is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
    buffered_whole = not is_jpeg or _jpeg_is_buffered_whole(stream)
    stored = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        stored = (int(image.tag_v2[_TIFF_WIDTH]), int(image.tag_v2[_TIFF_HEIGHT]))  # its size may be turned
    _check_pixels(name, stored, 1 if buffered_whole else 8, max_pixels)
    orientation = _orientation(image)
    position = stream.tell()
    stream.seek(0)
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    stream.seek(position)
    return Picture(
        image,
        name=name,
        digest=digest.hexdigest(),
        size=_stored_size(stored, orientation),
        orientation=orientation,
        max_pixels=max_pixels,
        is_jpeg=is_jpeg,
        buffered_whole=buffered_whole,
        stream=stream,
    )


def _from_pillow(image: Image.Image, max_pixels: int) -> Picture:
    name = "the Pillow image"
    _check_pixels(name, image.size, 1, max_pixels)
    with _pillow_errors(name, "cannot be decoded"):
        image.load()
        # A copy of what would be used as it is: the caller may go on drawing on its own.
        image = image.copy()
    orientation = _orientation(image)
    digest = hashlib.sha256(
        repr((image.mode, image.size, orientation, image.info.get("transparency"))).encode()
    )
    digest.update(bytes(image.getpalette() or b""))
    for _, band in _bands(image, _BAND_ROWS):
        digest.update(band.tobytes())
    return Picture(
        image,
        name=name,
        digest=digest.hexdigest(),
        size=_stored_size(image.size, orientation),
        orientation=orientation,
        max_pixels=max_pixels,
    )


def _read_header(stream: IO[bytes], name: str) -> Image.Image:
    """What `Image.open` does for `FORMATS`, without its size check: ours knows what a JPEG is scaled to."""
    prefix = stream.read(16)
    for format_name in FORMATS:
        factory, accept = Image.OPEN[format_name]
        if accept is not None and accept(prefix) is True:
            stream.seek(0)
            with _pillow_errors(name, f"begins like a {format_name} file but is damaged"):
                image: Image.Image = factory(stream, "")
                return image
    raise ImageError(
        f"{name} is not an image that can be read{_known_kind(prefix)}",
        f"Save it as JPEG or PNG. Read are: {', '.join(FORMATS)}.",
    )


def _known_kind(prefix: bytes) -> str:
    kinds = (
        (prefix[4:8] == b"ftyp", "HEIC, AVIF or a video"),
        (prefix.startswith(b"%PDF"), "a PDF"),
        (prefix.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6")), "PostScript"),
        (prefix.lstrip().startswith((b"<svg", b"<?xml")), "SVG or XML"),
        (
            prefix[4:8] in (b"jP  ", b"JXL ") or prefix.startswith((b"\xff\x0a", b"\xffO\xffQ")),
            "JPEG 2000 or JPEG XL",
        ),
        (prefix.startswith(b"8BPS"), "a Photoshop file"),
    )
    return next((f": it is {kind}" for matches, kind in kinds if matches), "")


def _check_pixels(name: str, size: tuple[int, int], jpeg_scale: int, max_pixels: int) -> None:
    width, height = size
    held = math.ceil(width / jpeg_scale) * math.ceil(height / jpeg_scale)
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height} px", "Save the image again.")
    if width * height > MAX_SOURCE_PIXELS or held > max_pixels:
        limit = f"at most {MAX_SOURCE_PIXELS / 1e6:,.0f} megapixels are opened"
        if width * height <= MAX_SOURCE_PIXELS:
            limit = f"{held / 1e6:,.1f} would have to be held in memory, at most {max_pixels / 1e6:,.1f} may"
        raise ImageError(
            f"{name} is {width} x {height} px, {width * height / 1e6:,.1f} megapixels: {limit}",
            "Scale it down first. Baseline JPEGs may be larger than other images.",
        )


def _jpeg_is_buffered_whole(stream: IO[bytes]) -> bool:
    """Whether libjpeg holds all coefficients at any scale: progressive, or one scan per component."""
    position = stream.tell()
    try:
        stream.seek(2)
        components = 0
        while stream.read(1) == b"\xff":
            while (kind := stream.read(1)) == b"\xff":  # fill bytes
                pass
            length = int.from_bytes(stream.read(2), "big")
            body = stream.read(max(0, length - 2))
            if kind == b"\xda":
                return components == 0 or body[:1] != bytes([components])
            if kind in (b"\xc0", b"\xc1") and len(body) > 5:
                components = body[5]
        return True
    finally:
        stream.seek(position)


# Turning: stored pixels and the oriented picture.


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where the EXIF block is broken, which is no reason to refuse the pixels."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in _UPRIGHT else 1


def _stored_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Oriented size -> stored size, and back: both are the same swap."""
    return (size[1], size[0]) if orientation in _SWAPS_SIDES else size


def _stored_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """The box of stored pixels that shows as `box` in the oriented picture of `size`."""
    left, upper, right, lower = box
    width, height = size
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        upper, lower = height - lower, height - upper
    return (upper, left, lower, right) if orientation in _SWAPS_SIDES else (left, upper, right, lower)


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


@contextmanager
def _pillow_errors(name: str, what: str) -> Iterator[None]:
    """Turns whatever Pillow raises into `ImageError`: for a hostile file that is nearly any exception."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        detail = str(error) or type(error).__name__
        raise ImageError(
            f"{name} {what}: {detail}", "Copy or save the image again; it may be cut off."
        ) from error
