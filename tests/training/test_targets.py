"""Dense targets: what each patch, visual token and cell is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervl.training.targets import (
    CHARACTERS,
    FIELDS,
    FULL_SCALES,
    IGNORE,
    VALUE_CHARACTERS,
    WORDS,
    character_targets,
    magnitude,
    page_targets,
    printed_targets,
    tile_targets,
    token_targets,
)
from rpi_runtime.tiling import Tile, whole_picture
from vqa.panels import vocabulary as words
from vqa.panels.panel import Seen
from vqa.panels.primer import CODE, NAME, NUMBER, UNIT, Printed
from vqa.panels.scene import KINDS, LAMP_COLOURS, Box, Element

_WHOLE = Tile(0, 0, 0, (0, 0, 64, 64))
_COLUMN = {field: i for i, field in enumerate(FIELDS)}
_DISPLAY = Element("display", "TANK 2", "-3.4", "bar")


def _seen(
    element: Element, label: Box, body: Box, text_px: float = 10.0, hidden: bool = False, text: str = ""
) -> Seen:
    glyphs = [(label[0] + 4 + 8 * i, (label[1] + label[3]) / 2, 8, 8) for i in range(len(text))]
    places = np.array(glyphs, float)
    return Seen(element, _corners(label), _corners(body), text_px, text_px, hidden, text, places)


def _corners(box: Box) -> np.ndarray:
    return np.array([[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]]], float)


def _read(row: np.ndarray) -> dict[str, str | None]:
    """A row of targets in words; None where nothing is asked."""
    lists = {
        "kind": ("", *KINDS),
        "word": ("", *WORDS),
        "suffix": ("", *words.SUFFIXES),
        "unit": ("", *words.UNITS),
        "state": ("", "on", "off"),
        "colour": ("", *LAMP_COLOURS),
    }
    found = {f: None if row[_COLUMN[f]] == IGNORE else names[row[_COLUMN[f]]] for f, names in lists.items()}
    value = [row[_COLUMN[f"value_{i}"]] for i in range(VALUE_CHARACTERS)]
    known = all(v != IGNORE for v in value)
    found["value"] = "".join(("", *CHARACTERS)[v] for v in value) if known else None
    return found


def test_a_patch_of_an_element_is_asked_for_all_that_it_shows() -> None:
    targets = tile_targets((_seen(_DISPLAY, (8, 0, 56, 16), (8, 20, 56, 40)),), _WHOLE, 64, 16)
    assert targets.shape == (4, 4, len(FIELDS))
    assert _read(targets[1, 1]) == {
        "kind": "display", "word": "TANK", "suffix": "2", "unit": "bar", "state": None, "colour": None,
        "value": "-3.4",
    }  # fmt: skip


def test_patches_count_by_their_middle_and_background_is_asked_for_its_kind_alone() -> None:
    targets = tile_targets((_seen(_DISPLAY, (8, 0, 56, 16), (8, 20, 56, 40)),), _WHOLE, 64, 16)
    shown = np.zeros((4, 4), bool)
    shown[0:3, 0:4] = True  # middles 8, 24, 40, 56 across and 8, 24, 40 down
    np.testing.assert_array_equal(targets[..., 0] > 0, shown)
    assert (targets[~shown][:, 0] == 0).all()
    assert (targets[~shown][:, 1:] == IGNORE).all()


def test_a_lamp_has_a_state_and_a_colour_and_no_value() -> None:
    lamp = Element("lamp", "ALARM", "off", colour="amber")
    targets = tile_targets((_seen(lamp, (0, 0, 32, 16), (0, 16, 32, 40)),), _WHOLE, 64, 16)
    read = _read(targets[0, 0])
    assert (read["word"], read["suffix"], read["state"], read["colour"]) == ("ALARM", "", "off", "amber")
    assert read["value"] is None


def test_every_name_unit_and_character_that_a_panel_may_show_has_a_class() -> None:
    assert {*words.MEASURES, *words.DEVICES, *words.ALARMS, *words.PLATES} == set(WORDS)
    assert len(set(WORDS)) == len(WORDS)
    assert len(set(CHARACTERS)) == len(CHARACTERS)
    assert set("".join(words.UNITS) + "TX-4821") <= set(CHARACTERS)


def test_what_a_tile_cuts_off_is_not_asked_for() -> None:
    """The display lies across two tiles: the left one has the whole name, neither has the whole value."""
    seen = _seen(_DISPLAY, (8, 0, 56, 16), (8, 20, 120, 40))
    left = tile_targets((seen,), Tile(0, 0, 0, (0, 0, 64, 64)), 64, 16)[1, 1]
    right = tile_targets((seen,), Tile(1, 0, 1, (64, 0, 128, 64)), 64, 16)[1, 1]
    assert (_read(left)["kind"], _read(left)["word"], _read(left)["value"]) == ("display", "TANK", None)
    assert _read(left)["unit"] is None
    assert (_read(right)["kind"], _read(right)["word"], _read(right)["value"]) == ("display", None, None)


def test_what_is_too_small_to_read_at_the_tiles_side_is_not_asked_for() -> None:
    seen = _seen(_DISPLAY, (8, 0, 56, 16), (8, 20, 56, 40), text_px=10)
    assert _read(tile_targets((seen,), _WHOLE, 32, 8)[1, 1])["value"] == "-3.4"  # 5 px
    small = _read(tile_targets((seen,), _WHOLE, 16, 4)[1, 1])
    assert (small["kind"], small["word"], small["value"]) == ("display", None, None)  # 4 px, 2.5 px


def test_what_is_hidden_is_only_said_to_be_there() -> None:
    seen = _seen(_DISPLAY, (8, 0, 56, 16), (8, 20, 56, 40), hidden=True, text="TANK2")
    row = tile_targets((seen,), _WHOLE, 64, 16)[1, 1]
    assert row[0] == 1 + KINDS.index("display")
    assert (row[1:] == IGNORE).all()
    characters = character_targets((seen,), _WHOLE, 64, 8)
    assert set(np.unique(characters)) == {0, IGNORE}


def test_a_small_element_is_seen_before_a_large_one() -> None:
    large = _seen(_DISPLAY, (0, 0, 64, 16), (0, 16, 64, 64))
    small = _seen(Element("switch", "PUMP", "on"), (16, 16, 32, 24), (16, 24, 32, 32))
    for order in ((large, small), (small, large)):
        targets = tile_targets(order, _WHOLE, 64, 16)
        assert _read(targets[1, 1])["kind"] == "switch"
        assert _read(targets[2, 2])["kind"] == "display"


def test_a_padded_tile_is_asked_where_the_picture_lies_in_it() -> None:
    """A picture of 64 x 32 px fills the middle half of the tile."""
    tile = Tile(0, 0, 0, (0, 0, 64, 32), (0, 0.25, 1, 0.75))
    targets = tile_targets((_seen(_DISPLAY, (0, 0, 64, 12), (0, 12, 64, 32)),), tile, 64, 16)
    np.testing.assert_array_equal(targets[..., 0].any(1), [False, True, True, False])


def test_characters_lie_in_the_cells_that_their_middles_are_in() -> None:
    targets = np.zeros((4, 4), np.int16)
    page_targets("A7", np.array([[8, 8, 16, 16], [28, 12, 8, 8]], float), 8, targets)
    a, seven = (1 + CHARACTERS.index(c) for c in "A7")
    np.testing.assert_array_equal(targets, [[a, a, 0, 0], [a, a, 0, seven], [0, 0, 0, 0], [0, 0, 0, 0]])


def test_characters_too_small_or_off_the_page_are_not_asked_for() -> None:
    targets = np.zeros((2, 2), np.int16)
    glyphs = np.array([[4, 4, 8, 4], [12, 4, 8, 5], [-30, 4, 8, 8], [4, 90, 8, 8]], float)
    page_targets("ABCD", glyphs, 8, targets)
    assert targets.tolist() == [[IGNORE, 1 + CHARACTERS.index("B")], [0, 0]]


@pytest.mark.parametrize("side", [64, 128])
def test_characters_scale_with_the_tiles_side(side: int) -> None:
    seen = _seen(_DISPLAY, (8, 16, 48, 32), (8, 32, 56, 48), text="TANK2")
    cell = side // 8
    targets = character_targets((seen,), _WHOLE, side, cell)
    read = "".join(("", *CHARACTERS)[v] if v > 0 else " " for v in targets[2])
    assert read.strip() == "TANK2"


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (NAME, "OIL B", {"word": "OIL", "suffix": "B"}),
        (NAME, "STEAM", {"word": "STEAM", "suffix": ""}),
        (NUMBER, "-12.5", {"value": "-12.5"}),
        (CODE, "TX-4821", {"value": "TX-4821"}),
        (UNIT, "l/min", {"unit": "l/min"}),
    ],
)
def test_what_a_page_prints_is_asked_for_and_nothing_else(kind: str, text: str, expected: dict) -> None:
    glyphs = np.array([[4 + 6 * i, 24, 6, 16] for i in range(len(text))], float)
    whole, cut = _corners((0, 16, 48, 32)), _corners((40, 48, 90, 64))
    printed = (Printed(kind, text, whole, glyphs), Printed(kind, text, cut, np.add(glyphs, [90, 32, 0, 0])))
    targets = printed_targets(printed, 64, 16)
    asked = {field: shown for field, shown in _read(targets[1, 1]).items() if shown is not None}
    assert asked == expected
    assert set(_read(targets[3, 3]).values()) == {None}  # it runs off the page
    assert _read(targets[0, 0])["kind"] == ""


def _reading(row: np.ndarray) -> str:
    """Characters from a patch to the right; "?" where nothing is asked."""
    shown = [row[_COLUMN[f"read_{i}"]] for i in range(VALUE_CHARACTERS)]
    return "".join("?" if v == IGNORE else ("", *CHARACTERS)[v] for v in shown)


def test_each_patch_is_asked_for_the_characters_from_it_to_the_right() -> None:
    name = [(4 + 8 * i, 8, 8, 8) for i in range(5)]
    value = [(12 + 16 * i, 24, 8, 8) for i in range(4)]
    label, body = _corners((0, 4, 44, 12)), _corners((0, 16, 64, 32))
    seen = Seen(_DISPLAY, label, body, 8.0, 8.0, False, "TANK2-3.4", np.array(name + value, float))
    targets = tile_targets((seen,), _WHOLE, 64, 16)
    assert [_reading(row) for row in targets[1]] == ["-3.4", "3.4", ".4", "4"]
    for row in (0, 2, 3):
        assert {_reading(cell) for cell in targets[row]} == {"?" * VALUE_CHARACTERS}
    left_half = tile_targets((seen,), Tile(0, 0, 0, (0, 0, 32, 32)), 64, 32)
    assert [_reading(row) for row in left_half[1]] == ["-3??", "3??"]


_EMPTY = (0, *[IGNORE] * (len(FIELDS) - 1))
_ROWS = [_EMPTY, *((kind, word, *[IGNORE] * (len(FIELDS) - 3), 0) for kind, word in ((1, 5), (1, 6), (2, 5)))]
_PATCHES = st.sampled_from(_ROWS)
_grids = st.integers(1, 3).flatmap(lambda g: st.lists(_PATCHES, min_size=4 * g * g, max_size=4 * g * g))


@settings(deadline=None)
@given(_grids)
def test_a_visual_token_is_what_most_of_its_patches_are_and_background_only_if_all_are(cells: list) -> None:
    side = int(len(cells) ** 0.5)
    patches = np.array(cells, np.int16).reshape(side, side, len(FIELDS))
    tokens = token_targets(patches, 2)
    assert tokens.shape == (side // 2, side // 2, len(FIELDS))
    for row in range(side // 2):
        for column in range(side // 2):
            square = [
                tuple(p)
                for p in patches[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(4, len(FIELDS))
            ]
            shown = [tuple(p) for p in square if p[0] != 0]
            given_token = tuple(tokens[row, column])
            if not shown:
                assert given_token == _EMPTY
            else:
                assert given_token in shown
                assert shown.count(given_token) == max(map(shown.count, shown))


def test_one_patch_and_one_visual_token_count_an_element() -> None:
    targets = tile_targets((_seen(_DISPLAY, (8, 0, 56, 16), (8, 20, 56, 40)),), _WHOLE, 64, 16)
    middle = _COLUMN["middle"]
    assert targets[1, 2, middle] == 1  # 32, 20 px
    assert (targets[..., middle] == 1).sum() == 1
    assert (token_targets(targets, 2)[..., middle] == 1).sum() == 1


def test_the_place_in_the_picture_is_asked_for_where_the_whole_picture_is_shown() -> None:
    seen = _seen(_DISPLAY, (44, 0, 60, 8), (44, 8, 60, 16))  # top right
    place = _COLUMN["place"]
    whole = tile_targets((seen,), whole_picture(64, 64), 64, 16)
    assert set(whole[..., place].flatten()) == {IGNORE, 1 + 2}
    assert set(tile_targets((seen,), _WHOLE, 64, 16)[..., place].flatten()) == {IGNORE}


def test_what_is_read_is_asked_for_where_it_stands_and_the_name_everywhere() -> None:
    targets = tile_targets((_seen(_DISPLAY, (8, 0, 56, 16), (8, 20, 56, 40)),), _WHOLE, 64, 16)
    assert (_read(targets[0, 1])["word"], _read(targets[0, 1])["value"]) == ("TANK", None)
    assert (_read(targets[1, 1])["word"], _read(targets[1, 1])["value"]) == ("TANK", "-3.4")


def test_a_gauge_is_asked_where_its_needle_stands_and_on_which_scale() -> None:
    scale = next(scale for scale in words.GAUGE_SCALES if scale.high == 60)
    gauge = Element("gauge", "FLOW", "45", "l/min", scale=scale, step=9)
    row = tile_targets((_seen(gauge, (0, 0, 64, 12), (0, 12, 64, 64)),), _WHOLE, 64, 16)[2, 2]
    assert row[_COLUMN["share"]] == 1 + 15  # of 20
    assert FULL_SCALES[row[_COLUMN["full_scale"]] - 1] == 60


@given(st.lists(st.floats(-40, 9999).map(lambda x: f"{x:.1f}"), min_size=2))
def test_magnitudes_ascend_with_what_is_shown(values: list[str]) -> None:
    ranks = [magnitude(value) for value in sorted(values, key=float) if not value.startswith("-")]
    assert ranks == sorted(ranks)
    assert all(0 < rank < FIELDS["magnitude"] for rank in map(magnitude, values))
