"""What lies under each patch of a tile: the dense targets that teach a vision branch to read.

The generator knows where every element and every character came to lie, so each patch can be asked which
element it belongs to, what that element is called and what it shows, and which characters are under the patch
itself. A branch learns to read from thousands of such answers per picture instead of from one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hypervl.config import VisionConfig
from rpi_runtime.tiling import Tile
from vqa.panels import vocabulary as words
from vqa.panels.panel import Seen
from vqa.panels.primer import CODE, NAME, NUMBER, UNIT, Page, Printed
from vqa.panels.scene import KINDS, LAMP_COLOURS, ON

IGNORE = -100  # PyTorch's cross_entropy leaves such targets out
WORDS = (*words.MEASURES, *words.DEVICES, *words.ALARMS, *words.PLATES)
CHARACTERS = "".join(
    sorted(
        {
            *"".join(WORDS),
            *"".join(words.UNITS),
            *"".join(words.SUFFIXES),
            *"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-",
        }
    )
)
VALUE_CHARACTERS = 7  # the longest plate, "TX-4821"
_LEGIBLE_PX = 4.5  # capitals lower than this, at the side a tile is encoded at, are not asked for

FULL_SCALES = tuple(sorted({scale.high for scale in (*words.GAUGE_SCALES, *words.BAR_SCALES)}))
_SHARES = 20  # parts of a scale that a needle's place is told in
_INTEGER_DIGITS = 4  # of the largest value

# Field -> number of classes. 0 stands for "none" everywhere; "value_<i>" is character i of what is shown,
# "read_<i>" character i from this patch to the right, the easier one, from which the other is put together.
# What answers need beyond reading: "share" and "full_scale" where a needle stands and on which scale,
# "magnitude" how large a value is, to compare it, "place" which ninth of the whole picture an element lies
# in, and "middle" the one patch of an element that counts it.
FIELDS: dict[str, int] = {
    "kind": 1 + len(KINDS),
    "word": 1 + len(WORDS),
    "suffix": 1 + len(words.SUFFIXES),
    "unit": 1 + len(words.UNITS),
    "state": 3,  # none, on, off
    "colour": 1 + len(LAMP_COLOURS),
    "share": 2 + _SHARES,
    "full_scale": 1 + len(FULL_SCALES),
    "magnitude": 2 + 10 * _INTEGER_DIGITS,
    "place": 1 + 9,
    **{f"value_{i}": 1 + len(CHARACTERS) for i in range(VALUE_CHARACTERS)},
    **{f"read_{i}": 1 + len(CHARACTERS) for i in range(VALUE_CHARACTERS)},
    "middle": 2,
}
_COLUMN = {field: i for i, field in enumerate(FIELDS)}
_SHOWN = [
    i
    for field, i in _COLUMN.items()
    if field in ("unit", "share", "full_scale", "magnitude") or field.startswith("value_")
]


@dataclass(frozen=True)
class Cells:
    """What a branch gives one answer for: cells of its stem, patches, and visual tokens."""

    cell: int  # px
    patch: int  # px
    shuffle: int  # patches along a visual token's side

    @classmethod
    def of(cls, config: VisionConfig) -> Cells:
        return cls(2 ** len(config.stem_channels), config.patch_size, config.pixel_shuffle)


@dataclass(frozen=True)
class DenseTargets:
    """Of N tiles of one side: `g` patches and `c` cells a side."""

    patches: np.ndarray  # [N, g, g, fields] int16
    tokens: np.ndarray  # [N, g / shuffle, g / shuffle, fields] int16
    characters: np.ndarray  # [N, c, c] int16

    @classmethod
    def of_tile(cls, elements: tuple[Seen, ...], tile: Tile, side: int, cells: Cells) -> DenseTargets:
        patches = tile_targets(elements, tile, side, cells.patch)
        return cls._one(patches, character_targets(elements, tile, side, cells.cell), cells)

    @classmethod
    def of_page(cls, page: Page, cells: Cells) -> DenseTargets:
        side = page.image.width
        characters = np.zeros((side // cells.cell, side // cells.cell), np.int16)
        page_targets(page.characters, page.glyphs, cells.cell, characters)
        return cls._one(printed_targets(page.printed, side, cells.patch), characters, cells)

    @classmethod
    def _one(cls, patches: np.ndarray, characters: np.ndarray, cells: Cells) -> DenseTargets:
        return cls(patches[None], token_targets(patches, cells.shuffle)[None], characters[None])

    @classmethod
    def stack(cls, parts: Sequence[DenseTargets]) -> DenseTargets:
        return cls(*(np.concatenate([vars(p)[f.name] for p in parts]) for f in dataclasses.fields(cls)))


def token_rows(parts: Sequence[DenseTargets]) -> np.ndarray:
    """[visual tokens, fields] of the tiles of `parts`, one after the other."""
    return np.concatenate([part.tokens.reshape(-1, part.tokens.shape[-1]) for part in parts])


@dataclass(frozen=True)
class Place:
    """From picture px to px of the encoded tile."""

    scale: np.ndarray  # [2]
    shift: np.ndarray  # [2]

    @classmethod
    def of(cls, tile: Tile, side: int) -> Place:
        low, high = np.array(tile.box[:2]), np.array(tile.box[2:])
        fill_low, fill_high = np.array(tile.fill[:2]), np.array(tile.fill[2:])
        scale = side * (fill_high - fill_low) / (high - low)
        return cls(scale, side * fill_low - scale * low)

    def points(self, points: np.ndarray) -> np.ndarray:
        return np.asarray(points * self.scale + self.shift)

    def box(self, points: np.ndarray) -> np.ndarray:
        moved = self.points(points)
        return np.concatenate([moved.min(0), moved.max(0)])


def tile_targets(elements: tuple[Seen, ...], tile: Tile, side: int, patch: int) -> np.ndarray:
    """Targets [side / patch, side / patch, fields] int16 of `tile` encoded at `side` px, fields as in
    `FIELDS`.

    A name or value that the tile shows in part only, or too small to read, is not asked for (`IGNORE`).
    """
    grid, place = side // patch, Place.of(tile, side)
    targets = np.full((grid, grid, len(FIELDS)), IGNORE, np.int16)
    targets[..., _COLUMN["kind"]] = 0
    boxes = [(place.box(np.concatenate([seen.label, seen.body])), seen) for seen in elements]
    for box, seen in sorted(boxes, key=lambda pair: -float(np.prod(pair[0][2:] - pair[0][:2]))):
        area = _patches(box, patch, grid)
        row = _element(seen, place, side)
        middle = (box[:2] + box[2:]) / 2
        centred = bool((middle >= 0).all() and (middle < side).all())
        if not seen.hidden:
            row[_COLUMN["middle"]] = 0
            if tile.is_thumbnail and centred:
                row[_COLUMN["place"]] = 1 + int(middle[1] * 3 / side) * 3 + int(middle[0] * 3 / side)
        # What is read is asked for where it stands, what the element is and its name all over it.
        targets[area] = row
        targets[area][..., _SHOWN] = IGNORE
        targets[_patches(place.box(seen.body), patch, grid)] = row
        at = tuple((middle[::-1] / patch).astype(int))
        if centred and not seen.hidden and targets[at][0] > 0:
            targets[at][_COLUMN["middle"]] = 1
    for seen in elements:
        before = len(seen.element.name.replace(" ", ""))
        glyphs = seen.glyphs[before : before + len(seen.element.value)]
        if len(glyphs) and not seen.hidden:
            glyphs = np.concatenate([place.points(glyphs[:, :2]), glyphs[:, 2:] * place.scale], axis=1)
            _write_reading(targets, seen.element.value, glyphs, side, patch)
    return targets


def _patches(box: np.ndarray, patch: int, grid: int) -> tuple[slice, slice]:
    """Rows and columns of the patches whose middle lies in `box`, px."""
    first = np.maximum(0, np.ceil(box[:2] / patch - 0.5)).astype(int)
    last = np.clip(np.floor(box[2:] / patch + 0.5), 0, grid).astype(int)
    return slice(first[1], last[1]), slice(first[0], last[0])


def _element(seen: Seen, place: Place, side: int) -> np.ndarray:
    element, zoom = seen.element, float(place.scale.mean())
    row = np.full(len(FIELDS), IGNORE, np.int16)
    row[_COLUMN["kind"]] = 1 + KINDS.index(element.kind)
    if seen.hidden:
        return row
    label, body = place.box(seen.label), place.box(seen.body)
    if inside(label, side) and (label[3] - label[1]) >= _LEGIBLE_PX:
        word, _, suffix = element.name.partition(" ")
        row[_COLUMN["word"]] = 1 + WORDS.index(word)
        row[_COLUMN["suffix"]] = 1 + words.SUFFIXES.index(suffix) if suffix else 0
    if not inside(body, side):
        return row
    legible = seen.text_px * zoom >= (_LEGIBLE_PX if element.scale is None else _LEGIBLE_PX / 2)
    # Not asked for where the kind says all: a mean over mostly "none" would teach next to nothing.
    if element.colour:
        row[_COLUMN["colour"]] = 1 + LAMP_COLOURS.index(element.colour)
    if element.kind in ("lamp", "switch"):
        row[_COLUMN["state"]] = 1 if element.value == ON else 2
    elif legible:
        row[_COLUMN["unit"]] = 1 + words.UNITS.index(element.unit) if element.unit else 0
        _write_value(row, element.value)
        if element.unit:
            row[_COLUMN["magnitude"]] = magnitude(element.value)
        if element.scale is not None:
            row[_COLUMN["share"]] = 1 + round(_SHARES * element.step / element.scale.steps)
            row[_COLUMN["full_scale"]] = 1 + FULL_SCALES.index(element.scale.high)
    return row


def magnitude(value: str) -> int:
    """How large a number is, as its number of digits before the point and the first of them say: 1 below
    zero, then ascending."""
    if value.startswith("-"):
        return 1
    integer = value.partition(".")[0]
    return 2 + 10 * (len(integer) - 1) + int(integer[0])


def character_targets(elements: tuple[Seen, ...], tile: Tile, side: int, cell: int) -> np.ndarray:
    """`page_targets` of the characters of a tile's elements; what is hidden is not asked for."""
    place = Place.of(tile, side)
    targets = np.zeros((side // cell, side // cell), np.int16)
    for seen in elements:
        glyphs = np.concatenate([place.points(seen.glyphs[:, :2]), seen.glyphs[:, 2:] * place.scale], axis=1)
        page_targets("" if seen.hidden else seen.characters, glyphs, cell, targets)
    return targets


def page_targets(characters: str, glyphs: np.ndarray, cell: int, targets: np.ndarray) -> None:
    """Writes into `targets` [c, c] int16 the character, 1 + its place in `CHARACTERS`, that the middle of
    each cell of `cell` px lies on; `IGNORE` where it is too small to read, or unknown (`characters`
    empty). `glyphs` [n, 4] are middles (x, y), widths and heights in px of the tile."""
    first = np.maximum(0, np.ceil((glyphs[:, :2] - glyphs[:, 2:] / 2) / cell - 0.5)).astype(int)
    last = np.maximum(0, np.floor((glyphs[:, :2] + glyphs[:, 2:] / 2) / cell + 0.5)).astype(int)
    for i, ((x0, y0), (x1, y1)) in enumerate(zip(first, last, strict=True)):
        known = characters and glyphs[i, 3] >= _LEGIBLE_PX
        targets[y0:y1, x0:x1] = 1 + CHARACTERS.index(characters[i]) if known else IGNORE


def showing(rows: np.ndarray, name: str, value: bool) -> np.ndarray:
    """Which of `rows` [n, fields] lie on the element called `name`: with `value` those that show what it
    reads, if there are any."""
    word, _, suffix = name.partition(" ")
    named = rows[:, _COLUMN["word"]] == 1 + WORDS.index(word)
    named &= rows[:, _COLUMN["suffix"]] == (1 + words.SUFFIXES.index(suffix) if suffix else 0)
    valued = named & (rows[:, _COLUMN["value_0"]] > 0)
    return np.flatnonzero(valued if value and valued.any() else named)


def printed_targets(printed: tuple[Printed, ...], side: int, patch: int) -> np.ndarray:
    """As `tile_targets`, of a primer's page: what each word, number, code or unit says, and nothing of
    what it belongs to."""
    grid = side // patch
    targets = np.full((grid, grid, len(FIELDS)), IGNORE, np.int16)
    targets[..., _COLUMN["kind"]] = 0
    for one in printed:
        box = np.concatenate([one.corners.min(0), one.corners.max(0)])
        high = box[3] - box[1]
        margin = np.array([0, 0.3 * high])
        first = np.maximum(0, np.ceil((box[:2] - margin) / patch - 0.5)).astype(int)
        last = np.minimum(grid, np.floor((box[2:] + margin) / patch + 0.5)).astype(int)
        if (last <= first).any():
            continue
        row = np.full(len(FIELDS), IGNORE, np.int16)
        if inside(box, side) and high >= _LEGIBLE_PX:
            if one.kind == NAME:
                word, _, suffix = one.text.partition(" ")
                row[_COLUMN["word"]] = 1 + WORDS.index(word)
                row[_COLUMN["suffix"]] = 1 + words.SUFFIXES.index(suffix) if suffix else 0
            elif one.kind == UNIT:
                row[_COLUMN["unit"]] = 1 + words.UNITS.index(one.text)
            else:
                _write_value(row, one.text)
        targets[first[1] : last[1], first[0] : last[0]] = row
        if one.kind in (NUMBER, CODE):
            _write_reading(targets, one.text, one.glyphs, side, patch)
    return targets


def _write_reading(targets: np.ndarray, text: str, glyphs: np.ndarray, side: int, patch: int) -> None:
    """The characters of `text` from each patch to its right end; those beyond the tile are not asked for."""
    high = float(glyphs[:, 3].mean())
    if high < _LEGIBLE_PX:
        return
    first, grid = _COLUMN["read_0"], targets.shape[0]
    seen = [0 < x < side and 0 < y < side for x, y in glyphs[:, :2]]
    for column in range(grid):
        begin = int(np.searchsorted(glyphs[:, 0], column * patch))
        if begin == len(text) or (column + 1) * patch < glyphs[0, 0] - glyphs[0, 2] / 2:
            continue
        # Print may be slanted: the row of the first character that is read.
        low, high_row = (glyphs[begin, 1] + sign * 0.7 * high for sign in (-1, 1))
        rows = slice(max(0, int(np.ceil(low / patch - 0.5))), max(0, int(np.floor(high_row / patch + 0.5))))
        for i in range(VALUE_CHARACTERS):
            at = begin + i
            value = 0 if at >= len(text) else 1 + CHARACTERS.index(text[at]) if seen[at] else IGNORE
            targets[rows, column, first + i] = value


def _write_value(row: np.ndarray, text: str) -> None:
    for i in range(VALUE_CHARACTERS):
        row[_COLUMN[f"value_{i}"]] = 1 + CHARACTERS.index(text[i]) if i < len(text) else 0


def inside(box: np.ndarray, side: int) -> bool:
    return bool(box[0] >= -1 and box[1] >= -1 and box[2] <= side + 1 and box[3] <= side + 1)


def token_targets(targets: np.ndarray, shuffle: int) -> np.ndarray:
    """Targets of visual tokens [g / shuffle, g / shuffle, fields]: those of the first patch of the most
    frequent element among its patches, background only where all are."""
    grid, fields = targets.shape[0] // shuffle, targets.shape[2]
    squares = targets.reshape(grid, shuffle, grid, shuffle, fields).transpose(0, 2, 1, 3, 4)
    squares = squares.reshape(grid, grid, shuffle * shuffle, fields)
    element = squares[..., : _COLUMN["read_0"]]  # what follows differs from patch to patch of one element
    same = (element[:, :, :, None] == element[:, :, None, :]).all(-1)
    votes = same.sum(-1) - shuffle**4 * (squares[..., 0] == 0)
    tokens = np.take_along_axis(squares, votes.argmax(-1)[:, :, None, None], axis=2)[:, :, 0]
    middle = squares[..., _COLUMN["middle"]].max(2)
    tokens[..., _COLUMN["middle"]] = np.where(tokens[..., _COLUMN["kind"]] > 0, middle, IGNORE)
    return np.asarray(tokens)
