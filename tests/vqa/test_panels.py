"""Panels: a seed decides every pixel, and every element lies where the panel says."""

from __future__ import annotations

import random
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqa.panels import fonts
from vqa.panels.draw import draw_scene
from vqa.panels.panel import HARD, SPLITS, Difficulty, Panel, make_panel, panel_size
from vqa.panels.scene import (
    DISPLAY,
    KINDS,
    LAMP,
    MOST_ELEMENTS,
    ON,
    PLATE,
    Box,
    Element,
    Scene,
    sample_scene,
    smallest_cap_px,
)

# Small pictures: what holds for them holds for large ones, which take longer.
_SMALL = Difficulty(longest_px=420)
_CLEAN = Difficulty(camera=0.0, longest_px=420)


@lru_cache(maxsize=200)
def _panel(number: int, split: str = "train", difficulty: Difficulty = _SMALL, seed: int = 0) -> Panel:
    return make_panel(split, number, difficulty, seed)


def _same_pixels(one: Panel, other: Panel) -> bool:
    return one.image.size == other.image.size and one.image.tobytes() == other.image.tobytes()


def test_the_same_arguments_give_the_same_panel() -> None:
    for number in range(5):
        first, again = (make_panel("validation", number, _SMALL, 3) for _ in range(2))
        assert _same_pixels(first, again)
        assert [s.element for s in first.elements] == [s.element for s in again.elements]
        for one, other in zip(first.elements, again.elements, strict=True):
            np.testing.assert_array_equal(one.glyphs, other.glyphs)


def test_another_number_split_or_seed_gives_another_panel() -> None:
    panels = [_panel(0), _panel(1), _panel(0, "validation"), _panel(0, "test"), _panel(0, seed=1)]
    assert len({panel.seed for panel in panels}) == len(panels)
    for i, one in enumerate(panels):
        assert not any(_same_pixels(one, other) for other in panels[:i])


@given(
    split=st.sampled_from(SPLITS),
    number=st.integers(0, 10**6),
    seed=st.integers(0, 100),
    difficulty=st.sampled_from((Difficulty(longest_px=300), Difficulty(longest_px=300, crowded=1.0))),
)
@settings(max_examples=12, deadline=None)
def test_the_size_is_known_without_drawing(
    split: str, number: int, seed: int, difficulty: Difficulty
) -> None:
    panel = make_panel(split, number, difficulty, seed)
    assert panel.image.size == panel_size(split, number, difficulty, seed)
    assert panel.image.mode == "RGB"


def test_small_pictures_are_as_likely_as_large_ones() -> None:
    longest = np.array([max(panel_size("train", number)) for number in range(4000)])
    assert longest.min() >= HARD.shortest_px - 1
    assert longest.max() <= HARD.longest_px + 1
    octaves = np.histogram(np.log2(longest / 256), bins=[-0.1, 1, 2, 3.1])[0] / len(longest)
    np.testing.assert_allclose(octaves, 1 / 3, atol=0.03)


def test_no_name_stands_on_a_panel_twice() -> None:
    for number in range(300):
        scene = sample_scene(random.Random(number), (900, 900), "train", 24, crowded=number % 2 == 0)
        assert max(Counter(element.name for _, element in scene.cells).values()) == 1


def test_a_panel_has_at_most_as_many_elements_as_asked_and_every_kind_occurs() -> None:
    kinds: Counter[str] = Counter()
    for number in range(200):
        chance = random.Random(number)
        scene = sample_scene(chance, (800, 600), chance.choice(SPLITS), chance.randint(1, MOST_ELEMENTS))
        assert 1 <= len(scene.cells) <= MOST_ELEMENTS
        kinds.update(element.kind for _, element in scene.cells)
        assert len(sample_scene(random.Random(number), (800, 600), "train", 2).cells) <= 2
    assert set(kinds) == set(KINDS)


def test_elements_lie_in_the_picture_and_apart() -> None:
    """A panel may be too narrow for what it bears; that is rare and little."""
    elements = 0
    overflowing, overlapping = [], []
    for split in ("train", "test"):
        for number in range(60):
            for box, size in _drawn_boxes(split, number):
                elements += 1
                over = max(-box[0], -box[1], box[2] - size[0], box[3] - size[1]) / smallest_cap_px(size)
                if over > 0.1:
                    overflowing.append((split, number, over))
            overlapping += [(split, number, share) for share in _overlaps(split, number)]
    assert elements > 300
    assert len(overflowing) <= 0.02 * elements, overflowing
    assert len(overlapping) <= 0.02 * elements, overlapping
    assert max((over for *_, over in overflowing), default=0) < 1.5


def test_capitals_are_never_much_smaller_than_promised() -> None:
    for number in range(60):
        chance = random.Random(number)
        size = chance.choice(((256, 256), (256, 128), (640, 480), (900, 450)))
        scene = sample_scene(chance, size, "train")
        promised = smallest_cap_px(size)
        for drawn in draw_scene(chance, scene, fonts.font_files("train"))[1]:
            assert min(glyph[4] for glyph in drawn.glyphs) >= 0.7 * promised, drawn
            if drawn.element.scale is None:
                assert drawn.text_px >= 0.7 * promised, drawn


