"""Questions about panels, against a second opinion: everything is recomputed from the panel's elements."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest

from rpi_runtime.errors import UsageError
from vqa.panels.dataset import check_split
from vqa.panels.panel import Difficulty, Panel, Seen, make_panel
from vqa.panels.questions import JSON_SUFFIX, NOT_SHOWN, TYPES, Asked, ask

_PANELS = 40
_SMALL = Difficulty(longest_px=420, crowded=0.5)
_COUNTED = {"displays": "display", "switches": "switch", "round gauges": "gauge", "lamps": "lamp"}


@lru_cache(maxsize=1)
def _asked() -> list[tuple[Panel, list[Asked]]]:
    """Panels of both splits with every question about them."""
    panels = [make_panel(("train", "test")[i % 2], i, _SMALL) for i in range(_PANELS)]
    return [(panel, ask(panel, 1000)) for panel in panels]


def _named(panel: Panel) -> dict[str, Seen]:
    return {seen.element.name: seen for seen in panel.elements}


def _about(panel: Panel, pattern: str, text: str) -> Seen | None:
    """The element that a question names, None when the panel has none of that name."""
    match = re.fullmatch(pattern, text)
    assert match is not None, text
    return _named(panel).get(match[1])


def _value_of(kind: str) -> Callable[[Panel, Asked], str]:
    def expected(panel: Panel, one: Asked) -> str:
        seen = _about(panel, r"What does (.+) read\?", one.text)
        assert seen is not None
        assert seen.element.kind == kind
        return f"{seen.element.value} {seen.element.unit}"

    return expected


def _unit(panel: Panel, one: Asked) -> str:
    seen = _about(panel, r"What is the unit of (.+)\?", one.text)
    assert seen is not None
    return seen.element.unit


def _plate(panel: Panel, one: Asked) -> str:
    seen = _about(panel, r"What is written (?:under|at) (.+)\?", one.text)
    assert seen is not None
    if "under" in one.text:
        assert seen.body[:, 1].mean() > seen.label[:, 1].mean()
    return seen.element.value


def _state(panel: Panel, one: Asked) -> str:
    seen = _about(panel, r"Is (.+) on or off\?", one.text)
    assert seen is not None
    assert seen.element.kind in ("lamp", "switch")
    return seen.element.value


def _colour(panel: Panel, one: Asked) -> str:
    seen = _about(panel, r"What colour is (.+)\?", one.text)
    assert seen is not None
    return seen.element.colour


def _count(panel: Panel, one: Asked) -> str:
    if one.text == "How many lamps are on?":
        return str(sum(s.element.kind == "lamp" and s.element.value == "on" for s in panel.elements))
    match = re.fullmatch(r"How many (.+) are there\?", one.text)
    assert match is not None
    return str(sum(s.element.kind == _COUNTED[match[1]] for s in panel.elements))


def _alarm(panel: Panel, one: Asked) -> str:
    lit = {s.element.colour for s in panel.elements if s.element.kind == "lamp" and s.element.value == "on"}
    return "yes" if "red" in lit else "no"


def _compare(panel: Panel, one: Asked) -> str:
    match = re.fullmatch(r"Which is higher, (.+) or (.+)\?", one.text)
    assert match is not None
    pair = [_named(panel)[name].element for name in match.groups()]
    assert pair[0].unit == pair[1].unit
    values = [float(element.value) for element in pair]
    assert values[0] != values[1]
    return pair[int(np.argmax(values))].name


def _place_of(panel: Panel, seen: Seen) -> str:
    """In a 3 x 3 grid, from the middle of the box around name and body."""
    corners = np.concatenate([seen.label, seen.body])
    middle = (corners.min(0) + corners.max(0)) / 2 / panel.image.size
    column, row = np.floor(3 * middle).astype(int)
    down, across = ("top", "", "bottom")[row], ("left", "", "right")[column]
    return " ".join(filter(None, (down, across))) or "centre"


def _where(panel: Panel, one: Asked) -> str:
    seen = _about(panel, r"Where is (.+)\?", one.text)
    assert seen is not None
    return _place_of(panel, seen)


def _what(panel: Panel, one: Asked) -> str:
    match = re.fullmatch(r"What is (?:at the|in the) (.+)\?", one.text)
    assert match is not None
    there = [s.element.name for s in panel.elements if _place_of(panel, s) == match[1]]
    assert len(there) == 1
    return there[0]


def _absent(panel: Panel, one: Asked) -> str:
    pattern = r"(?:What does|Is) (.+?) (?:read|on or off)\?"
    assert _about(panel, pattern, one.text) is None
    return NOT_SHOWN


def _json(panel: Panel, one: Asked) -> str:
    question = one.text.removesuffix(JSON_SUFFIX)
    assert question != one.text
    seen = _about(panel, r"(?:What does|Is) (.+?) (?:read|on or off)\?", question)
    if seen is None:
        record: dict[str, object] = {"value": None}
    elif question.startswith("Is "):
        record = {"state": seen.element.value}
    else:
        number = float(seen.element.value)
        record = {"value": number, "unit": seen.element.unit}
        assert isinstance(json.loads(one.answer)["value"], float) == ("." in seen.element.value)
    assert json.loads(one.answer) == record
    return one.answer


_EXPECTED: dict[str, Callable[[Panel, Asked], str]] = {
    "display": _value_of("display"), "gauge": _value_of("gauge"), "bar": _value_of("bar"),
    "plate": _plate, "unit": _unit, "state": _state, "colour": _colour, "count": _count,
    "compare": _compare, "where": _where, "what": _what, "alarm": _alarm, NOT_SHOWN: _absent, "json": _json,
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_the_answer_follows_from_the_elements(kind: str) -> None:
    questions = [(panel, one) for panel, asked in _asked() for one in asked if one.type == kind]
    assert len(questions) >= 3
    for panel, one in questions:
        assert one.answer == _EXPECTED[kind](panel, one), (panel.seed, one)


def test_nothing_is_asked_about_what_is_hidden_nor_about_all_when_one_is() -> None:
    hidden = 0
    for panel, asked in _asked():
        behind = [seen.element.name for seen in panel.elements if seen.hidden]
        hidden += bool(behind)
        for name in behind:
            named = re.compile(rf"(?<!\w){re.escape(name)}(?! \w\b|\w)")
            for one in asked:
                assert not named.search(one.text.replace(JSON_SUFFIX, "")), (panel.seed, one)
                assert one.answer != name
        if behind:
            assert not {one.type for one in asked} & {"count", "alarm", NOT_SHOWN}
    assert hidden


def test_no_question_comes_twice_and_their_number_is_at_most_what_was_asked_for() -> None:
    for panel, everything in _asked():
        assert max(Counter(one.text for one in everything).values(), default=1) == 1
        assert len(ask(panel, 5)) == min(5, len(everything))


def test_a_seed_decides_which_questions_come() -> None:
    panel, everything = max(_asked(), key=lambda pair: len(pair[1]))
    assert ask(panel, 8) == ask(panel, 8)
    assert ask(panel, 8) != ask(panel, 8, "another")
    assert len(everything) > 8


def test_where_there_is_much_to_read_reading_comes_most_often() -> None:
    types: Counter[str] = Counter()
    for panel, _ in _asked():
        if sum(seen.element.kind == "display" and not seen.hidden for seen in panel.elements) >= 3:
            types.update(one.type for one in ask(panel, 8))
    assert types.most_common(1)[0][0] == "display"


def test_answers_are_short_and_name_no_place_that_is_not_said() -> None:
    for _, asked in _asked():
        for one in asked:
            assert 0 < len(one.answer) <= 40
            assert one.answer == one.answer.strip()
            assert one.text_px > 0


def test_an_unknown_split_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="validation"):
        check_split("validaton")


def test_what_must_be_found_is_what_the_question_or_its_answer_names() -> None:
    for panel, asked in _asked():
        for one in asked:
            text = one.answer if one.type == "what" else one.text
            # Longest first: "Pump 1" is not "Pump".
            named, rest = [], text
            for name in sorted(_named(panel), key=len, reverse=True):
                if re.search(rf"\b{re.escape(name)}(?=[ ,?]|$)", rest):
                    named.append(name)
                    rest = rest.replace(name, "#")
            if one.type in ("alarm", "count", "not shown") or one.answer == '{"value": null}':
                assert one.subjects == ()
            else:
                assert sorted(one.subjects) == sorted(named), one
