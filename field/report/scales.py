"""Axes: round numbers at their marks, values to places, and lines with no more points than can be seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]

_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` (3 or more) multiples of 1, 2 or 5 times a power of ten, the first not above `low`, the
    last not below `high`."""
    low, high = min(low, high), max(low, high)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, as far as drawing goes
        reach = abs(high) * 0.1 or 1.0
        low, high = (0.0, 1.0) if not high else (low - reach, high + reach)
    exponent = math.floor(math.log10((high - low) / most))
    for power in (exponent, exponent + 1):
        for factor in (1, 2, 5):
            first, last = _around(low, high, factor, power)
            if last - first < most:
                return [_multiple(i, factor, power) for i in range(first, last + 1)]
    first, last = _around(low, high, 1, exponent + 2)
    return [_multiple(i, 1, exponent + 2) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, only those powers where that would be many; 0 < `low` <= `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    every = [_multiple(1, factor, power) for power in range(first, last + 1) for factor in factors]
    start = max((i for i, tick in enumerate(every) if tick <= low), default=0)
    end = min((i for i, tick in enumerate(every) if tick >= high), default=len(every) - 1)
    return every[start : max(end, start + 1) + 1]


def time_ticks(span_s: float, most: int = 6) -> list[float]:
    """Seconds from 0 on, none above `span_s`: whole seconds, minutes, hours, days."""
    for step in _STEPS_S:
        if span_s / step < most:
            return [float(step * i) for i in range(int(span_s // step) + 1)]
    return [86400 * days for days in ticks(0, span_s / 86400, most) if 86400 * days <= span_s]


@dataclass(frozen=True)
class Scale:
    """From values `low` to `high` to places `start` to `end`; what lies outside is drawn at the edge."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        share = (at - low) / (high - low) if high > low else 0.0
        return round(self.start + share * (self.end - self.start), 1)


def thin(points: Sequence[Point], buckets: int) -> list[Point]:
    """At most about two points in each of `buckets` parts of the way: the lowest and the highest there, so
    that no peak is lost. `points` ascend in the first of their numbers."""
    if len(points) <= 2 * buckets:
        return list(points)
    start, width = points[0][0], (points[-1][0] - points[0][0]) / buckets or 1.0
    kept: dict[int, tuple[int, int]] = {}  # bucket -> places of its lowest and its highest
    for place, (x, y) in enumerate(points):
        bucket = min(int((x - start) / width), buckets - 1)
        low, high = kept.get(bucket, (place, place))
        kept[bucket] = (place if y < points[low][1] else low, place if y > points[high][1] else high)
    ends = {0, len(points) - 1}
    return [points[place] for place in sorted(ends.union(*kept.values()))]


def _around(low: float, high: float, factor: int, power: int) -> tuple[int, int]:
    """Which multiples of a step enclose a range."""
    first = math.floor(_divided(low, factor, power))
    last = math.ceil(_divided(high, factor, power))
    # A division may fall just short of what the multiple itself has.
    while _multiple(first, factor, power) > low:
        first -= 1
    while _multiple(last, factor, power) < high:
        last += 1
    return first, last


def _divided(value: float, factor: int, power: int) -> float:
    return value / factor * 10.0**-power if power < 0 else value / (factor * 10.0**power)


def _multiple(i: int, factor: int, power: int) -> float:
    """Nearest to the decimal number, as 0.3 is and 3 * 0.1 is not."""
    return float(i * factor * 10**power) if power >= 0 else i * factor / 10**-power
