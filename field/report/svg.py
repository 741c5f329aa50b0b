"""Drawings for a page: colours are the page's (classes `c0` ... `c6`), so that they follow its theme.

All are about as wide as a phone, and scale: on a larger screen they stand side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from markupsafe import Markup, escape

from field.report.values import printable

WIDTH = 400
COLOURS = 7
# Each colour has its dashes, for those who print in grey or do not see colours.
DASHES = ("", "7 3", "2 3", "5 2 1 2", "4 2", "12 4", "1 2")
LIMIT_DASHES = "10 4 2 4"
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


def width_of(text: str) -> float:
    """About, in units."""
    return len(text) * _CHARACTER


def legend(entries: Iterable[tuple[int, str, bool]], top: float) -> tuple[list[Markup], float]:
    """Samples of lines with their names, (number of the colour, name, is it a limit) each; and where it
    ends."""
    drawn: list[Markup] = []
    x, y = 0.0, top
    for number, name, is_limit in entries:
        text = shortened(name, WIDTH - 40)
        wide = 34 + width_of(text)
        if x and x + wide > WIDTH:
            x, y = 0.0, y + 18
        drawn.append(line(f"M{x:g} {y + 8:g}h22", number, is_limit))
        drawn.append(tag("text", text, x=x + 27, y=y + 12))
        x += wide + 8
    return drawn, y + 22 if drawn else top


def line(d: str, number: int, is_limit: bool = False, name: str = "") -> Markup:
    """A path in the colour of `number`, with its dashes; a limit looks like none of them."""
    colour = number % COLOURS
    style, dashes = (" limit", LIMIT_DASHES) if is_limit else ("", DASHES[colour])
    children = [tag("title", name)] if name else []
    return tag("path", *children, d=d, class_=f"line c{colour}{style}", stroke_dasharray=dashes or None)


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
