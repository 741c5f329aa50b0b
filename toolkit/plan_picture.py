"""Draws a memory plan: a column for each phase of an answer, stacked from what is held, under the budget."""

from __future__ import annotations

import os

from PIL import Image, ImageDraw

from rpi_runtime.manifest import COMPONENTS
from rpi_runtime.memory_plan import MemoryPlan
from toolkit.drawing import COLOURS, EMPTY, FAINT, INK, PAPER, font_of

WIDTH_PX, HEIGHT_PX = 1000, 620
_LEFT, _TOP, _RIGHT, _BOTTOM = 80, 70, 700, 540  # of the columns
# One for each holder, the same in every plan. The process is there whatever is planned: it has no colour.
_COLOUR_OF = {
    "process": "#BDC1C6",
    **dict(
        zip((*COMPONENTS, "keys and values", "inputs", "visual tokens", "picture"), COLOURS, strict=True),
    ),
    "tile": "#8A8F94",
}


def draw_plan(plan: MemoryPlan, out_path: str | os.PathLike[str]) -> None:
    """Writes a PNG of `WIDTH_PX` x `HEIGHT_PX`."""
    page = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), PAPER)
    draw = ImageDraw.Draw(page)
    holders = list(dict.fromkeys(who for phase in plan.phases for who in phase.holds))
    # A budget far above the plan would press it flat: its line is then left out, and the title says it.
    top = min(plan.budget, round(1.5 * plan.peak))
    high = _BOTTOM - _TOP

    def y(count: float) -> float:
        return _BOTTOM - high * count / (1.04 * top)

    for mark in _marks(top):
        draw.line((_LEFT, y(mark), _RIGHT, y(mark)), fill=EMPTY)
        label = f"{mark / 1e6:,.0f}"
        wide = draw.textlength(label, font=font_of(16))
        draw.text((_LEFT - 8 - wide, y(mark) - 9), label, font=font_of(16), fill=FAINT)
    draw.text(
        (_LEFT - 8 - draw.textlength("MB", font=font_of(16)), _TOP - 28), "MB", font=font_of(16), fill=FAINT
    )

    step = (_RIGHT - _LEFT) / len(plan.phases)
    for i, phase in enumerate(plan.phases):
        left, right = _LEFT + (i + 0.12) * step, _LEFT + (i + 0.88) * step
        held = 0
        for who, count in phase.holds.items():
            draw.rectangle((left, y(held + count), right, y(held)), fill=_COLOUR_OF[who])
            held += count
        middle = (left + right) / 2
        above = y(held) - 22
        if above - 2 < y(plan.budget) < above + 20:  # the line of the budget would go through it
            above = y(plan.budget) - 22
        for text, at, ink in (
            (f"{held / 1e6:,.1f}", above, INK),
            (phase.name, _BOTTOM + 8, INK if phase.name == plan.fullest.name else FAINT),
        ):
            wide = draw.textlength(text, font=font_of(16))
            draw.text((middle - wide / 2, at), text, font=font_of(16), fill=ink)
    if plan.budget == top:
        draw.line((_LEFT, y(top), _RIGHT, y(top)), fill=INK, width=2)
    draw.line((_LEFT, _BOTTOM, _RIGHT, _BOTTOM), fill=FAINT)

    title = f"{plan.peak / 1e6:,.1f} of {plan.budget / 1e6:,.0f} MB"
    draw.text((_LEFT, 14), title, font=font_of(24), fill=INK)
    below = (
        f"{plan.chosen.context_tokens:,} tokens of context, graphs {plan.chosen.way}; the peak has a margin"
    )
    draw.text((_LEFT, HEIGHT_PX - 34), below, font=font_of(16), fill=FAINT)
    row = _TOP
    for who in reversed(holders):
        draw.rectangle((_RIGHT + 30, row, _RIGHT + 50, row + 20), fill=_COLOUR_OF[who])
        most = max(phase.holds.get(who, 0) for phase in plan.phases)
        draw.text((_RIGHT + 60, row), f"{who}, {most / 1e6:,.1f}", font=font_of(16), fill=INK)
        row += 32
    page.save(out_path, "PNG")


def _marks(top: int) -> list[int]:
    """Four to ten round numbers of bytes up to `top`."""
    step = 10 ** (len(str(top)) - 1)
    while top / step < 4:
        step //= 2
    return [step * i for i in range(1, top // step + 1)]
