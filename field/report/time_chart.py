"""Lines over the time of a test: with gaps where nothing was measured, and marks where something happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from field.report import svg
from field.report.scales import Point, Scale, thin, ticks, time_ticks
from field.report.svg import Drawing, tag

_LEFT, _RIGHT, _HEIGHT, _MARKS = 46, svg.WIDTH - 8, 150, 22
_BUCKETS = 280  # of a line: fewer than units of width, and more than can be told apart


@dataclass(frozen=True)
class Line:
    name: str
    colour: int
    points: tuple[Point, ...]  # s from the start, value
    is_limit: bool = False  # what the others are to stay below


@dataclass(frozen=True)
class Mark:
    at_s: float
    sign: str  # one letter
    meaning: str
    text: str


@dataclass(frozen=True)
class Timeline:
    """What the drawings of one device share."""

    long_s: float
    gap_s: float  # with so long between two measurements, nothing was measured
    marks: tuple[Mark, ...]
    away: tuple[tuple[float, float], ...]  # from, to: when nothing was recorded
    throttled: tuple[tuple[float, float], ...]


def time_chart(
    title: str, unit: str, lines: Sequence[Line], timeline: Timeline, *, from_zero: bool, note: str = ""
) -> Drawing:
    """`lines` have a point at least."""
    measured = [y for one in lines for _, y in one.points]
    values = ticks(min(measured + [0.0] * from_zero), max(measured), 6)
    drawn, top = svg.legend([(one.colour, one.name, one.is_limit) for one in lines], 0)
    top += _MARKS
    bottom = top + _HEIGHT
    x = Scale(0, timeline.long_s or 1.0, _LEFT, _RIGHT)
    y = Scale(values[0], values[-1], bottom, top)

    drawn += [
        tag("rect", tag("title", "no records: the device was away, or the test stopped"),
            x=x(start), y=top, width=max(1.0, x(end) - x(start)), height=_HEIGHT, class_="away")
        for start, end in timeline.away
    ]  # fmt: skip
    for value in values:
        drawn.append(tag("line", x1=_LEFT, x2=_RIGHT, y1=y(value), y2=y(value), class_="grid"))
        drawn.append(tag("text", f"{value:,g}", x=_LEFT - 6, y=y(value) + 4, text_anchor="end", class_="dim"))
    drawn.append(tag("text", unit, x=_LEFT - 6, y=top - 11, text_anchor="end", class_="dim"))
    drawn += _time_axis(x, bottom, timeline.long_s)
    drawn += [
        tag("rect", tag("title", "throttled"), x=x(start), y=top, width=max(2.0, x(end) - x(start)), height=5,
            class_="throttled")
        for start, end in timeline.throttled
    ]  # fmt: skip
    drawn += list(_marks(timeline.marks, x, top, bottom))
    for one in lines:
        placed = [(x(at), y(value)) for at, value in one.points]
        parts = [placed] if one.is_limit else _parts(one.points, placed, timeline)
        shown = "".join(svg.path(thin(part, _BUCKETS)) for part in parts)
        drawn.append(svg.line(shown, one.colour, one.is_limit, one.name))
    keys, height = _keys(timeline, bottom + 26)
    return svg.drawing(title, _told(lines, unit, timeline), height, [*drawn, *keys], note)


def _parts(points: Sequence[Point], placed: Sequence[Point], timeline: Timeline) -> Iterator[list[Point]]:
    """`placed` cut where `points` have a gap that can be seen."""
    gap_s = max(timeline.gap_s, timeline.long_s / 200)
    start = 0
    for i, (before, after) in enumerate(pairwise(points), 1):
        if after[0] - before[0] > gap_s:
            yield list(placed[start:i])
            start = i
    yield list(placed[start:])


def _time_axis(x: Scale, bottom: float, long_s: float) -> Iterator[Markup]:
    marks = time_ticks(long_s)
    divisor, unit = next(
        (d, u) for d, u in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")) if marks[-1] >= d or d == 1
    )
    for at in marks:
        yield tag("line", x1=x(at), x2=x(at), y1=bottom, y2=bottom + 4, class_="axis")
        told = f"{at / divisor:g}"
        yield tag("text", told if at != marks[-1] else f"{told} {unit}", x=x(at), y=bottom + 17,
                  text_anchor="middle", class_="dim")  # fmt: skip
    yield tag("line", x1=_LEFT, x2=_RIGHT, y1=bottom, y2=bottom, class_="axis")


def _marks(marks: Sequence[Mark], x: Scale, top: float, bottom: float) -> Iterator[Markup]:
    last = -100.0
    for one in marks:
        at = x(one.at_s)
        yield tag("line", tag("title", one.text), x1=at, x2=at, y1=top, y2=bottom, class_="event")
        if at - last >= 10:  # letters one upon the other cannot be read
            yield tag("text", one.sign, tag("title", one.text), x=at, y=top - 4, text_anchor="middle")
            last = at


def _keys(timeline: Timeline, top: float) -> tuple[list[Markup], float]:
    """What shades and letters mean, of those that are there; and where that ends."""
    shades = ((timeline.throttled, "throttled"), (timeline.away, "away"))
    found = [(style, "no records" if style == "away" else style) for spans, style in shades if spans]
    found += [
        ("", f"{sign} {text}") for sign, text in dict.fromkeys((m.sign, m.meaning) for m in timeline.marks)
    ]
    drawn: list[Markup] = []
    x, y = 0.0, top
    for style, text in found:
        start = 22.0 if style else 0.0
        wide = start + svg.width_of(text)
        if x and x + wide > svg.WIDTH:
            x, y = 0.0, y + 17
        if style:
            drawn.append(tag("rect", x=x, y=y + 3, width=16, height=10, class_=style))
        drawn.append(tag("text", text, x=x + start, y=y + 12, class_="dim"))
        x += wide + 14
    return drawn, y + 18 if drawn else top - 4


def _told(lines: Sequence[Line], unit: str, timeline: Timeline) -> str:
    told = []
    for one in lines:
        values = [value for _, value in one.points]
        if one.is_limit:
            told.append(f"{one.name}.")
        else:
            told.append(
                f"{one.name}: {min(values):,.4g} to {max(values):,.4g} {unit}, at the end {values[-1]:,.4g}."
            )
    told += [f"{len(timeline.throttled)} times throttled."] if timeline.throttled else []
    told += [f"{len(timeline.away)} times without records."] if timeline.away else []
    return " ".join(told)
