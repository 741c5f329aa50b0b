"""Opening pictures of every kind. Pillow, asked for the whole picture at once, is the oracle."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from skimage import data

from rpi_runtime.errors import ImageError
from rpi_runtime.image_header import PictureTooLarge
from rpi_runtime.images import open_image
from rpi_runtime.kernel import memory

ROOT = Path(__file__).resolve().parents[2]
ORIENTATION = 0x0112


def photo(width: int = 96, height: int = 64) -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, format_name: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_name, **options)
    return stream.getvalue()


def whole(source: bytes | Image.Image) -> np.ndarray:
    """The picture at its own size, as we read it."""
    picture = open_image(source)
    return picture.crop((0, 0, *picture.size), *picture.size)


def difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# Orientation


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_shown_upright(format_name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    source = saved(photo(), format_name, exif=exif)
    upright = Image.open(io.BytesIO(source)).convert("RGB")  # which turns a TIFF, and no other format
    if format_name != "TIFF":
        upright = ImageOps.exif_transpose(upright)
    picture = open_image(source)
    assert picture.size == upright.size
    assert difference(whole(source), np.asarray(upright)) == 0


@settings(max_examples=60, deadline=None)
@given(orientation=st.integers(1, 8), numbers=st.tuples(*[st.floats(0, 1)] * 4), side=st.integers(1, 50))
def test_a_box_is_a_box_of_the_upright_picture(
    orientation: int, numbers: tuple[float, ...], side: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    # Smooth, because turned pixels are resampled down before across, and Pillow rounds and clips in between.
    source = saved(photo(5, 7).resize((50, 70), Image.Resampling.BILINEAR), "PNG", exif=exif)
    with Image.open(io.BytesIO(source)) as stored:
        upright = ImageOps.exif_transpose(stored)
    left, right = sorted(v * (upright.width - 1) for v in numbers[:2])
    upper, lower = sorted(v * (upright.height - 1) for v in numbers[2:])
    box = (left, upper, right + 1, lower + 1)
    expected = upright.resize((side, side), Image.Resampling.BICUBIC, box=box)
    assert difference(open_image(source).crop(box, side, side), np.asarray(expected)) <= 2


def test_orientation_behind_the_data_of_a_png_is_found_without_decoding() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    plain = saved(photo(), "PNG")
    chunk = b"eXIf" + exif.tobytes()[6:]
    late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    assert open_image(plain[:-12] + late + plain[-12:]).size == (64, 96)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert open_image(saved(photo(), "JPEG", exif=exif)).size == (96, 64)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_is_ignored() -> None:
    source = saved(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffnonsense")
    assert difference(whole(source), np.asarray(Image.open(io.BytesIO(source)))) == 0


# Modes


def translucent() -> Image.Image:
    image = photo(40, 30).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def on_white(image: Image.Image) -> np.ndarray:
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def palette_with_transparency() -> Image.Image:
    image = photo(40, 30).quantize(16)
    image.info["transparency"] = 3
    return image


TRANSPARENT = {
    "PNG RGBA": lambda: saved(translucent(), "PNG"),
    "PNG LA": lambda: saved(translucent().convert("LA"), "PNG"),
    "PNG palette, one colour clear": lambda: saved(palette_with_transparency(), "PNG", transparency=3),
    "PNG palette, alpha per colour": lambda: saved(
        photo(40, 30).quantize(16), "PNG", transparency=bytes(range(0, 256, 16))
    ),
    "PNG RGB, one colour clear": lambda: saved(
        Image.new("RGB", (9, 9), (1, 2, 3)), "PNG", transparency=(1, 2, 3)
    ),
    "PNG grey, one level clear": lambda: saved(Image.new("L", (9, 9), 77), "PNG", transparency=77),
    "GIF": lambda: saved(palette_with_transparency(), "GIF", transparency=3),
    "WEBP": lambda: saved(translucent(), "WEBP", lossless=True, exact=True),
    "TIFF": lambda: saved(translucent(), "TIFF"),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_is_laid_on_white(kind: str) -> None:
    source = TRANSPARENT[kind]()
    expected = on_white(Image.open(io.BytesIO(source)))
    assert expected.max() >= 250
    assert difference(whole(source), expected) <= 1


@pytest.mark.parametrize("source_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_by_its_range(source_format: str) -> None:
    levels = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    image = Image.frombytes("I;16", (64, 64), levels.astype("<u2").tobytes())
    if source_format == "PPM":
        source = b"P5 64 64 65535\n" + levels.astype(">u2").tobytes()
    else:
        source = saved(image, source_format)
    expected = np.rint(levels / 257).astype(np.uint8)[..., None].repeat(3, axis=2)
    assert difference(whole(source), expected) == 0


def test_big_endian_16_bit_samples_of_a_pillow_image_are_understood() -> None:
    image = Image.frombytes("I;16B", (2, 1), b"\x01\x01\xff\xff")
    assert whole(image)[0, :, 0].tolist() == [1, 255]


def test_samples_without_a_known_range_are_refused() -> None:
    for image, values in (
        (Image.new("I", (4, 4), 70000), "70000"),
        (Image.new("F", (4, 4), 0.5), "floating"),
    ):
        with pytest.raises(ImageError, match=values):
            whole(saved(image, "TIFF"))


MODES = {
    "JPEG grey": lambda: saved(photo().convert("L"), "JPEG"),
    "JPEG CMYK": lambda: saved(photo().convert("CMYK"), "JPEG"),
    "TIFF CMYK": lambda: saved(photo().convert("CMYK"), "TIFF"),
    "TIFF LAB": lambda: saved(Image.new("LAB", (8, 8), (150, 20, 30)), "TIFF"),
    "PNG palette": lambda: saved(photo().quantize(32), "PNG"),
    "PNG 1-bit": lambda: saved(photo().convert("1"), "PNG"),
    "PNG 16-bit RGB": lambda: png_16_bit_rgb(),
    "BMP": lambda: saved(photo(), "BMP"),
    "GIF": lambda: saved(photo(), "GIF"),
    "PPM": lambda: saved(photo(), "PPM"),
    "WEBP": lambda: saved(photo(), "WEBP"),
    "JPEG progressive": lambda: saved(photo(), "JPEG", progressive=True),
}


def png_16_bit_rgb() -> bytes:
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(8, 8, bits=16, colour=2, content=zlib.compress(rows))


@pytest.mark.parametrize("kind", MODES)
def test_other_modes_are_what_pillow_makes_of_them(kind: str) -> None:
    source = MODES[kind]()
    assert difference(whole(source), np.asarray(Image.open(io.BytesIO(source)).convert("RGB"))) == 0


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(format_name: str) -> None:
    red, blue = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")
    source = saved(red, format_name, save_all=True, append_images=[blue, blue])
    assert difference(whole(source), np.asarray(red)) <= 2


# Sources


def test_path_and_bytes_give_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(saved(photo(), "JPEG"))
    by_path, by_text, by_bytes = open_image(path), open_image(str(path)), open_image(path.read_bytes())
    assert (
        by_path.digest == by_text.digest == by_bytes.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    )
    assert difference(by_path.crop((3, 5, 60, 50), 20, 20), by_bytes.crop((3, 5, 60, 50), 20, 20)) == 0


def test_a_pillow_image_is_known_by_its_pixels() -> None:
    image, other = photo(), photo()
    assert open_image(image).digest == open_image(other).digest
    other.putpixel((50, 60), (0, 0, 0))
    assert open_image(image).digest != open_image(other).digest
    assert open_image(Image.new("L", (4, 2))).digest != open_image(Image.new("L", (2, 4))).digest


def test_drawing_on_a_pillow_image_does_not_change_the_picture() -> None:
    image = Image.new("RGB", (4, 4), "red")
    picture = open_image(image)
    image.paste((0, 0, 0), (0, 0, 4, 4))
    assert picture.crop((0, 0, 4, 4), 1, 1).tolist() == [[[255, 0, 0]]]


# No more pixels than needed


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    ("wanted", "held"),
    [
        ((1600, 1200), (1600, 1200)),
        ((801, 600), (1600, 1200)),
        ((800, 600), (800, 600)),
        ((700, 550), (800, 600)),
        ((201, 120), (400, 300)),
        ((200, 150), (200, 150)),
        ((100, 75), (100, 75)),
        ((40, 30), (40, 30)),  # beyond JPEG's own scales
    ],
)
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_suffices(
    progressive: bool, wanted: tuple[int, int], held: tuple[int, int]
) -> None:
    picture = open_image(saved(photo(1600, 1200), "JPEG", quality=95, progressive=progressive))
    picture.decode(*wanted)
    assert picture.held_px == held


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "TIFF", "BMP"])
@pytest.mark.parametrize("shrink", [1.0, 1.6, 3.3, 7.9, 9.5])
def test_a_picture_decoded_smaller_looks_the_same_as_resized_from_all_its_pixels(
    format_name: str, shrink: float
) -> None:
    image = photo(1001, 747)
    source = saved(image, format_name, **({"quality": 95} if format_name == "JPEG" else {}))
    width, height = int(1001 / shrink), int(747 / shrink)
    picture = open_image(source)
    picture.decode(width, height)
    assert picture.held_px[0] >= width
    assert picture.held_px[1] >= height
    expected = Image.open(io.BytesIO(source)).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    error = np.abs(picture.crop((0, 0, 1001, 747), width, height).astype(float) - np.asarray(expected))
    assert error.mean() < 3
    # A shift by half a pixel, or the wrong box, would show in the same measure:
    shifted = np.abs(np.roll(np.asarray(expected).astype(float), 1, axis=1) - np.asarray(expected)).mean()
    assert error.mean() < shifted / 3


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "I;16"])
def test_reducing_in_bands_leaves_no_seams(mode: str) -> None:
    gradient = Image.linear_gradient("L").resize((300, 2000))
    image = (
        gradient.convert(mode)
        if mode != "I;16"
        else Image.fromarray(np.asarray(gradient).astype(np.uint16) * 257)
    )
    picture = open_image(saved(image, "TIFF"))
    picture.decode(40, 300)
    column = picture.crop((0, 0, 300, 2000), 1, 300)[:, 0, 0].astype(int)
    expected = np.asarray(gradient.convert("RGB").resize((1, 300), Image.Resampling.BICUBIC))[:, 0, 0].astype(
        int
    )
    if mode == "CMYK":
        expected = np.asarray(gradient.convert(mode).convert("RGB").resize((1, 300)))[:, 0, 0].astype(int)
    assert np.abs(column - expected).max() <= 1


PEAK = """
import sys
from rpi_runtime.images import open_image
picture = open_image(sys.argv[1])
picture.decode(1792, 1344)
picture.crop((0, 0, *picture.size), 448, 448)
# Not ru_maxrss: that begins with the parent's.
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_a_jpeg_of_48_megapixels_needs_hardly_more_memory_than_one_of_3(tmp_path: Path) -> None:
    peaks = []
    for side, name in ((1, "small"), (4, "large")):
        path = tmp_path / f"{name}.jpg"
        photo(2000 * side, 1500 * side).save(path, quality=90)
        run = subprocess.run(
            [sys.executable, "-c", PEAK, str(path)], cwd=ROOT, capture_output=True, check=True
        )
        peaks.append(int(run.stdout))
    assert peaks[1] - peaks[0] < 32, "decoding it whole would take 192 MB"


