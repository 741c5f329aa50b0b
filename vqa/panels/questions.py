"""Questions that a panel answers, and their answers in a fixed short style.

Values are copied as they are shown ("23.5 °C"), states are on / off, yes / no, places are the cells of a
3 x 3 grid over the picture. "not shown" is right when the panel has no such name. Nothing is asked about an
element that something lies over, and nothing about all elements when one is hidden.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from vqa.panels import vocabulary as words
from vqa.panels.panel import Panel, Seen
from vqa.panels.scene import BAR, DISPLAY, GAUGE, LAMP, ON, PLATE, SWITCH

NOT_SHOWN = "not shown"
JSON_SUFFIX = " Answer as JSON."
TYPES = (
    "display", "gauge", "bar", "plate", "unit", "state", "colour", "count", "compare", "where", "what",
    "alarm", "not shown", "json",
)  # fmt: skip
VALUE_TYPES = ("display", "gauge", "bar", "plate", "unit", "compare", "json")  # hang on a written value
# How likely each is the next question. Reading comes first: it is what the model is for.
_WEIGHTS = dict(
    zip(TYPES, (4.0, 3.0, 1.5, 1.5, 0.8, 2.0, 0.8, 1.2, 3.0, 1.2, 1.0, 0.8, 1.0, 1.2), strict=True)
)
_PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)
_CLEAR = 0.035  # of the picture: nearer to a border between two places, nobody asks where something is


class Add(Protocol):
    """Type, question, answer, px of the smallest thing to read, and the names of what must be found."""

    def __call__(self, kind: str, text: str, answer: str, text_px: float, *subjects: str) -> None: ...


@dataclass(frozen=True)
class Asked:
    text: str
    answer: str
    type: str  # one of TYPES
    text_px: float  # height of the smallest thing that must be read
    subjects: tuple[str, ...] = ()  # names of the elements that must be found, if it is not all of them


def ask(panel: Panel, count: int, seed: str = "") -> list[Asked]:
    """At most `count` questions about `panel`, of as many types as it has, none twice."""
    chance = random.Random(f"questions:{panel.seed}:{seed}")
    pools = _pools(chance, panel)
    for pool in pools.values():
        chance.shuffle(pool)
    found: list[Asked] = []
    while len(found) < count and any(pools.values()):
        kinds = [kind for kind in TYPES if pools[kind]]
        (kind,) = chance.choices(kinds, [_WEIGHTS[kind] for kind in kinds])
        found.append(pools[kind].pop())
    return found


def _pools(chance: random.Random, panel: Panel) -> dict[str, list[Asked]]:
    pools: dict[str, list[Asked]] = {kind: [] for kind in TYPES}

    def add(kind: str, text: str, answer: str, text_px: float, *subjects: str) -> None:
        pools[kind].append(Asked(text, answer, kind, text_px, subjects))

    visible = [seen for seen in panel.elements if not seen.hidden]
    for seen in visible:
        _about_one(chance, seen, add)
    if visible:
        smallest = min(seen.smallest_px for seen in visible)
        _about_places(panel, visible, add)
        _comparisons(visible, add)
        absent = _absent(chance, panel)
        if len(visible) == len(panel.elements):
            _about_all(chance, visible, add)
            if absent:
                add("not shown", f"What does {absent} read?", NOT_SHOWN, smallest)
            device = words.name(chance, words.DEVICES)
            if chance.random() < 0.4 and device not in {seen.element.name for seen in visible}:
                add("not shown", f"Is {device} on or off?", NOT_SHOWN, smallest)
            if absent and chance.random() < 0.3:
                add("json", f"What does {absent} read?{JSON_SUFFIX}", json.dumps({"value": None}), smallest)
    return pools


def _about_one(chance: random.Random, seen: Seen, add: Add) -> None:
    it, size = seen.element, seen.smallest_px
    if it.kind in (DISPLAY, GAUGE, BAR):
        question = f"What does {it.name} read?"
        add(it.kind, question, f"{it.value} {it.unit}", size, it.name)
        add("unit", f"What is the unit of {it.name}?", it.unit, size, it.name)
        number = json.loads(it.value) if "." in it.value else int(it.value)
        add(
            "json",
            question + JSON_SUFFIX,
            json.dumps({"value": number, "unit": it.unit}, ensure_ascii=False),
            size,
            it.name,
        )
    elif it.kind == PLATE:
        add(
            "plate",
            f"What is written under {it.name}?" if _under(seen) else f"What is written at {it.name}?",
            it.value,
            size,
            it.name,
        )
    else:
        question = f"Is {it.name} on or off?"
        add("state", question, it.value, size, it.name)
        if chance.random() < 0.4:
            add("json", question + JSON_SUFFIX, json.dumps({"state": it.value}), size, it.name)
        if it.kind == LAMP:
            add("colour", f"What colour is {it.name}?", it.colour, size, it.name)


def _under(seen: Seen) -> bool:
    return bool(seen.body[:, 1].mean() > seen.label[:, 1].mean())


def _about_places(panel: Panel, visible: list[Seen], add: Add) -> None:
    places = {seen.element.name: _place(panel, seen) for seen in panel.elements}
    crowd = Counter(places.values())
    for seen in visible:
        place = places[seen.element.name]
        if place and len(panel.elements) > 1:
            add("where", f"Where is {seen.element.name}?", place, seen.label_px, seen.element.name)
            if crowd[place] == 1 and None not in places.values():
                where = "in the centre" if place == "centre" else f"at the {place}"
                add("what", f"What is {where}?", seen.element.name, seen.label_px, seen.element.name)


def _place(panel: Panel, seen: Seen) -> str | None:
    """The cell that the element's middle lies in; None when it is too near to a border to say."""
    cell = []
    for middle, length in zip(seen.centre, panel.image.size, strict=True):
        share = middle / length
        if min(abs(share - 1 / 3), abs(share - 2 / 3)) < _CLEAR:
            return None
        cell.append(min(2, int(share * 3)))
    return _PLACES[cell[1]][cell[0]]


