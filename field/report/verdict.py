"""The figures of a whole field test in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from field import records
from field.report.figures import Figures
from field.report.runs import DeviceRun
from field.report.words import counted, duration, interval, megabytes, milliseconds, percent


@dataclass(frozen=True)
class Verdict:
    is_fine: bool
    sentences: tuple[str, ...]


_EVENTS = (
    (records.RESTART, "restart of the process", "restarts of the process"),
    (records.REBOOT, "reboot", "reboots"),
    (records.LOST, "time out of reach", "times out of reach"),
)
Found = Sequence[tuple[DeviceRun, Sequence[Figures]]]


def verdict(found: Found) -> Verdict:
    figures = [one for _, of_device in found for one in of_device]
    troubles = [*_troubles(found), *_limits(figures)]
    answers = sum(one.answers for one in figures)
    sentences = [f"{counted(answers, 'answer')} from {counted(len(found), 'device')}{_time(found)}."]
    sentences += _quality(figures)
    sentences += [f"To look at: {'; '.join(troubles)}."] if troubles else []
    if answers and not troubles:
        sentences.append("No errors, no restarts, nothing throttled, no budget exceeded.")
    return Verdict(bool(answers) and not troubles, tuple(sentences))


def _time(found: Found) -> str:
    longest = max((device.ran_s for device, _ in found), default=0.0)
    return f" in {duration(longest)}" if longest >= 1 else ""


def _quality(figures: Sequence[Figures]) -> list[str]:
    told = []
    judged = [one for one in figures if one.exact is not None]
    many = len(figures) > 1
    if judged:
        best = max(judged, key=lambda one: one.exact.value if one.exact else 0.0)
        share = best.exact
        assert share is not None
        told.append(
            f"{'Most' if many else 'Of them'} right: {percent(share.value)} ({interval(share)})"
            + (f", {_name(best, figures)}." if many else ".")
        )
    elif any(one.answers for one in figures):
        told.append("No expected answers, so none was judged.")
    timed = [one for one in figures if one.first_token is not None]
    if timed:
        ms = {id(one): one.first_token.median for one in timed if one.first_token}
        fast, slow = min(timed, key=lambda one: ms[id(one)]), max(timed, key=lambda one: ms[id(one)])
        if fast is slow:
            told.append(f"First token after {milliseconds(ms[id(fast)])} (median).")
        else:
            told.append(
                f"First token after {milliseconds(ms[id(fast)])} (median, {_name(fast, figures)}) to "
                f"{milliseconds(ms[id(slow)])} ({_name(slow, figures)})."
            )
    return told


def _troubles(found: Found) -> list[str]:
    told = []
    for device, of_device in found:
        name = f"{device.name}: " if len(found) > 1 else ""
        final = sum(failure.is_final for failure in device.failures)
        if final:
            told.append(f"{name}{counted(final, 'question')} given up")
        elif device.failures:
            told.append(f"{name}{counted(len(device.failures), 'error')}")
        for what, one, many in _EVENTS:
            if number := sum(event.what == what for event in device.events):
                told.append(f"{name}{number:,} {one if number == 1 else many}")
        if device.answers and not device.is_done:
            told.append(f"{name}the test is not done")
        if not device.answers:
            told.append(f"{name}no answers")
        if device.unreadable:
            told.append(f"{name}{counted(device.unreadable, 'record')} cannot be read")
    return told


def _limits(figures: Sequence[Figures]) -> list[str]:
    told = []
    for one in figures:
        if one.is_over_budget and one.budget_bytes is not None:
            over = megabytes(one.peak_resident_bytes - one.budget_bytes)
            told.append(f"{_name(one, figures)}: {over} over its memory budget")
        if one.throttled:
            told.append(f"{_name(one, figures)}: {', '.join(one.throttled)}")
    return told


def _name(one: Figures, among: Sequence[Figures]) -> str:
    return f"{one.device}, {one.variant.name}" if len({f.device for f in among}) > 1 else one.variant.name
