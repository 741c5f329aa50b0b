"""Drawings for a page: colours are the page's (classes `c0` ... `c6`), so that they follow its theme.

All are about as wide as a phone, and scale: on a larger screen they stand side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from markupsafe import Markup, escape

from field.report.values import printable

WIDTH = 440
COLOURS = 7
# Each colour has its dashes, for those who print in grey or do not see colours.
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 2")
_CHARACTER = 6.4  # of text 12 units high, about


@dataclass(frozen=True)
class Drawing:
    title: str
    told: str  # for who does not see it
    svg: Markup
    note: str = ""  # below the title


def tag(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """An element. Children are text, but for Markup; `class_` is "class", `stroke_width` "stroke-width"."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _attribute(value))
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(
        child if isinstance(child, Markup) else escape(printable(child)) for child in children
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inner)


def drawing(title: str, told: str, height: float, children: Iterable[Markup], note: str = "") -> Drawing:
    svg = tag(
        "svg", tag("title", title), tag("desc", told), *children,
        viewBox=f"0 0 {WIDTH} {height:g}", role="img",
    )  # fmt: skip
    return Drawing(title, told, svg, note)


def path(points: Iterable[tuple[float, float]]) -> str:
    """Straight lines through `points`; one point alone is a dot, by the round ends of lines."""
    told = [f"{x:g} {y:g}" for x, y in points]
    return f"M{'L'.join(told)}" if len(told) > 1 else f"M{told[0]}h0"


def shortened(text: str, width: float) -> str:
    """What fits in about `width` units."""
    room = max(3, int(width / _CHARACTER))
    text = printable(text)
    return text if len(text) <= room else f"{text[: room - 1]}…"


def legend(entries: Iterable[tuple[int, str]], top: float) -> tuple[list[Markup], float]:
    """Samples of lines with their names, (number of the colour, name) each; and where it ends."""
    drawn: list[Markup] = []
    x, y = 0.0, top
    for number, name in entries:
        text = shortened(name, WIDTH - 40)
        wide = 34 + len(text) * _CHARACTER
        if x and x + wide > WIDTH:
            x, y = 0.0, y + 18
        drawn.append(line(x, y + 8, x + 22, y + 8, number))
        drawn.append(tag("text", text, x=x + 27, y=y + 12))
        x += wide + 8
    return drawn, y + 22 if drawn else top


def line(x1: float, y1: float, x2: float, y2: float, number: int) -> Markup:
    return tag(
        "line", x1=x1, y1=y1, x2=x2, y2=y2,
        class_=f"line c{number % COLOURS}", stroke_dasharray=DASHES[number % COLOURS] or None,
    )  # fmt: skip


def mark(number: int, x: float, y: float, *children: Markup) -> Markup:
    """A small shape, another for each colour."""
    shapes = (
        "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
        "M-4 -4h8v8h-8z",
        "M0 -5L5 4H-5z",
        "M0 -5L5 0L0 5L-5 0z",
        "M-5 -4H5L0 5z",
        "M-1.5 -5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
        "M-5 -2h10v4h-10z",
    )
    colour = number % COLOURS
    return tag(
        "path", *children, d=shapes[colour], class_=f"fill c{colour}", transform=f"translate({x:g} {y:g})"
    )


def colours_of(names: Iterable[str]) -> dict[str, int]:
    """The same name has the same colour in all drawings of a page."""
    numbers = count()
    found: dict[str, int] = {}
    for name in names:
        if name not in found:
            found[name] = next(numbers)
    return found


def _attribute(value: str | float) -> str:
    return value if isinstance(value, str) else f"{round(value, 1):g}"