def _comparisons(visible: list[Seen], add: Add) -> None:
    numbers = [seen for seen in visible if seen.element.unit]
    for i, one in enumerate(numbers):
        for other in numbers[i + 1 :]:
            a, b = float(one.element.value), float(other.element.value)
            if one.element.unit == other.element.unit and a != b:
                names = (one.element.name, other.element.name)
                text = f"Which is higher, {names[0]} or {names[1]}?"
                add("compare", text, names[a < b], min(s.text_px for s in (one, other)), *names)


def _about_all(chance: random.Random, seen: list[Seen], add: Add) -> None:
    smallest = min(one.smallest_px for one in seen)
    lamps = [one.element for one in seen if one.element.kind == LAMP]
    lit = [lamp for lamp in lamps if lamp.value == ON]
    alarm = any(lamp.colour == "red" for lamp in lit)
    # Seldom where no lamp is red: a "no" to everything should not score.
    if chance.random() < (1.0 if any(lamp.colour == "red" for lamp in lamps) else 0.15):
        add("alarm", "Is any alarm on?", "yes" if alarm else "no", smallest)
    if lamps or chance.random() < 0.2:
        add("count", "How many lamps are on?", str(len(lit)), smallest)
        add("count", "How many lamps are there?", str(len(lamps)), smallest)
    for kind, plural in ((DISPLAY, "displays"), (SWITCH, "switches"), (GAUGE, "round gauges")):
        count = sum(one.element.kind == kind for one in seen)
        if count or chance.random() < 0.15:
            add("count", f"How many {plural} are there?", str(count), smallest)


def _absent(chance: random.Random, panel: Panel) -> str | None:
    """A name that the panel does not bear, or none. Some differ by the suffix only from one that it does."""
    present = {seen.element.name for seen in panel.elements}
    names = [words.name(chance, words.MEASURES) for _ in range(4)]
    for seen in panel.elements:
        if seen.element.unit and chance.random() < 0.3:
            names.insert(0, f"{seen.element.name.split(' ')[0]} {chance.choice(words.SUFFIXES)}")
    return next((name for name in names if name not in present), None)
