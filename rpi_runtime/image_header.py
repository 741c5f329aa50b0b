"""The header of an image file, read without trusting it: format, size, orientation, what decoding will hold.

Only the formats imported below are ever tried: Pillow knows many more, among them EPS, which starts
ghostscript. Nothing is decoded here, and a picture that is too large is refused here.
"""

from __future__ import annotations

import io
import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import (  # each import registers its format with Pillow
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,
    WebPImagePlugin,  # noqa: F401
)

from rpi_runtime.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_FILE_BYTES = 512 << 20
# No header may claim more, whatever its format: 16384 x 16384. Phone cameras take up to 200 megapixels.
MAX_SOURCE_PIXELS = 1 << 28

_ORIENTATION, _TIFF_WIDTH, _TIFF_HEIGHT = 0x0112, 0x0100, 0x0101


@dataclass(frozen=True)
class Header:
    """An image file that was opened and not decoded. `width` and `height` are px as stored, not oriented."""

    image: Image.Image
    stream: IO[bytes]
    width: int
    height: int
    orientation: int  # EXIF, 1 to 8
    is_jpeg: bool  # libjpeg can decode it smaller
    buffered_whole: bool  # and still holds as much as the whole picture while it does

    def check_pixels(self, name: str, jpeg_scale: int, max_pixels: int) -> None:
        """Raises `ImageError` when decoding at 1/`jpeg_scale` would hold more than `max_pixels`."""
        check_pixels(name, self.width, self.height, 1 if self.buffered_whole else jpeg_scale, max_pixels)


def open_file(name: str) -> IO[bytes]:
    """Opens the file at path `name` for reading; raises `ImageError` unless it is a regular file."""
    try:
        status = Path(name).stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name} is a folder, not an image", "Name one image file.")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name} is not a regular file", "Save the image to a file first.")
        return Path(name).open("rb")
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist", "Check the path of the image.") from None
    except PermissionError:
        raise ImageError(f"{name} may not be read by this user", f"Allow it: chmod +r {name}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL inside the path
        raise ImageError(f"{name!r} cannot be opened: {error}", "Check the path of the image.") from None


def read_header(stream: IO[bytes], name: str) -> Header:
    """Reads the header of the image in `stream`; `name` is what errors call it. Raises `ImageError`."""
    size_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if size_bytes == 0:
        raise ImageError(f"{name} is empty", "Copy or save the image again.")
    if size_bytes > MAX_FILE_BYTES:
        raise ImageError(
            f"{name} has {size_bytes / 1e6:,.0f} MB; an image may have {MAX_FILE_BYTES / 1e6:,.0f}",
            "Scale it down or save it as JPEG first.",
        )
    format_name = _format_of(stream, name)
    with pillow_errors(name, f"begins like a {format_name} file but is damaged"):
        image = Image.OPEN[format_name][0](stream, "")
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose size may be turned already
            width, height = int(image.tag_v2[_TIFF_WIDTH]), int(image.tag_v2[_TIFF_HEIGHT])
        is_png = isinstance(image, PngImagePlugin.PngImageFile)
        if is_png and not {"exif", "Raw profile type exif"} & set(image.info):
            # Pillow would decode the whole picture to see whether an EXIF chunk follows its data.
            image.info["exif"] = _late_png_exif(stream)
        is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
        buffered_whole = not is_jpeg or _jpeg_is_buffered_whole(stream)
    return Header(image, stream, width, height, orientation_of(image), is_jpeg, buffered_whole)


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where the EXIF block is broken, which is no reason to refuse the pixels."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def check_pixels(name: str, width: int, height: int, jpeg_scale: int, max_pixels: int) -> None:
    """Raises `ImageError` for a picture with no pixels, or with more than may be held at 1/`jpeg_scale`."""
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


@contextmanager
def pillow_errors(name: str, what: str) -> Iterator[None]:
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


def _format_of(stream: IO[bytes], name: str) -> str:
    prefix = stream.read(16)
    stream.seek(0)
    for format_name in FORMATS:
        accept = Image.OPEN[format_name][1]
        if accept is not None and accept(prefix) is True:  # a text where Pillow was built without the format
            return format_name
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
            "JPEG 2000 or XL",
        ),
        (prefix.startswith(b"8BPS"), "a Photoshop file"),
    )
    return next((f": it is {kind}" for matches, kind in kinds if matches), "")


def _jpeg_is_buffered_whole(stream: IO[bytes]) -> bool:
    """Whether libjpeg holds all coefficients at any scale: progressive, or one scan per component."""
    with _kept_position(stream):
        stream.seek(2)
        components = 0
        while stream.read(1) == b"\xff":
            while (kind := stream.read(1)) == b"\xff":  # fill bytes
                pass
            body = stream.read(max(0, int.from_bytes(stream.read(2), "big") - 2))
            if kind == b"\xda":
                return components == 0 or body[:1] != bytes([components])
            if kind in (b"\xc0", b"\xc1") and len(body) > 5:
                components = body[5]
        return True


def _late_png_exif(stream: IO[bytes]) -> bytes:
    """The content of an eXIf chunk anywhere in a PNG file, or nothing."""
    with _kept_position(stream):
        stream.seek(8)
        while len(head := stream.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf":
                return b"Exif\0\0" + stream.read(min(length, 1 << 20))
            stream.seek(length + 4, io.SEEK_CUR)
        return b""


@contextmanager
def _kept_position(stream: IO[bytes]) -> Iterator[None]:
    position = stream.tell()
    try:
        yield
    finally:
        stream.seek(position)
