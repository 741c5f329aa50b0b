"""From the records of a device to the figures of each variant; docs/field_report.md defines them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from field import records
from field.plan import Variant
from field.report.runs import Answer, Cost, DeviceRun, Routing, Sample, budget_bytes
from field.telemetry import THROTTLED
from vqa.intervals import Share, share

_NOW_BITS = 0xF  # of `Sample.throttled`: what is so at that moment
_SINCE_BOOT_SHIFT = 16  # the same four, of any time since the boot


@dataclass(frozen=True)
class Spread:
    """Of what was measured; a percentile between two values lies between them in proportion."""

    values: tuple[float, ...]  # ascending
    least: float
    quarter: float
    median: float
    three_quarters: float
    p95: float
    most: float


@dataclass(frozen=True)
class Group:
    """The judged answers of one question type, or one tile side."""

    name: str
    exact: Share
    numeric: Share


@dataclass(frozen=True)
class Power:
    sensor: str
    mean_watts: float  # while the variant was asked
    mwh_per_answer: float | None  # that, for as long as a mean answer takes; None without answers


@dataclass(frozen=True)
class Figures:
    """Of one variant on one device. None where nothing was measured."""

    device: str
    variant: Variant
    answers: int
    judged: int  # of them; the others have no expected answer
    questions: int  # different ones, of the judged
    errors: int
    given_up: int  # errors after which a question stayed without an answer
    restarts: int  # of the process
    exact: Share | None
    numeric: Share | None
    by_type: tuple[Group, ...]  # alphabetically
    by_side: tuple[Group, ...]  # descending
    first_token: Spread | None  # ms
    answer: Spread | None  # ms
    decode_tokens_per_s: float | None  # median of the answers with two tokens or more
    new_tokens: float | None  # mean
    visual_tokens: float | None  # mean of the answers about a picture
    saved: float | None  # share of the visual tokens that routing saved
    peak_resident_bytes: int  # 0 where the system does not tell
    budget_bytes: int | None
    hottest_c: float | None
    hottest_zone: str
    throttled: tuple[str, ...] | None  # what the firmware complained of
    slowest_mhz: float | None
    fastest_mhz: float | None
    power: tuple[Power, ...]

    @property
    def is_over_budget(self) -> bool:
        return self.budget_bytes is not None and self.peak_resident_bytes > self.budget_bytes


def figures_of(device: DeviceRun) -> tuple[Figures, ...]:
    """One for each variant, in the order of the suite."""
    return tuple(_figures(device, variant) for variant in device.variants)


def spread(measured: Iterable[float]) -> Spread | None:
    values = tuple(sorted(measured))
    if not values:
        return None
    quarter, median, three_quarters, p95 = (_quantile(values, share) for share in (0.25, 0.5, 0.75, 0.95))
    return Spread(values, values[0], quarter, median, three_quarters, p95, values[-1])


def typical_side_px(routing: Routing) -> int:
    """The side at which most tiles of a picture were encoded, without the thumbnail; the larger of equals."""
    found = Counter(routing.grid_sides_px)
    return max(found, key=lambda side: (found[side], side))


def _figures(device: DeviceRun, variant: Variant) -> Figures:
    answers = [a for a in device.answers if a.variant == variant.name]
    failures = [f for f in device.failures if f.variant == variant.name]
    samples = [s for s in device.samples if s.variant == variant.name]
    costs = [a.cost for a in answers if a.cost is not None]
    judged = [a for a in answers if a.exact is not None]
    speed = spread(c.decode_tokens_per_s for c in costs if c.decode_tokens_per_s)
    seeing = [c for c in costs if c.visual_tokens_unrouted]
    unrouted = sum(c.visual_tokens_unrouted for c in seeing)
    heat = max(((c, zone) for s in samples for zone, c in s.temperature_c.items()), default=None)
    clocks = [mhz for s in samples for mhz in s.clock_mhz.values()]
    peaks = [c.peak_resident_bytes for c in costs] + [s.peak_resident_bytes for s in samples]
    return Figures(
        device=device.name,
        variant=variant,
        answers=len(answers),
        judged=len(judged),
        questions=len({(a.case, a.image_sha256) for a in judged}),
        errors=len(failures),
        given_up=sum(f.is_final for f in failures),
        restarts=sum(e.what == records.RESTART and e.variant == variant.name for e in device.events),
        exact=_share(judged, "exact") if judged else None,
        numeric=_share(judged, "numeric") if judged else None,
        by_type=_grouped(judged, lambda a: a.type, sorted),
        by_side=_sides([a for a in judged if a.routing is not None]),
        first_token=spread(c.first_token_ms for c in costs),
        answer=spread(c.answer_ms for c in costs),
        decode_tokens_per_s=speed.median if speed else None,
        new_tokens=_mean([c.new_tokens for c in costs]),
        visual_tokens=_mean([c.visual_tokens for c in seeing]),
        saved=1 - sum(c.visual_tokens for c in seeing) / unrouted if unrouted else None,
        peak_resident_bytes=max(peaks, default=0),
        budget_bytes=budget_bytes(variant),
        hottest_c=heat[0] if heat else None,
        hottest_zone=heat[1] if heat else "",
        throttled=_throttled(device.samples, variant.name),
        slowest_mhz=min(clocks, default=None),
        fastest_mhz=max(clocks, default=None),
        power=_power(samples, costs),
    )


def _share(judged: Sequence[Answer], rule: str) -> Share:
    """Answers about one picture are not independent, and those to one question that is asked again still
    less."""
    return share((a.image_sha256 or a.case, getattr(a, rule) is True) for a in judged)


def _grouped(
    judged: Sequence[Answer], group_of: Callable[[Answer], str], order: Callable[[Iterable[str]], list[str]]
) -> tuple[Group, ...]:
    groups: dict[str, list[Answer]] = defaultdict(list)
    for answer in judged:
        groups[group_of(answer)].append(answer)
    return tuple(Group(n, _share(groups[n], "exact"), _share(groups[n], "numeric")) for n in order(groups))


def _sides(judged: Sequence[Answer]) -> tuple[Group, ...]:
    def side_of(answer: Answer) -> str:
        assert answer.routing is not None
        return f"{typical_side_px(answer.routing)} px"

    return _grouped(judged, side_of, lambda names: sorted(names, key=lambda n: -int(n.split()[0])))


def _throttled(samples: Sequence[Sample], variant: str) -> tuple[str, ...] | None:
    """What was so at a moment when the variant was asked, or came to be between two of them: the firmware
    keeps that until the next boot."""
    bits, before, is_told = 0, None, False
    for sample in samples:
        now = sample.throttled
        if now is not None and sample.variant == variant:
            is_told = True
            new = 0 if before is None else now >> _SINCE_BOOT_SHIFT & ~(before >> _SINCE_BOOT_SHIFT)
            bits |= (now | new) & _NOW_BITS
        before = now if now is not None else before
    return tuple(THROTTLED[bit] for bit in range(4) if bits >> bit & 1) if is_told else None


def _power(samples: Sequence[Sample], costs: Sequence[Cost]) -> tuple[Power, ...]:
    answer_ms = _mean([c.answer_ms + c.load_ms for c in costs])
    found = []
    for sensor in sorted({sensor for s in samples for sensor in s.watts}):
        watts = _mean([s.watts[sensor] for s in samples if sensor in s.watts]) or 0.0
        found.append(Power(sensor, watts, None if answer_ms is None else watts * answer_ms / 3600))
    return tuple(found)


def _mean(measured: Sequence[float]) -> float | None:
    return sum(measured) / len(measured) if measured else None


def _quantile(ascending: Sequence[float], share_below: float) -> float:
    place = share_below * (len(ascending) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (ascending[above] - ascending[below]) * (place - below)
