"""What is on a panel and where: elements, their cells, and the layouts that place them.

Sizes are px of the upright panel picture, before the camera. `cap` is the height of capitals and digits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from vqa.panels import vocabulary as words

Box = tuple[float, float, float, float]  # left, upper, right, lower, px

DISPLAY, GAUGE, BAR, LAMP, SWITCH, PLATE = KINDS = ("display", "gauge", "bar", "lamp", "switch", "plate")
LAMP_COLOURS = ("red", "green", "amber", "blue")
ON, OFF = "on", "off"
MOST_ELEMENTS = 12


@dataclass(frozen=True)
class Element:
    kind: str  # one of KINDS
    name: str  # its label
    value: str  # the number shown, a plate's text, or "on" / "off"
    unit: str = ""  # of a number
    colour: str = ""  # of a lamp
    scale: words.Scale | None = None  # of a gauge or bar
    step: int = 0  # the division that its needle stands at


@dataclass(frozen=True)
class Scene:
    size_px: tuple[int, int]
    panel: Box
    cap_px: float  # the smallest capitals on it
    cells: tuple[tuple[Box, Element], ...]


def smallest_cap_px(size_px: tuple[int, int]) -> float:
    """12 px, and more on pictures that a model must shrink: a 56th of the longer side."""
    return max(12.0, max(size_px) / 56)


def sample_scene(
    chance: random.Random,
    size_px: tuple[int, int],
    split: str,
    most_elements: int = MOST_ELEMENTS,
    crowded: bool = False,
) -> Scene:
    """A panel for a picture of `size_px`. Layouts of the "test" split are never drawn in training; one
    that lacks the room for its pattern is a plain grid.

    A `crowded` one has as many elements as there is room for.
    """
    width, height = size_px
    cap = smallest_cap_px(size_px) * (1.0 if crowded else chance.choice((1.0, 1.0, 1.25, 1.6)))
    share_x, share_y = chance.uniform(0.86, 1.0), chance.uniform(0.86, 1.0)
    left, upper = chance.uniform(0, 1 - share_x) * width, chance.uniform(0, 1 - share_y) * height
    panel = (left, upper, left + share_x * width, upper + share_y * height)
    layout = _full if crowded else chance.choice(_TEST_LAYOUTS if split == "test" else _TRAIN_LAYOUTS)
    # In capitals: the last has room for a round gauge, of which reading needs many.
    lowest = chance.choice((6.0, 11.5, 11.5) if crowded else (6.0, 6.0, 11.5))
    cells = layout(chance, _inset(panel, 0.3 * cap), 11.0 * cap, lowest * cap)
    chance.shuffle(cells)
    share = 1.0 if crowded else chance.choice((1.0, 1.0, 0.8, 0.6))
    keep = max(1, round(min(len(cells), most_elements) * share))
    taken: set[str] = set()
    shared_unit = chance.choice(words.QUANTITIES)  # so that values of one unit can be compared
    placed = [(cell, _element(chance, cell, cap, taken, shared_unit)) for cell in cells[:keep]]
    return Scene(size_px, panel, cap, tuple(placed))


def _element(
    chance: random.Random, cell: Box, cap: float, taken: set[str], shared: words.Quantity
) -> Element:
    width, height = cell[2] - cell[0], cell[3] - cell[1]
    kinds = [DISPLAY] * 5 + [LAMP] * 3 + [SWITCH] * 2 + [PLATE]
    if min(width, height - 2 * cap) >= 8 * cap:
        kinds += [GAUGE] * 7
    if max(width, height - 3 * cap) >= 8 * cap and min(width, height - 3 * cap) >= 4.5 * cap:
        kinds += [BAR] * 3
    kind = chance.choice(kinds)

    def name(*choices: str) -> str:
        for _ in range(50):
            found = words.name(chance, choices)
            if found not in taken:
                break
        taken.add(found)
        return found

    if kind == LAMP:
        colour = chance.choice(("red", *LAMP_COLOURS))
        state = chance.choice((ON, OFF))
        return Element(
            LAMP, name(*(words.ALARMS if colour == "red" else words.DEVICES)), state, colour=colour
        )
    if kind == SWITCH:
        return Element(SWITCH, name(*words.DEVICES), chance.choice((ON, OFF)))
    free = [plate for plate in words.PLATES if plate not in taken]
    if kind == PLATE and free:
        taken.add(plate := chance.choice(free))
        return Element(PLATE, plate, words.code(chance))
    if kind in (DISPLAY, PLATE):
        quantity = shared if chance.random() < 0.4 else chance.choice(words.QUANTITIES)
        return Element(DISPLAY, name(*words.MEASURES), words.number(chance, quantity), quantity.unit)
    scale = chance.choice(words.GAUGE_SCALES if kind == GAUGE else words.BAR_SCALES)
    step = chance.randint(0, scale.steps)
    unit = chance.choice(scale.units)
    return Element(kind, name(*words.MEASURES), words.scale_text(scale, step), unit, scale=scale, step=step)


# A layout cuts a box into cells of at least the given width and height.
Layout = Callable[[random.Random, Box, float, float], list[Box]]


def _grid(chance: random.Random, box: Box, width: float, height: float) -> list[Box]:
    columns, rows = _count(chance, box[2] - box[0], width), _count(chance, box[3] - box[1], height)
    return [cell for row in _split(box, rows, 1) for cell in _split(row, columns, 0)]


def _full(chance: random.Random, box: Box, width: float, height: float) -> list[Box]:
    """As many cells as there is room for."""
    columns, rows = (max(1, int((box[i + 2] - box[i]) / least)) for i, least in ((0, width), (1, height)))
    return [cell for row in _split(box, rows, 1) for cell in _split(row, columns, 0)]


def _rows(chance: random.Random, box: Box, width: float, height: float) -> list[Box]:
    """Rows with their own number of cells each."""
    rows = _split(box, _count(chance, box[3] - box[1], height), 1)
    return [cell for row in rows for cell in _split(row, _count(chance, row[2] - row[0], width), 0)]


def _columns(chance: random.Random, box: Box, width: float, height: float) -> list[Box]:
    columns = _split(box, _count(chance, box[2] - box[0], width), 0)
    return [cell for c in columns for cell in _split(c, _count(chance, c[3] - c[1], height), 1)]


def _mosaic(chance: random.Random, box: Box, width: float, height: float) -> list[Box]:
    """Cut in two, again and again, at uneven places."""
    across, down = box[2] - box[0], box[3] - box[1]
    ways = [axis for axis, room in ((0, across / width), (1, down / height)) if room >= 2]
    if not ways or (chance.random() < 0.15 and across * down < 12 * width * height):
        return [box]
    axis = chance.choice(ways)
    least = (width, height)[axis] / (across, down)[axis]
    share = chance.uniform(least, 1 - least)
    halves = _split(box, 2, axis, [share, 1 - share])
    return [cell for half in halves for cell in _mosaic(chance, half, width, height)]


def _staggered(chance: random.Random, box: Box, width: float, height: float) -> list[Box]:
    """Every other row begins half a cell to the right."""
    rows = _split(box, _count(chance, box[3] - box[1], height), 1)
    columns = _count(chance, box[2] - box[0], width)
    cells = []
    for number, row in enumerate(rows):
        if number % 2 and columns > 1:
            half = (row[2] - row[0]) / columns / 2
            row, count = (row[0] + half, row[1], row[2] - half, row[3]), columns - 1
        else:
            count = columns
        cells += _split(row, count, 0)
    return cells


def _main_and_side(chance: random.Random, box: Box, width: float, height: float) -> list[Box]:
    """One large cell, and a band of small ones beside or below it."""
    axis = 0 if (box[2] - box[0]) >= (box[3] - box[1]) else 1
    least = (width, height)[axis] / (box[axis + 2] - box[axis])
    if least > 0.45:
        return _grid(chance, box, width, height)
    share = chance.uniform(max(0.5, least), max(0.5, min(0.66, 1 - least)))
    main, band = _split(box, 2, axis, [share, 1 - share])
    if chance.random() < 0.5:
        band, main = _split(box, 2, axis, [1 - share, share])
    along = 1 - axis
    count = _count(chance, band[along + 2] - band[along], (width, height)[along])
    return [main, *_split(band, count, along)]


_TRAIN_LAYOUTS: tuple[Layout, ...] = (_grid, _rows, _columns, _mosaic)
_TEST_LAYOUTS: tuple[Layout, ...] = (_staggered, _main_and_side)


def _count(chance: random.Random, room: float, least: float) -> int:
    most = max(1, min(4, int(room / least)))
    return chance.randint(1 if most == 1 or chance.random() < 0.3 else 2, most)


def _split(box: Box, count: int, axis: int, shares: list[float] | None = None) -> list[Box]:
    edges = [0.0]
    for share in shares or [1 / count] * count:
        edges.append(edges[-1] + share)
    low, length = box[axis], box[axis + 2] - box[axis]
    cells = []
    for start, end in pairwise(edges):
        cell = list(box)
        cell[axis], cell[axis + 2] = low + start * length, low + end * length
        cells.append((cell[0], cell[1], cell[2], cell[3]))
    return cells


def _inset(box: Box, margin: float) -> Box:
    return box[0] + margin, box[1] + margin, box[2] - margin, box[3] - margin
