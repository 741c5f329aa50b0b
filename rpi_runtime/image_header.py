"""The header of an image file, read without trusting it: format, size, orientation, what its decoder holds.

Only the formats imported below are ever tried: Pillow knows many more, among them EPS, which starts
ghostscript. Nothing is decoded here, and a picture that is too large is refused here.
"""

from __future__ import annotations

import io
import math
import stat
import warnings
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
    WebPImagePlugin,
)

from rpi_runtime.errors import EdgeError, ImageError, ResourceError
from rpi_runtime.pixels import settling_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_FILE_BYTES = 512 << 20
# No header may claim more, whatever its format: 16384 x 16384. Phone cameras take up to 200 megapixels.
MAX_SOURCE_PIXELS = 1 << 28

_ORIENTATION, _TIFF_WIDTH, _TIFF_HEIGHT = 0x0112, 0x0100, 0x0101


class PictureTooLarge(ImageError):
    """Decoding would hold `needed` bytes, which are too many. `what` is the picture with its size."""

    def __init__(self, what: str, needed: int, allowed: int) -> None:
        super().__init__(
            f"{what}: decoding it takes {math.ceil(needed / 1e6):,} MB, and at most {allowed // 10**6:,} MB "
            "may be held",
            SCALE_DOWN,
        )
        self.what = what
        self.needed = needed


SCALE_DOWN = "Scale it down first, or save it as baseline JPEG, which is decoded smaller."


@dataclass(frozen=True)
class Header:
    """An image file that was opened and not decoded. `width` and `height` are px as stored, not oriented."""

    image: Image.Image
    stream: IO[bytes]
    format: str  # one of FORMATS, or "" of a Pillow image
    width: int
    height: int
    orientation: int  # EXIF, 1 to 8
    decoder_bytes: int = 0  # that the decoder holds beside the decoded pixels, at any scale

    @property
    def is_jpeg(self) -> bool:
        """Whether libjpeg can decode it smaller."""
        return self.format == "JPEG"

    def scaled_px(self, jpeg_scale: int) -> tuple[int, int]:
        return math.ceil(self.width / jpeg_scale), math.ceil(self.height / jpeg_scale)

    def decoded_bytes(self, jpeg_scale: int = 1) -> int:
        """What the picture takes when it is decoded at 1/`jpeg_scale`, with its decoder."""
        return self.decoder_bytes + math.prod(self.scaled_px(jpeg_scale)) * pixel_bytes(self.image.mode)


def pixel_bytes(mode: str) -> int:
    """Bytes of one pixel as Pillow keeps it."""
    if mode in ("1", "L", "P"):
        return 1
    return 2 if mode.startswith("I;16") else 4


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


def read_header(stream: IO[bytes], name: str, max_bytes: int) -> Header:
    """Reads the header of the image in `stream`; `name` is what errors call it. Raises `ImageError`, also
    when reading it would hold more than `max_bytes`."""
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
    if format_name == "WEBP":
        _check_webp(stream, name, size_bytes, max_bytes)
    elif format_name == "TIFF" and _begins(stream, 4) == b"MM\0\x2b":
        raise ImageError(
            f"{name} is a big-endian BigTIFF, which is not read", "Save it as PNG or plain TIFF."
        )
    with pillow_errors(name, f"begins like a {format_name} file but is damaged"):
        image = Image.OPEN[format_name][0](stream, "")
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose size may be turned already
            width, height = int(image.tag_v2[_TIFF_WIDTH]), int(image.tag_v2[_TIFF_HEIGHT])
        is_png = isinstance(image, PngImagePlugin.PngImageFile)
        if is_png and not {"exif", "Raw profile type exif"} & set(image.info):
            # Pillow would decode the whole picture to see whether an EXIF chunk follows its data.
            image.info["exif"] = _late_png_exif(stream)
        check_size(name, width, height)
        decoder = _decoder_bytes(image, stream, size_bytes)
    return Header(image, stream, format_name, width, height, orientation_of(image), decoder)


def _check_webp(stream: IO[bytes], name: str, file_bytes: int, max_bytes: int) -> None:
    """Raises `PictureTooLarge` before libwebp has the file, and twice."""
    head = _begins(stream, 30)
    width, height = _webp_size(head) if len(head) == 30 else (0, 0)
    pixels = width * height
    needed = _WEBP_FILES * file_bytes + (_WEBP_CANVASES + pixel_bytes("RGBA")) * pixels
    if pixels <= MAX_SOURCE_PIXELS and needed > max_bytes:
        needed += settling_bytes((width, height), 1, "RGB", spooled=True)
        raise PictureTooLarge(f"{name} is {width} x {height} px (WEBP)", needed, max_bytes)


def _webp_size(head: bytes) -> tuple[int, int]:
    """Width and height in px, from the first 30 bytes. Source: RFC 9649, sections 2.5 to 2.7."""
    kind, body = head[12:16], head[20:30]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 where the EXIF block is broken, which is no reason to refuse the pixels."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def check_size(name: str, width: int, height: int) -> None:
    """Raises `ImageError` for a picture with no pixels, or with more than are ever opened."""
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height} px", "Save the image again.")
    if width * height > MAX_SOURCE_PIXELS:
        raise ImageError(
            f"{name} is {width} x {height} px, {width * height / 1e6:,.1f} megapixels: at most "
            f"{MAX_SOURCE_PIXELS / 1e6:,.0f} are opened",
            "Scale it down first.",
        )


