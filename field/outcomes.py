"""What a device did in each variant, counted from its records."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from field import records
from field.plan import Plan
from field.records import Record


@dataclass(frozen=True)
class VariantOutcome:
    variant: str
    answers: int
    judged: int  # answers to questions with an expected one
    exact: int
    median_ms: float | None  # of whole answers, without opening graphs; None without answers
    p95_ms: float | None
    peak_resident_bytes: int
    hottest_c: float | None
    restarts: int  # of the process that answers
    errors: int  # questions, or all of a variant, that were given up

    @property
    def accuracy(self) -> float | None:
        return self.exact / self.judged if self.judged else None


@dataclass(frozen=True)
class DeviceOutcome:
    variants: tuple[VariantOutcome, ...]
    reboots: int
    lost: int  # how often the connection was
    camera_errors: int

    @property
    def errors(self) -> int:
        return self.camera_errors + sum(variant.errors for variant in self.variants)


def outcome_of(plan: Plan, written: Iterable[Record]) -> DeviceOutcome:
    told = list(written)

    def events(what: str) -> list[Record]:
        return [r for r in told if r["kind"] == records.EVENT and r["what"] == what]

    fatal = [r for r in told if r["kind"] == records.ERROR and r["fatal"]]
    return DeviceOutcome(
        variants=tuple(_variant(v.name, told, events(records.RESTART), fatal) for v in plan.variants),
        reboots=len(events(records.REBOOT)),
        lost=len(events(records.LOST)),
        camera_errors=sum(not r["variant"] for r in fatal),
    )


def answer_ms(record: Record) -> float:
    """Of a whole answer, without opening graphs."""
    times = record["report"]["times"]
    return float(times["total_ms"] - times["load_ms"])


def percentile(values: list[float], share: float) -> float:
    """Between the two values that are nearest."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _variant(name: str, told: list[Record], restarts: list[Record], fatal: list[Record]) -> VariantOutcome:
    of = [r for r in told if r.get("variant") == name]
    answers = [r for r in of if r["kind"] == records.ANSWER]
    judged = [r["exact"] for r in answers if r["exact"] is not None]
    times = [answer_ms(r) for r in answers]
    temperatures = [c for r in of if r["kind"] == records.TELEMETRY for c in r["temperature_c"].values()]
    peaks = [r["report"]["memory"]["peak_resident_bytes"] for r in answers]
    return VariantOutcome(
        variant=name,
        answers=len(answers),
        judged=len(judged),
        exact=sum(judged),
        median_ms=statistics.median(times) if times else None,
        p95_ms=percentile(times, 0.95) if times else None,
        peak_resident_bytes=max(peaks, default=0),
        hottest_c=max(temperatures, default=None),
        restarts=sum(r["variant"] == name for r in restarts),
        errors=sum(r["variant"] == name for r in fatal),
    )
