"""The drawings of one device over time: heat, clock, memory, watts; those of which something was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from field import records
from field.report.runs import DeviceRun, Sample, budget_bytes
from field.report.svg import COLOURS, Drawing
from field.report.time_chart import Line, Mark, Timeline, time_chart

_SIGNS = {
    records.RESTART: ("R", "process restarted"),
    records.REBOOT: ("B", "reboot"),
    records.LOST: ("L", "lost"),
    records.STOPPED: ("S", "stopped"),
}
_NOW_BITS = 0xF
_ALIKE = 0.9  # of their samples: cores that share a clock are read one after another


def device_charts(device: DeviceRun, colours: Mapping[str, int]) -> list[Drawing]:
    """`colours` are the numbers of variants' colours."""
    if not device.samples:
        return []
    timeline = _timeline(device)
    drawn = [
        _sensors("Temperature", "°C", device.samples, lambda s: s.temperature_c, timeline, from_zero=False),
        _clock(device.samples, timeline),
        _memory(device, colours, timeline),
        _sensors("Power", "W", device.samples, lambda s: s.watts, timeline, from_zero=True),
    ]
    return [one for one in drawn if one is not None]


def _timeline(device: DeviceRun) -> Timeline:
    steps = [after.at_s - before.at_s for before, after in pairwise(device.samples)]
    gap_s = 3 * max(statistics.median(steps) if steps else 0.0, device.telemetry_s, 1.0)
    return Timeline(
        long_s=device.long_s,
        gap_s=gap_s,
        marks=tuple(
            Mark(event.at_s, *_SIGNS[event.what], text=event.text)
            for event in device.events
            if event.what in _SIGNS
        ),
        away=tuple((b.at_s, a.at_s) for b, a in pairwise(device.samples) if a.at_s - b.at_s > gap_s),
        throttled=tuple(_throttled(device.samples, gap_s)),
    )


def _throttled(samples: Sequence[Sample], gap_s: float) -> Iterable[tuple[float, float]]:
    """From the first to the last of samples in a row that say so."""
    start = end = None
    for sample in samples:
        is_so = bool((sample.throttled or 0) & _NOW_BITS)
        if start is not None and end is not None and (not is_so or sample.at_s - end > gap_s):
            yield start, end
            start = end = None
        if is_so:
            start, end = sample.at_s if start is None else start, sample.at_s
    if start is not None and end is not None:
        yield start, end


def _sensors(
    title: str,
    unit: str,
    samples: Sequence[Sample],
    read: Callable[[Sample], Mapping[str, float]],
    timeline: Timeline,
    *,
    from_zero: bool,
) -> Drawing | None:
    """A line for each sensor, the highest first; no more than there are colours."""
    found: dict[str, list[tuple[float, float]]] = {}
    for sample in samples:
        for name, value in read(sample).items():
            found.setdefault(name, []).append((sample.at_s, value))
    if not found:
        return None
    order = sorted(found, key=lambda name: -max(value for _, value in found[name]))
    lines = [Line(name, i, tuple(found[name])) for i, name in enumerate(order[:COLOURS])]
    left = len(order) - len(lines)
    note = f"{left} more sensors, none higher, are in the records." if left else ""
    return time_chart(title, unit, lines, timeline, from_zero=from_zero, note=note)


def _clock(samples: Sequence[Sample], timeline: Timeline) -> Drawing | None:
    """Cores that share a clock are one line."""
    found: dict[str, dict[float, float]] = {}
    for sample in samples:
        for core, mhz in sample.clock_mhz.items():
            found.setdefault(core, {})[sample.at_s] = mhz
    groups: list[list[str]] = []
    for core, clocks in found.items():
        for group in groups:
            first = found[group[0]]
            if sum(first.get(at) == mhz for at, mhz in clocks.items()) >= _ALIKE * len(clocks):
                group.append(core)
                break
        else:
            groups.append([core])
    if not groups:
        return None
    lines = [
        Line(group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}", i, tuple(found[group[0]].items()))
        for i, group in enumerate(groups[:COLOURS])
    ]
    return time_chart("Clock", "MHz", lines, timeline, from_zero=True)


def _memory(device: DeviceRun, colours: Mapping[str, int], timeline: Timeline) -> Drawing | None:
    """Of the process that answers; a line for each variant, and its budget where that is near."""
    lines, notes = [], []
    for variant in device.variants:
        mine = [s for s in device.samples if s.variant == variant.name and s.resident_bytes]
        points = tuple((s.at_s, s.resident_bytes / 1e6) for s in mine)
        if points:
            lines.append(Line(variant.name, colours[variant.name], points))
    if not lines:
        return None
    highest = max(mb for line in lines for _, mb in line.points)
    budgets = {v.name: budget_bytes(v) for v in device.variants}
    known = {budget for budget in budgets.values() if budget}
    for budget in sorted(known):
        whose = [name for name, one in budgets.items() if one == budget]
        name = f"budget {budget / 1e6:,.0f} MB"
        if len(known) > 1 or len(whose) < len(budgets):
            name += f" of {', '.join(whose)}"
        if budget / 1e6 > 3 * highest:
            notes.append(f"The {name} is far above, and not drawn.")
        else:
            line = ((0.0, budget / 1e6), (device.long_s, budget / 1e6))
            lines.append(Line(name, colours[whose[0]], line, is_limit=True))
    return time_chart(
        "Memory of the answering process",
        "MB",
        lines,
        timeline,
        from_zero=True,
        note=" ".join(notes),
    )
