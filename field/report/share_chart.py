"""How many answers were right: a bar for each group of questions and each variant, with its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from field.report import svg
from field.report.scales import Scale
from field.report.svg import Drawing, tag
from vqa.intervals import Share

_LEFT, _RIGHT, _ROW, _HEAD = 100, svg.WIDTH - 84, 18, 22


@dataclass(frozen=True)
class Bar:
    group: str
    name: str  # of the variant
    colour: int
    share: Share


def share_chart(title: str, bars: Sequence[Bar]) -> Drawing | None:
    """None without bars; those of a group stand together, in the order in which they come."""
    if not bars:
        return None
    groups: dict[str, list[Bar]] = {}
    for bar in bars:
        groups.setdefault(bar.group, []).append(bar)
    x = Scale(0, 1, _LEFT, _RIGHT)
    bottom = _HEAD * len(groups) + _ROW * len(bars)
    drawn = [
        tag("line", x1=x(at), x2=x(at), y1=4, y2=bottom, class_="grid") for at in (0, 0.25, 0.5, 0.75, 1)
    ]
    drawn += [
        tag(
            "text",
            f"{100 * at:g}" + (" %" if at else ""),
            x=x(at),
            y=bottom + 16,
            text_anchor="middle",
            class_="dim",
        )
        for at in (0, 0.5, 1)
    ]
    top = 0.0
    for group, members in groups.items():
        drawn.append(tag("text", svg.shortened(group, svg.WIDTH), x=2, y=top + 15, class_="head"))
        top += _HEAD
        for bar in members:
            drawn += _bar(bar, x, top)
            top += _ROW
    told = " ".join(f"{bar.group}, {bar.name}: {_told(bar.share)}." for bar in bars)
    return svg.drawing(title, told, bottom + 22, drawn)


def _bar(bar: Bar, x: Scale, top: float) -> list[Markup]:
    number, share = bar.colour % svg.COLOURS, bar.share
    middle = top + 7
    whisker = f"M{x(share.low):g} {middle - 4:g}v8m0 -4H{x(share.high):g}m0 -4v8"
    return [
        tag("text", svg.shortened(bar.name, _LEFT - 12), tag("title", bar.name),
            x=_LEFT - 6, y=top + 11, text_anchor="end"),
        tag("rect", tag("title", _told(share)), class_=f"bar c{number}",
            x=_LEFT, y=top, width=max(0.5, x(share.value) - _LEFT), height=14),
        tag("path", d=whisker, class_="whisker"),
        tag("text", f"{share.right:,} of {share.asked:,}", x=_RIGHT + 10, y=top + 11, class_="dim"),
    ]  # fmt: skip


def _told(share: Share) -> str:
    return (
        f"{share.right:,} of {share.asked:,} right, {100 * share.value:.0f} % "
        f"({100 * share.low:.0f} to {100 * share.high:.0f})"
    )