@contextmanager
def pillow_errors(name: str, what: str) -> Iterator[None]:
    """Turns whatever Pillow raises into `ImageError`: for a hostile file that is nearly any exception. But
    for memory that ran out: `ResourceError`."""
    try:
        with warnings.catch_warnings():  # its bound of pixels is not ours
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    except EdgeError:
        raise
    except MemoryError as error:
        raise ResourceError(
            f"memory ran out while {name} was read",
            "Give this process more memory, or scale the picture down.",
        ) from error
    except Exception as error:
        detail = str(error) or type(error).__name__
        raise ImageError(
            f"{name} {what}: {detail}", "Copy or save the image again; it may be cut off."
        ) from error


def _format_of(stream: IO[bytes], name: str) -> str:
    prefix = _begins(stream, 16)
    for format_name in FORMATS:
        accept = Image.OPEN[format_name][1]
        if accept is not None and accept(prefix) is True:  # a text where Pillow was built without the format
            return format_name
    raise ImageError(
        f"{name} is not an image that can be read{_known_kind(prefix)}",
        f"Save it as JPEG or PNG. Read are: {', '.join(FORMATS)}.",
    )


def _begins(stream: IO[bytes], count: int) -> bytes:
    stream.seek(0)
    head = stream.read(count)
    stream.seek(0)
    return head


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


# What decoders hold beside the pixels, as measured (tests/runtime/test_decoding_memory.py).


# Pillow reads the file, and libwebp copies it.
_WEBP_FILES = 2
# Two canvases of the animation, which any WebP is decoded as, and the pixels as bytes; 4 bytes each.
_WEBP_CANVASES = 12
# A decoder that is written in Python makes a bytearray, and bytes of it, of all pixels.
_PYTHON_COPIES = 2
_BITS, _COMPRESSION, _PHOTOMETRIC, _STRIP_ROWS, _PLANES = 258, 259, 262, 278, 284
_CELL_WIDTH, _CELL_HEIGHT = 322, 323
_UNCOMPRESSED, _YCBCR, _APART = 1, 6, 2
_TIFF_TABLES = 2 << 20


def _decoder_bytes(image: Image.Image, stream: IO[bytes], file_bytes: int) -> int:
    pixels = image.size[0] * image.size[1]
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        return _coefficient_bytes(stream)
    if isinstance(image, WebPImagePlugin.WebPImageFile):
        return _WEBP_FILES * file_bytes + _WEBP_CANVASES * pixels
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff_decoder_bytes(image, file_bytes)
    decoders = {tile[0] for tile in getattr(image, "tile", ())}
    if decoders & {"bmp_rle", "ppm", "ppm_plain"}:
        return _PYTHON_COPIES * pixels * pixel_bytes(image.mode)
    return 0


def _tiff_decoder_bytes(image: TiffImagePlugin.TiffImageFile, file_bytes: int) -> int:
    """Where libtiff decodes: the file, which it maps, one strip or cell of it, and tables. Otherwise Pillow
    reads a strip of each plane, where they lie apart, and joins its pieces. It turns the picture at the end,
    into a copy, when the file is no longer mapped."""
    tags = image.tag_v2
    width, height = int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT])
    across = int(tags.get(_CELL_WIDTH, width))
    down = int(tags.get(_CELL_HEIGHT, tags.get(_STRIP_ROWS, height)))
    cell = min(across, width) * min(down, height)
    bits = tags.get(_BITS, (1,))
    turned = width * height * pixel_bytes(image.mode) if orientation_of(image) != 1 else 0
    if tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED:
        return max(2 * cell * bits[0] // 8 if tags.get(_PLANES) == _APART else 0, turned)
    pixel_bits = 32 if tags.get(_PHOTOMETRIC) == _YCBCR else sum(bits)
    return cell * pixel_bits // 8 + max(file_bytes, turned) + _TIFF_TABLES


def _coefficient_bytes(stream: IO[bytes]) -> int:
    """All coefficients of a JPEG, two bytes each, if libjpeg holds them at any scale: it is progressive, or
    has one scan per component. 0 for others."""
    with _kept_position(stream):
        stream.seek(2)
        components, samples, progressive = 0, 0.0, False
        while stream.read(1) == b"\xff":
            while (kind := stream.read(1)) == b"\xff":  # fill bytes
                pass
            body = stream.read(max(0, int.from_bytes(stream.read(2), "big") - 2))
            if kind == b"\xda":
                whole = progressive or components == 0 or body[:1] != bytes([components])
                return int(2 * samples) if whole else 0
            if kind in _JPEG_FRAMES and len(body) > 5:
                progressive, components = kind not in (b"\xc0", b"\xc1"), body[5]
                height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
                across, down = [at >> 4 for at in body[7::3]], [at & 15 for at in body[7::3]]
                shares = sum(x * y for x, y in zip(across, down, strict=True))
                samples = width * height * shares / max(1, max(across, default=1) * max(down, default=1))
        return int(2 * samples)


_JPEG_FRAMES = [bytes([0xC0 + i]) for i in range(16) if i not in (4, 8, 12)]


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
