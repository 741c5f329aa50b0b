"""What panels are made of: fonts, photographs, words, numbers, segments, and the primer's pages."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from rpi_runtime.errors import ResourceError
from vqa.panels import backgrounds, fonts
from vqa.panels import vocabulary as words
from vqa.panels.primer import make_page
from vqa.panels.scene import _TEST_LAYOUTS, _TRAIN_LAYOUTS
from vqa.panels.segments import draw_segments, segments_width


def test_training_never_sees_fonts_backgrounds_or_layouts_of_the_test_split() -> None:
    assert not set(fonts.font_files("test")) & set(fonts.font_files("train"))
    assert {package for package, *_ in fonts._TEST}.isdisjoint(package for package, *_ in fonts._TRAIN)
    assert not set(backgrounds._TEST) & set(backgrounds._TRAIN)
    assert not set(_TEST_LAYOUTS) & set(_TRAIN_LAYOUTS)
    assert fonts.font_files("validation") == fonts.font_files("train")


def test_every_font_and_photograph_is_there_and_draws_every_word() -> None:
    for file in (*fonts.font_files("train"), *fonts.font_files("test")):
        font = ImageFont.truetype(file, 20)
        missing = font.getmask("\uffff").getbbox(), bytes(font.getmask("\uffff"))
        for character in {*"".join(words.UNITS), *"".join(words.MEASURES), *"0123456789.-"}:
            assert (font.getmask(character).getbbox(), bytes(font.getmask(character))) != missing, file
    for package, name in (*backgrounds._TRAIN, *backgrounds._TEST):
        assert (fonts.package_folder(package) / name).is_file()


def test_a_package_that_is_missing_is_named_with_its_remedy() -> None:
    with pytest.raises(ResourceError, match="no_such_fonts") as caught:
        fonts.package_folder("no_such_fonts")
    assert "[train]" in str(caught.value.remedy)


@pytest.mark.parametrize("cap_px", [12, 17.5, 40])
def test_capitals_are_as_high_as_asked(cap_px: float) -> None:
    for file in (*fonts.font_files("train"), *fonts.font_files("test")):
        _, upper, _, lower = fonts.with_cap_height(file, cap_px).getbbox("H")
        assert lower - upper == pytest.approx(cap_px, abs=1)


def test_a_scale_reads_its_top_in_even_divisions() -> None:
    for scale in (*words.GAUGE_SCALES, *words.BAR_SCALES):
        for step in range(scale.steps + 1):
            text = words.scale_text(scale, step)
            assert float(text) == pytest.approx(scale.high * step / scale.steps, abs=1e-9)
        assert len({words.scale_text(scale, step) for step in range(scale.steps + 1)}) == scale.steps + 1


@settings(deadline=None)
@given(quantity=st.sampled_from(words.QUANTITIES), seed=st.integers())
def test_a_reading_is_in_its_range_and_zero_has_no_sign(quantity: words.Quantity, seed: int) -> None:
    text = words.number(random.Random(seed), quantity)
    assert quantity.low <= float(text) <= quantity.high
    assert len(text.partition(".")[2]) in quantity.decimals
    assert not (text.startswith("-") and float(text) == 0)


@settings(deadline=None, max_examples=30)
@given(text=st.text("0123456789.-", min_size=1, max_size=6))
def test_segments_are_as_wide_as_they_say(text: str) -> None:
    image = Image.new("L", (400, 80))
    draw_segments(ImageDraw.Draw(image), text, 20, 20, 40, (255,), None, 0.0)
    box = image.getbbox()
    assert box is not None
    assert box[0] >= 16
    assert box[1] >= 19
    assert box[2] <= 20 + segments_width(text, 40) + 1
    assert box[3] <= 63


def test_every_digit_lights_other_segments() -> None:
    def drawn(digit: str) -> bytes:
        image = Image.new("L", (40, 60))
        draw_segments(ImageDraw.Draw(image), digit, 5, 5, 50, (255,), None, 0.0)
        return image.tobytes()

    assert len({drawn(digit) for digit in words.DISPLAY_CHARACTERS}) == len(words.DISPLAY_CHARACTERS)


def test_a_primer_page_is_decided_by_its_seed_and_full_of_characters() -> None:
    page, again, other = (make_page("train", number, 128) for number in (0, 0, 1))
    assert page.image.tobytes() == again.image.tobytes()
    assert page.characters == again.characters
    assert page.image.tobytes() != other.image.tobytes()
    assert page.image.size == (128, 128)
    for one in (page, other):
        assert len(one.characters) == len(one.glyphs) > 20
        assert " " not in one.characters
        middles = one.glyphs[:, :2]
        assert ((middles > 0) & (middles < 128)).all(1).mean() > 0.8  # a last word may run off the page
