"""Memory budgets on the command line: what `--memory` means, and a plan as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from toolkit import report

if TYPE_CHECKING:
    from rpi_runtime.memory_plan import MemoryPlan


def memory_options(memory: str | None, branch: str) -> dict[str, Any]:
    """Arguments of `Session.open` for `--memory` and `--branch`. Raises `UsageError`."""
    if memory is None:
        return {}
    from rpi_runtime.encoder import BRANCHES
    from rpi_runtime.memory_plan import parse_budget

    branches = (branch,) if branch in BRANCHES else tuple(BRANCHES)
    return {"memory_budget": parse_budget(memory), "branches": branches}


def print_plan(title: str, plan: MemoryPlan) -> None:
    holders = list(dict.fromkeys(who for phase in plan.phases for who in phase.holds))
    rows: list[list[str]] = [
        [who, *(_mb(phase.holds[who]) if who in phase.holds else "" for phase in plan.phases)]
        for who in holders
    ]
    rows.append(["all", *(_mb(phase.bytes) for phase in plan.phases)])
    names = [phase.name for phase in plan.phases]
    report.table(title, ("MB", *names), rows, right=names)
    chosen = (plan.contexts[-1], plan.way)
    report.out.print(
        f"{plan.contexts[-1]:,} tokens, graphs {plan.way}: {_mb(plan.peak)} MB at most, "
        f"{_mb(plan.head_room)} MB of head room; fullest is {plan.fullest.name}",
        highlight=False,
    )
    rows = [
        [
            f"{context:,}",
            *(_mb(peak) + (" *" if (context, way) == chosen else "") for way, peak in ways.items()),
        ]
        for context, ways in plan.peaks.items()
    ]
    ways = list(next(iter(plan.peaks.values())))
    report.table("MB at most, by tokens of context", ("context", *ways), rows, right=("context", *ways))
    if plan.picture_pixels:
        report.out.print(
            f"pictures: JPEGs of any size; others up to {plan.picture_pixels / 1e6:.1f} megapixels",
            highlight=False,
        )


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f}"
