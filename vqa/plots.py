"""Two pictures of a report: what visual tokens buy, and how small a text may be.

Matplotlib is loaded when a picture is drawn: a board measures without it. Colours are Okabe and Ito's, which
people with any colour vision can tell apart: one for each model and branch, and a marker for each routing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpi_runtime.errors import ResourceError
from vqa.intervals import Share
from vqa.summary import TEXT_SIZE_BINS, ArmSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACCURACY_FILE = "accuracy.png"
TEXT_SIZE_FILE = "text_size.png"

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vP*Xhp<>"
_SIZE_INCHES, _DPI = (8.0, 5.0), 120
_APART = 0.015  # of the width


def draw(arms: Sequence[ArmSummary], folder: Path) -> list[Path]:
    """Writes `accuracy.png` and, when questions have text sizes, `text_size.png`; gives their paths.

    Raises `ResourceError` when Matplotlib is not installed.
    """
    drawn = [(ACCURACY_FILE, draw_accuracy)]
    if any(arm.by_text_px for arm in arms):
        drawn.append((TEXT_SIZE_FILE, draw_text_size))
    paths = []
    for name, draw_on in drawn:
        figure = _new_figure()
        draw_on(figure.add_subplot(), arms)
        figure.savefig(folder / name, dpi=_DPI)
        paths.append(folder / name)
    return paths


def draw_accuracy(axes: Axes, arms: Sequence[ArmSummary]) -> None:
    """Exact match against visual tokens per picture, a point per arm.

    A line joins the fixed scales of a model and branch: what routes well lies above it.
    """
    styles = _styles(arms)
    lines: dict[tuple[str, str], list[ArmSummary]] = defaultdict(list)
    for arm in arms:
        if arm.routing.startswith("fixed"):
            lines[arm.model, arm.branch].append(arm)
    for fixed in lines.values():
        points = sorted((a.cost.visual_tokens_per_picture, _percent(a.scores.exact)[0]) for a in fixed)
        colour = styles[arms.index(fixed[0])]["color"]
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=colour, linestyle=":", linewidth=1.2, zorder=1)
    most = max(arm.cost.visual_tokens_per_picture for arm in arms)
    for number, (arm, name) in enumerate(zip(arms, _short_names(arms), strict=True)):
        value, below, above = _percent(arm.scores.exact)
        # Apart a little, so that equal ones do not hide each other.
        x = arm.cost.visual_tokens_per_picture + _APART * most * ((number + 0.5) / len(arms) - 0.5)
        axes.errorbar([x], [value], [[below], [above]], label=name, linestyle="none", **styles[number])
    axes.set_xlabel("visual tokens per picture (mean)")
    axes.set_ylabel("exact match, %")
    axes.set_title(f"What visual tokens buy ({arms[0].scores.exact.asked:,} questions)")
    axes.set_xlim(0, 1.05 * most or 1)
    _finish(axes)


def draw_text_size(axes: Axes, arms: Sequence[ArmSummary]) -> None:
    """Exact match against the height of what must be read, a line per arm."""
    names, styles = _short_names(arms), _styles(arms)
    used = [b for b in TEXT_SIZE_BINS if any(s.group == b for arm in arms for s in arm.by_text_px)]
    for number, (arm, name) in enumerate(zip(arms, names, strict=True)):
        shift = 0.3 * ((number + 0.5) / len(arms) - 0.5)  # so that bars do not hide each other
        places = [used.index(scores.group) + shift for scores in arm.by_text_px]
        values, below, above = zip(*(_percent(scores.exact) for scores in arm.by_text_px), strict=True)
        axes.errorbar(places, values, [below, above], label=name, **styles[number], linewidth=1.2)
    asked = {scores.group: scores.exact.asked for arm in arms for scores in arm.by_text_px}
    axes.set_xticks(range(len(used)), [f"{b} px\n{asked[b]:,} questions" for b in used])
    axes.set_xlabel("height of what must be read, px of the picture as the file has it")
    axes.set_ylabel("exact match, %")
    axes.set_title("How small it may be")
    _finish(axes)


def _new_figure() -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ResourceError(
            "not installed: matplotlib, which draws the plots",
            "In the project's folder, pip install '.[train]'.",
        ) from None
    figure = Figure(_SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _percent(share: Share) -> tuple[float, float, float]:
    """Value and the reach of its interval below and above, in percent."""
    return 100 * share.value, 100 * (share.value - share.low), 100 * (share.high - share.value)


def _short_names(arms: Sequence[ArmSummary]) -> list[str]:
    """Names without what all arms have in common."""
    parts = [(arm.model, arm.routing, arm.branch) for arm in arms]
    differing = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    if not any(differing):
        return [arm.label for arm in arms]
    return [" ".join(p for p, wanted in zip(part, differing, strict=True) if wanted) for part in parts]


def _styles(arms: Sequence[ArmSummary]) -> list[dict[str, Any]]:
    """How each arm is drawn."""
    colours = list(dict.fromkeys((arm.model, arm.branch) for arm in arms))
    markers = list(dict.fromkeys(arm.routing for arm in arms))
    return [
        {
            "color": _COLOURS[colours.index((arm.model, arm.branch)) % len(_COLOURS)],
            "marker": _MARKERS[markers.index(arm.routing) % len(_MARKERS)],
            "markersize": 7,
            "capsize": 3,
            "elinewidth": 1,
        }
        for arm in arms
    ]


def _finish(axes: Axes) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2), min(high, 102))
    axes.grid(color="#E4E6E9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
