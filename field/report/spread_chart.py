"""How long answers took: a strip for each variant on each device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from field.report import svg
from field.report.figures import Spread
from field.report.scales import Scale, log_ticks, ticks
from field.report.svg import Drawing, tag
from field.report.words import counted, milliseconds

_LEFT, _RIGHT, _ROW = 14, svg.WIDTH - 14, 44
_MOST_DRAWN = 120  # single answers of a strip
_RATIO = 8  # of the largest and the smallest median, from which on an axis is logarithmic


@dataclass(frozen=True)
class Strip:
    name: str
    colour: int
    spread: Spread


def spread_chart(title: str, strips: Sequence[Strip]) -> Drawing | None:
    """None without anything measured. From the least to the most a thin line, with single answers; half of
    all in the box; the median a stroke, the 95th percentile a mark."""
    if not strips:
        return None
    medians = [max(strip.spread.median, 0.01) for strip in strips]
    most = max(strip.spread.most for strip in strips)
    is_log = max(medians) > _RATIO * min(medians)
    least = max(min(strip.spread.least for strip in strips), most / 1e5, 0.01)
    marks = log_ticks(least, max(most, least)) if is_log else ticks(0, most, 6)
    x = Scale(marks[0], marks[-1], _LEFT, _RIGHT, is_log)
    bottom = _ROW * len(strips) + 2
    divisor, unit = (1000, "s") if marks[-1] >= 5000 else (1, "ms")
    drawn = [tag("line", x1=x(at), x2=x(at), y1=16, y2=bottom, class_="grid") for at in marks]
    for at in marks:
        anchor = "end" if at == marks[-1] else "start" if at == marks[0] else "middle"
        told = f"{at / divisor:,g}" + (f" {unit}" if at == marks[-1] else "")
        place = x(at) + {"end": 10, "start": -10, "middle": 0}[anchor]
        drawn.append(tag("text", told, x=place, y=bottom + 15, text_anchor=anchor, class_="dim"))
    for i, strip in enumerate(strips):
        drawn += _strip(strip, x, _ROW * i)
    if is_log:
        drawn.append(
            tag("text", "logarithmic", x=svg.WIDTH / 2, y=bottom + 30, text_anchor="middle", class_="dim")
        )
    told = " ".join(map(_told, strips))
    return svg.drawing(title, told, bottom + (36 if is_log else 22), drawn)


def _strip(strip: Strip, x: Scale, top: float) -> list[Markup]:
    spread, number = strip.spread, strip.colour % svg.COLOURS
    figures = f"median {milliseconds(spread.median)}, 95 % in {milliseconds(spread.p95)}"
    y = top + 30
    step = max(1, len(spread.values) // _MOST_DRAWN)
    singles = "".join(f"M{x(value):g} {y - 5:g}v10" for value in spread.values[::step])
    room = svg.WIDTH - 16 - svg.width_of(figures)
    half = max(1.5, x(spread.three_quarters) - x(spread.quarter))
    return [
        tag("text", svg.shortened(strip.name, room), tag("title", strip.name), x=2, y=top + 14),
        tag("text", figures, x=svg.WIDTH - 2, y=top + 14, text_anchor="end", class_="dim"),
        tag("line", x1=x(spread.least), x2=x(spread.most), y1=y, y2=y, class_=f"line thin c{number}"),
        tag("path", d=singles, class_=f"line thin faint c{number}"),
        tag("rect", tag("title", "half of all answers"), class_=f"box c{number}",
            x=x(spread.quarter), y=y - 7, width=half, height=14),
        tag("line", tag("title", "median"), class_="median",
            x1=x(spread.median), x2=x(spread.median), y1=y - 9, y2=y + 9),
        svg.mark(strip.colour, x(spread.p95), y, tag("title", "95th percentile")),
    ]  # fmt: skip


def _told(strip: Strip) -> str:
    spread = strip.spread
    return (
        f"{strip.name}: {counted(len(spread.values), 'answer')}, median {milliseconds(spread.median)}, "
        f"95 % within {milliseconds(spread.p95)}, at most {milliseconds(spread.most)}."
    )