def test_closing_lets_go_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photo().save(path)
    open_files = Path("/proc/self/fd")
    before = len(list(open_files.iterdir()))
    for picture in [open_image(path) for _ in range(3)]:
        picture.close()
    decoded = open_image(path)
    decoded.decode(10, 10)
    assert len(list(open_files.iterdir())) == before


# Bad input: each is one ImageError that names the source and a remedy


def png(width: int, height: int, bits: int = 8, colour: int = 2, content: bytes = b"") -> bytes:
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)),
        (b"IDAT", content),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def jpeg_claiming(width: int, height: int) -> bytes:
    source = bytearray(saved(photo(), "JPEG"))
    frame = source.index(b"\xff\xc0")
    source[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(source)


def tiff_claiming(width: int, height: int) -> bytes:
    source = bytearray(saved(photo(), "TIFF"))
    for at in range(len(source) - 12):
        tag, kind = struct.unpack_from("<HH", source, at)
        if tag in (256, 257) and kind in (3, 4) and struct.unpack_from("<I", source, at + 4)[0] == 1:
            struct.pack_into("<HHII", source, at, tag, 4, 1, width if tag == 256 else height)
    return bytes(source)


BOMBS = {
    "PNG": png(60000, 60000, content=zlib.compress(bytes(1 << 16))),
    "JPEG": jpeg_claiming(60000, 60000),
    "GIF": b"GIF89a"
    + struct.pack("<HHBBB", 60000, 60000, 0, 0, 0)
    + b",\0\0\0\0\x60\xea\x60\xea\0\x02\x02\x4c\x01\0;",
    "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
    "PPM": b"P6 60000 60000 255\n",
    "TIFF": tiff_claiming(60000, 60000),
}


def test_no_header_may_claim_more_than_a_bound_however_small_it_would_be_decoded() -> None:
    with pytest.raises(ImageError, match="20000 x 20000 px"):  # 6.25 megapixels at 1/8
        open_image(jpeg_claiming(20000, 20000))


@pytest.mark.parametrize("format_name", BOMBS)
def test_a_decompression_bomb_is_refused_by_its_header(format_name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"60000 x 60000 px, 3,600\.0 megapixels") as refusal:
            open_image(BOMBS[format_name])
    assert "Scale it down" in refusal.value.remedy


def test_a_pillow_image_has_the_same_bound() -> None:
    with pytest.raises(ImageError, match="40 x 30 px"):
        open_image(Image.new("L", (40, 30)), max_bytes=1000)


def test_what_counts_is_what_decoding_holds() -> None:
    baseline, progressive = (saved(photo(800, 600), "JPEG", progressive=p) for p in (False, True))
    picture = open_image(baseline, max_bytes=40_000)
    picture.decode(100, 75)  # 1/8
    assert picture.held_px == (100, 75)
    with pytest.raises(PictureTooLarge, match=r"800 x 600 px \(JPEG\): decoding it takes 1 MB") as refusal:
        open_image(baseline, max_bytes=40_000).decode(200, 150)
    assert refusal.value.needed == 4 * 200 * 150
    with pytest.raises(PictureTooLarge, match="800 x 600 px"):
        open_image(progressive, max_bytes=40_000).decode(100, 75)


def test_a_picture_that_is_refused_was_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (6000, 6000)).save(path)
    picture = open_image(path, max_bytes=100_000_000)
    before = memory().resident_bytes
    with pytest.raises(PictureTooLarge, match="takes 144 MB, and at most 100 MB may be held"):
        picture.decode(6000, 6000)
    assert memory().resident_bytes - before < 10 << 20


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_is_refused_by_its_first_bytes_before_its_decoder_has_the_file(
    mode: str, lossless: bool
) -> None:
    image = photo(300, 200).convert(mode)
    if mode == "RGBA":
        image.putalpha(100)
    source = saved(image, "WEBP", lossless=lossless)
    with pytest.raises(PictureTooLarge, match=r"300 x 200 px \(WEBP\)") as refusal:
        open_image(source, max_bytes=len(source))
    picture = open_image(source)
    assert refusal.value.needed == picture.decoding_bytes(*picture.size, spooled=True)