def test_lamps_shine_in_their_colour_where_their_body_is() -> None:
    lamps = 0
    for number in range(40):
        panel = _panel(number, difficulty=_CLEAN)
        pixels = np.asarray(panel.image, float)
        for seen in panel.elements:
            if seen.element.kind != LAMP:
                continue
            lamps += 1
            x, y = (seen.body.mean(0) + 0.2 * (seen.body[2] - seen.body[0])).astype(int)  # beside the spot
            red, green, blue = pixels[y, x]
            assert {
                "red": red > 1.8 * max(green, blue),
                "green": green > 1.4 * max(red, blue),
                "amber": red > green > 1.3 * blue,
                "blue": blue > 1.4 * max(red, green),
            }[seen.element.colour], (number, seen.element, pixels[y, x])
            assert (pixels[y, x].max() > 150) == (seen.element.value == ON)
    assert lamps > 15


@pytest.mark.parametrize("split", ["train", "test"])
def test_ink_lies_under_every_character(split: str) -> None:
    """Each glyph's box holds two colours far apart; so does no box on bare panel."""
    for number in range(20):
        panel = _panel(number, split, _CLEAN)
        pixels = np.asarray(panel.image.convert("L"), int)
        for seen in panel.elements:
            assert len(seen.characters) == len(seen.glyphs)
            element = seen.element
            read = element.name + (element.value + element.unit if element.kind in (DISPLAY, PLATE) else "")
            assert seen.characters == read.replace(" ", "")
            for character, (x, y, width, height) in zip(seen.characters, seen.glyphs, strict=True):
                if character in ".-":
                    continue
                box = pixels[
                    max(0, int(y - height / 2)) : int(y + height / 2) + 1,
                    max(0, int(x - width / 2)) : int(x + width / 2) + 1,
                ]
                assert box.max() - box.min() > 60, (number, element, character)


@pytest.mark.parametrize("place", range(6))
def test_another_character_changes_the_pixels_under_its_glyph_and_no_others(place: int) -> None:
    text = "888888"  # as wide and as high as a 6
    changed = text[:place] + "6" + text[place + 1 :]
    for seed in range(6):
        for as_plate in (False, True):
            pair = [_draw_one(seed, as_plate, shown) for shown in (text, changed)]
            differing = (pair[0][0] != pair[1][0]).any(-1)
            rows, columns = differing.nonzero()
            _, x, y, width, height = pair[0][1][len("TANK") + place]
            assert x - width / 2 - 1 <= columns.min() <= columns.max() + 1 <= x + width / 2 + 0.2 * height + 1
            assert y - 0.8 * height <= rows.min() <= rows.max() <= y + 0.8 * height


def test_what_a_cover_lies_over_is_hidden() -> None:
    covered = [_panel(number) for number in range(60)]
    share = np.mean([any(seen.hidden for seen in panel.elements) for panel in covered])
    assert 0.01 < share < 0.25
    clean = [_panel(number, difficulty=_CLEAN) for number in range(10)]
    assert not any(seen.hidden for panel in clean for seen in panel.elements)


def _upright(split: str, number: int) -> tuple[Scene, list[tuple[Box, Box]]]:
    chance = random.Random(f"{split}{number}")
    size = panel_size(split, number, Difficulty(longest_px=900))
    scene = sample_scene(chance, size, split)
    drawn = draw_scene(chance, scene, fonts.font_files(split))[1]
    return scene, [(one.label, one.body) for one in drawn]


_cached_upright = lru_cache(maxsize=200)(_upright)


def _drawn_boxes(split: str, number: int) -> list[tuple[Box, tuple[int, int]]]:
    scene, pairs = _cached_upright(split, number)
    return [(box, scene.size_px) for pair in pairs for box in pair]


def _overlaps(split: str, number: int) -> list[float]:
    """Shares of labels and bodies (of the smaller of two) that lie on those of another element."""
    _, pairs = _cached_upright(split, number)
    found = []
    for i, pair in enumerate(pairs):
        for other in pairs[:i]:
            for a in pair:
                for b in other:
                    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                    if wide > 1 and high > 1:
                        found.append(wide * high / min(_area(a), _area(b)))
    return found


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _draw_one(seed: int, as_plate: bool, text: str) -> tuple[np.ndarray, tuple]:
    """Pixels and glyphs of a panel with one element that shows `text`."""
    element = Element(PLATE, "TANK", text) if as_plate else Element(DISPLAY, "TANK", text, "kPa")
    size = (400, 200)
    scene = Scene(size, (0, 0, *size), 14.0, (((10, 10, 390, 190), element),))
    dejavu = next(file for file in fonts.font_files("train") if Path(file).name == "DejaVuSans.ttf")
    image, (drawn,) = draw_scene(random.Random(seed), scene, [dejavu])
    return np.asarray(image, int), drawn.glyphs
