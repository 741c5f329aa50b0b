"""Tiles resampled by bands. Pillow's passes over the whole picture are the oracle."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from rpi_runtime import kernel, pixels
from rpi_runtime.errors import ResourceError
from rpi_runtime.images import open_image
from rpi_runtime.pixels import Box, HeldPixels, Pixels, SpooledPixels, resample

BICUBIC = Image.Resampling.BICUBIC
PHOTO = Image.fromarray(data.astronaut())


def two_passes(image: Image.Image, box: Box, width: int, height: int) -> np.ndarray:
    left, upper, right, lower = box
    narrow = image.resize((width, image.height), BICUBIC, box=(left, 0, right, image.height))
    return np.asarray(narrow.resize((width, height), BICUBIC, box=(0, upper, width, lower)))


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Image.Image, Box, int, int]:
    size = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    image = PHOTO.resize(size).convert(draw(st.sampled_from(["RGB", "L"])))
    edges = []
    for length in size:
        start = draw(st.integers(0, 64 * length - 32))
        edges.append((start / 64, draw(st.integers(start + 32, 64 * length)) / 64))
    (left, right), (upper, lower) = edges
    return image, (left, upper, right, lower), draw(st.integers(1, 200)), draw(st.integers(1, 200))


@settings(deadline=None, max_examples=200)
@given(cuts(), st.sampled_from([1000, 20_000, 1 << 20]))
def test_a_tile_is_what_two_passes_over_the_whole_give(
    cut: tuple[Image.Image, Box, int, int], band: int
) -> None:
    image, box, width, height = cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "BAND_BYTES", band)
        made = resample(HeldPixels(image), box, width, height)
    assert (made.mode, made.size) == (image.mode, (width, height))
    assert np.array_equal(np.asarray(made), two_passes(image, box, width, height))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_on_disk_are_those_in_memory(mode: str, tmp_path: Path) -> None:
    image = PHOTO.convert(mode)
    parts = [(top, image.crop((0, top, 512, min(512, top + 100)))) for top in range(0, 512, 100)]
    stores: list[Pixels] = [
        HeldPixels(image),
        HeldPixels.gather(mode, image.size, parts),
        SpooledPixels(mode, image.size, parts, tmp_path / "new"),
    ]
    for box in ((0, 0, 512, 512), (511, 511, 512, 512), (3, 100, 400, 101)):
        for store in stores:
            part = store.part(*box)
            assert (store.size, store.mode, part.mode) == (image.size, mode, mode)
            assert np.array_equal(np.asarray(part), np.asarray(image.crop(box)))
    assert list((tmp_path / "new").iterdir()) == [], "the file has no name, so that nothing is left behind"


def test_a_picture_on_disk_takes_no_memory_and_gives_the_same_tiles(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    PHOTO.resize((3000, 3000)).save(path)
    held, spooled = open_image(path), open_image(path)
    spooled.decode(*spooled.size, spool=tmp_path)
    kernel.give_back()
    before = kernel.memory().anonymous_bytes
    kernel.reset_peak()
    tile = spooled.crop((0, 0, 3000, 3000), 256, 256)
    assert kernel.memory().peak_resident_bytes - kernel.memory().mapped_bytes - before < 9_000_000
    assert np.array_equal(tile, held.crop((0, 0, 3000, 3000), 256, 256))
    assert kernel.memory().anonymous_bytes - before > 30_000_000, "what the other one holds"


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    picture = open_image(PHOTO)
    with pytest.raises(ResourceError, match="No space left on device") as caught:
        picture.decode(512, 512, spool=tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "Free some space" in caught.value.remedy
