"""The figures of a whole field test in a few sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from field import records
from field.report.figures import Figures
from field.report.runs import DeviceRun
from field.report.words import counted, duration, interval, megabytes, milliseconds, percent
from vqa.intervals import Share


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
        sentences.append(f"{', '.join(_fine(figures)).capitalize()}.")
    return Verdict(bool(answers) and not troubles, tuple(sentences))


def _fine(figures: Sequence[Figures]) -> Iterator[str]:
    """Of what could have been seen."""
    yield "no errors, no restarts"
    if all(one.throttled is not None for one in figures):
        yield "nothing throttled"
    if any(one.budget_bytes for one in figures):
        yield "no memory budget exceeded"


def _time(found: Found) -> str:
    longest = max((device.ran_s for device, _ in found), default=0.0)
    return f" in {duration(longest)}" if longest >= 1 else ""


def _quality(figures: Sequence[Figures]) -> list[str]:
    told = []
    judged = [one for one in figures if one.exact is not None]
    if judged:
        told.append(_right([(one, one.exact) for one in judged if one.exact], figures))
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


def _right(judged: Sequence[tuple[Figures, Share]], figures: Sequence[Figures]) -> str:
    best, share = max(judged, key=lambda one: one[1].value)
    worst, least = min(judged, key=lambda one: one[1].value)
    told = f"{percent(share.value)} ({interval(share)}) of the answers are right"
    if len(judged) == 1:
        return f"{told}."
    if percent(least.value) == percent(share.value):
        return f"{told}, in every variant."
    fewest = f"{percent(least.value)} with {_name(worst, figures)}"
    return f"{told} with {_name(best, figures)}; the fewest, {fewest}."


def _troubles(found: Found) -> list[str]:
    told = []
    for device, _ in found:
        if mine := ", ".join(_trouble(device)):
            told.append(f"{device.name}: {mine}" if len(found) > 1 else mine)
    return told


def _trouble(device: DeviceRun) -> Iterator[str]:
    final = sum(failure.is_final for failure in device.failures)
    if not device.answers:
        yield "no answers"
    elif not device.is_done:
        yield "the test is not done"
    if device.failures:
        yield counted(len(device.failures), "error") + (f" ({final:,} given up)" if final else "")
    for what, one, many in _EVENTS:
        if number := sum(event.what == what for event in device.events):
            yield f"{number:,} {one if number == 1 else many}"
    if device.unreadable:
        yield f"{counted(device.unreadable, 'record')} that cannot be read"


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
