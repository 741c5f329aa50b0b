"""Figures beside those of an earlier report of the same devices and variants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from field.report.figures import Figures, Spread
from field.report.runs import DeviceRun, Results
from field.report.words import NONE, interval, megabytes, milliseconds, percent
from vqa.intervals import Share

NO_DIFFERENCE = "no difference shown"


@dataclass(frozen=True)
class Change:
    figure: str
    before: str
    before_interval: str
    now: str
    now_interval: str
    change: str
    in_percent: str
    verdict: str  # for shares of right answers


@dataclass(frozen=True)
class Compared:
    device: str
    variant: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Comparison:
    notes: tuple[str, ...]  # what makes the two less than alike
    compared: tuple[Compared, ...]
    alone: tuple[str, ...]  # what only one of the two has


Found = Sequence[tuple[DeviceRun, Sequence[Figures]]]


def compare(now: Results, found: Found, before: Results, found_before: Found) -> Comparison:
    """A device is found again by its address; where there was one, and is one, they are compared too."""
    notes: list[str] = []
    alone: list[str] = []
    compared: list[Compared] = []
    earlier = {device.name: (device, figures) for device, figures in found_before}
    if len(found) == len(found_before) == 1 and found[0][0].name not in earlier:
        (device_before, figures_before), name = found_before[0], found[0][0].name
        notes.append(f"{name} is compared with {device_before.name}: another device.")
        earlier = {name: (device_before, figures_before)}
    for device, figures in found:
        if device.name not in earlier:
            alone.append(f"{device.name} is new.")
            continue
        device_before, figures_before = earlier.pop(device.name)
        notes += _different(device_before, device)
        known = {one.variant.name: one for one in figures_before}
        for one in figures:
            if (other := known.pop(one.variant.name, None)) is None:
                alone.append(f"{device.name}: {one.variant.name} is new.")
            else:
                changes = _changes(other, one, _answered_otherwise(device_before, device, one.variant.name))
                compared.append(Compared(device.name, one.variant.name, changes))
        alone += [f"{device.name}: there is no {name} any more." for name in known]
    alone += [f"There is no {name} any more." for name in earlier]
    return Comparison(tuple(notes), tuple(compared), tuple(alone))


def _different(before: DeviceRun, now: DeviceRun) -> list[str]:
    notes = []
    if before.suite_sha256 != now.suite_sha256:
        notes.append(f"{now.name}: it was another suite, so what was asked, or how, has changed.")
    for what, then, today in (
        ("bundle", before.bundle, now.bundle),
        ("runtime", before.runtime, now.runtime),
    ):
        if then.get("id") != today.get("id"):
            notes.append(f"{now.name}: it was another {what}, {then.get('id')} and not {today.get('id')}.")
    if before.machine.get("kernel") != now.machine.get("kernel"):
        notes.append(f"{now.name}: it was another kernel, {before.machine.get('kernel')}.")
    return notes


def _answered_otherwise(before: DeviceRun, now: DeviceRun, variant: str) -> tuple[int, int]:
    """Of the questions that both have, about the same picture, how many got another answer; and how many
    those are. The last answer of each counts."""
    said, said_before = (
        {(a.case, a.question, a.image_sha256): a.answer for a in device.answers if a.variant == variant}
        for device in (now, before)
    )
    both = said.keys() & said_before.keys()
    return sum(said[key] != said_before[key] for key in both), len(both)


def _changes(before: Figures, now: Figures, otherwise: tuple[int, int]) -> tuple[Change, ...]:
    def measured(
        name: str,
        read: Callable[[Figures], float | None],
        told: Callable[[float], str],
        *,
        in_percent: bool = True,
    ) -> Change | None:
        then, today = read(before), read(now)
        if then is None and today is None:
            return None
        return Change(
            name,
            NONE if then is None else told(then),
            "",
            NONE if today is None else told(today),
            "",
            *(("", "") if then is None or today is None else _change(then, today, told, in_percent)),
            "",
        )

    def of(read: Callable[[Figures], Spread | None], which: str) -> Callable[[Figures], float | None]:
        return lambda figures: getattr(found, which) if (found := read(figures)) else None

    differ, both = otherwise
    sensors = sorted({power.sensor for figures in (before, now) for power in figures.power})
    rows = [
        _share_change("right, exactly", before.exact, now.exact),
        _share_change("right, numerically", before.numeric, now.numeric),
        Change("answered otherwise", "", "", f"{differ:,} of {both:,}", "", "", "", "") if both else None,
        measured("first token, median", of(lambda f: f.first_token, "median"), milliseconds),
        measured("first token, 95\N{NO-BREAK SPACE}%", of(lambda f: f.first_token, "p95"), milliseconds),
        measured("answer, median", of(lambda f: f.answer, "median"), milliseconds),
        measured("answer, 95\N{NO-BREAK SPACE}%", of(lambda f: f.answer, "p95"), milliseconds),
        measured("decoded tokens/s", lambda f: f.decode_tokens_per_s, lambda v: f"{v:,.1f}"),
        measured("visual tokens", lambda f: f.visual_tokens, lambda v: f"{v:,.0f}"),
        measured("peak memory", lambda f: f.peak_resident_bytes or None, megabytes),
        measured("hottest", lambda f: f.hottest_c, lambda v: f"{v:.1f} °C", in_percent=False),
        measured("slowest clock", lambda f: f.slowest_mhz, lambda v: f"{v:,.0f} MHz"),
        *(measured(f"power, {sensor}", _watts(sensor), lambda v: f"{v:.2f} W") for sensor in sensors),
        measured("errors", lambda f: f.errors, lambda v: f"{v:,.0f}", in_percent=False),
        measured("restarts", lambda f: f.restarts, lambda v: f"{v:,.0f}", in_percent=False),
    ]
    return tuple(row for row in rows if row is not None)


def _share_change(name: str, before: Share | None, now: Share | None) -> Change | None:
    if before is None and now is None:
        return None

    told = (
        percent(before.value if before else None),
        _interval(before),
        percent(now.value if now else None),
        _interval(now),
    )
    if before is None or now is None:
        return Change(name, *told, "", "", "")
    points = 100 * (now.value - before.value)
    overlap = before.low <= now.high and now.low <= before.high
    verdict = NO_DIFFERENCE if overlap else "better" if points > 0 else "worse"
    return Change(name, *told, f"{_signed(points, 1)} points", "", verdict)


def _interval(share: Share | None) -> str:
    return "" if share is None else interval(share)


def _change(before: float, now: float, told: Callable[[float], str], in_percent: bool) -> tuple[str, str]:
    if told(now) == told(before):
        return "none", ""
    share = f"{_signed(100 * (now / before - 1), 0)}\N{NO-BREAK SPACE}%" if before and in_percent else ""
    return f"{'+' if now > before else '−'}{told(abs(now - before))}", share


def _signed(value: float, digits: int) -> str:
    written = f"{abs(value):,.{digits}f}"
    return written if not float(written.replace(",", "")) else f"{'+' if value > 0 else '−'}{written}"


def _watts(sensor: str) -> Callable[[Figures], float | None]:
    return lambda figures: next((p.mean_watts for p in figures.power if p.sensor == sensor), None)