def test_a_big_endian_bigtiff_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "big.tif"
    tifffile.imwrite(path, np.zeros((8, 8, 3), np.uint8), bigtiff=True, byteorder=">")
    with pytest.raises(ImageError, match="big-endian BigTIFF"):
        open_image(path)
    tifffile.imwrite(path, np.full((8, 8, 3), 7, np.uint8), bigtiff=True, byteorder="<")
    assert open_image(path).crop((0, 0, 8, 8), 1, 1).max() == 7


def test_pillows_own_bound_of_pixels_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    Image.new("1", (10_000, 9_500)).save(path, compression="group4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_image(path).decode(100, 100)


def test_a_photo_of_200_megapixels_opens_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(jpeg_claiming(16320, 12240)).size == (16320, 12240)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jpg", b"", "empty"),
        ("notes.txt", b"Just some text, longer than any magic number.", "not an image"),
        ("page.pdf", b"%PDF-1.7 and so on", "a PDF"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        ("figure.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        ("phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1", "HEIC"),
        ("cut.png", b"\x89PNG\r\n\x1a\n", "PNG file but is damaged"),
        ("cut.jpg", b"\xff\xd8\xff\xe0\x00", "JPEG file but is damaged"),
        ("none.png", png(0, 5), "cut|0 x 5|damaged"),
    ],
)
def test_what_is_no_picture_is_named_with_a_remedy(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as refusal:
        open_image(path)
    assert str(path) in refusal.value.message
    assert refusal.value.remedy


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_a_cut_file_is_an_error_wherever_it_was_cut(format_name: str, tmp_path: Path) -> None:
    source = saved(photo(), format_name)
    path = tmp_path / "cut"
    for share in (0.02, 0.3, 0.6, 0.95):
        path.write_bytes(source[: int(len(source) * share)])
        with pytest.raises(ImageError, match=str(path)):
            open_image(path).crop((0, 0, 96, 64), 8, 8)


def test_paths_that_are_no_readable_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "absent.jpg": "does not exist", ".": "is a folder", "pipe": "not a regular file",
        "nul\0byte": "cannot be opened", "x" * 300: "cannot be opened",
    }  # fmt: skip
    for name, message in cases.items():
        with pytest.raises(ImageError, match=message):
            open_image(tmp_path / name)


@pytest.fixture
def without_root() -> Iterator[None]:
    """Root may read everything; become nobody for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_a_file_that_may_not_be_read(tmp_path: Path, without_root: None) -> None:
    path = Path("/proc/1/mem")
    with pytest.raises(ImageError, match="may not be read"):
        open_image(path)


def test_a_file_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    with path.open("wb") as file:
        file.truncate(1 << 30)  # sparse
    with pytest.raises(ImageError, match="1,074 MB"):
        open_image(path)


SMALL = {name: saved(photo(16, 12), name) for name in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")}


@settings(max_examples=400, deadline=None)
@given(
    format_name=st.sampled_from(sorted(SMALL)),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_changed_bytes_end_in_a_picture_or_an_image_error(
    format_name: str, changes: list[tuple[int, int]]
) -> None:
    source = bytearray(SMALL[format_name])
    for at, value in changes:
        source[at % len(source)] = value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = open_image(bytes(source), max_bytes=16_000_000)
            tile = picture.crop((0, 0, *picture.size), 8, 8)
    except ImageError:
        return
    assert tile.shape == (8, 8, 3)
