"""Reads the records of each device. Nothing that a device wrote stops it: what cannot be read is counted.

results/
  suite.json                  what every device was asked
  pictures/                   about which, named by content
  <device>/records.jsonl      what happened there, and
  <device>/pictures/          what its camera took
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from field import records
from field.plan import RECORDS_FILE, SUITE_FILE, Variant
from field.report import values
from field.report.clock import TimeAxis
from field.report.runs import Answer, Cost, DeviceRun, Event, Failure, Results, Routing, Sample
from rpi_runtime.errors import UsageError


def read_results(folder: Path) -> Results:
    """Raises `UsageError` for a folder that has nothing of a field test."""
    found = sorted(path.parent for path in folder.glob(f"*/{RECORDS_FILE}") if path.is_file())
    if not found and not (folder / SUITE_FILE).is_file():
        raise UsageError(f"{folder} holds no results of a field test", f"It should have a {SUITE_FILE}.")
    return Results(folder, _suite(folder / SUITE_FILE), tuple(read_device(path) for path in found))


def read_device(folder: Path) -> DeviceRun:
    """The records of one device, torn and unknown ones counted."""
    reader = _Reader()
    seen: set[tuple[Any, int]] = set()
    with (folder / RECORDS_FILE).open("rb") as file:
        for line in file:
            record = _parsed(line)
            if record is None:
                reader.unreadable += bool(line.strip())
                continue
            told = (record["seq"], hash(line)) if type(record.get("seq")) is int else None
            if told is None or told not in seen:
                reader.add(record)
            if told is not None:
                seen.add(told)
    return reader.run(folder.name)


def _suite(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return values.mapping(found, "plan") or found


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        return records.parse(line)
    except RecursionError:
        return None


@dataclass
class _Reader:
    start: Mapping[str, Any] = field(default_factory=dict)
    variants: dict[str, Variant] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    axis: TimeAxis = field(default_factory=TimeAxis)
    variant: str = ""  # that was asked last
    began: float | None = None
    ended: float | None = None
    ran_s: float = 0.0
    unreadable: int = 0
    unknown: int = 0

    def add(self, record: Mapping[str, Any]) -> None:
        kinds: dict[str, Callable[[Mapping[str, Any], float, float | None], None]] = {
            records.START: self._start,
            records.ANSWER: self._answer,
            records.ERROR: self._failure,
            records.TELEMETRY: self._sample,
            records.EVENT: self._event,
        }
        if record["kind"] not in kinds:
            self.unknown += 1
            return
        t, ran_s = values.number(record, "t"), values.number(record, "ran_s")
        if record.get("host") is True:  # by the host's clock, which may be another
            at_s = self.axis.now
        else:
            at_s = self.axis.place(t, ran_s)
            self.ran_s = max(self.ran_s, ran_s or 0.0)
            self.began = t if self.began is None else self.began
            self.ended = t if t is not None else self.ended
        try:
            kinds[record["kind"]](record, at_s, t)
        except ValueError:
            self.unreadable += 1

    def run(self, folder: str) -> DeviceRun:
        address = values.text(self.start, "device")
        return DeviceRun(
            folder=values.printable(folder),
            address=address,
            machine=values.mapping(self.start, "machine"),
            bundle=values.mapping(self.start, "bundle"),
            runtime=values.mapping(self.start, "runtime"),
            suite_sha256=values.text(self.start, "suite_sha256"),
            variants=tuple(self.variants.values()),
            telemetry_s=values.number(self.start, "telemetry_s") or 0.0,
            answers=tuple(self.answers),
            failures=tuple(self.failures),
            samples=tuple(self.samples),
            events=tuple(self.events),
            began=self.began,
            ended=self.ended,
            ran_s=self.ran_s or self.axis.now,
            long_s=self.axis.now,
            unreadable=self.unreadable,
            unknown=self.unknown,
        )

    def _start(self, record: Mapping[str, Any], at_s: float, t: float | None) -> None:
        self.start = self.start or record
        for row in values.rows(record, "variants"):
            threads, memory = values.count(row, "threads"), row.get("memory")
            made = Variant(
                name=values.name(row, "name"),
                route=values.text(row, "route"),
                branch=values.text(row, "branch"),
                memory=memory if isinstance(memory, str) else None,
                delegate=values.text(row, "delegate"),
                threads=threads or None,
            )
            self.variants[made.name] = made

    def _answer(self, record: Mapping[str, Any], at_s: float, t: float | None) -> None:
        self._see(variant := values.name(record, "variant"))
        report = values.mapping(record, "report")
        pictures = values.rows(report, "images")
        self.answers.append(
            Answer(
                variant=variant,
                case=values.name(record, "case"),
                repetition=values.count(record, "repetition"),
                image=values.text(record, "image"),
                image_sha256=values.text(record, "image_sha256"),
                image_file=values.text(record, "image_file"),
                question=values.text(record, "question"),
                expected=values.text(record, "expected") if record.get("expected") is not None else None,
                type=values.text(record, "type", "other"),
                answer=values.text(record, "answer"),
                exact=values.flag(record, "exact"),
                numeric=values.flag(record, "numeric"),
                cost=_cost(report),
                routing=_routing(pictures[0]) if pictures else None,
                at_s=at_s,
            )
        )

    def _failure(self, record: Mapping[str, Any], at_s: float, t: float | None) -> None:
        if variant := values.text(record, "variant"):
            self._see(variant)
        self.failures.append(
            Failure(
                variant=variant,
                case=values.text(record, "case"),
                message=values.text(record, "message"),
                remedy=values.text(record, "remedy"),
                is_final=values.flag(record, "fatal") is True,
                at_s=at_s,
                t=t,
            )
        )

    def _sample(self, record: Mapping[str, Any], at_s: float, t: float | None) -> None:
        throttled = values.number(record, "throttled")
        self.samples.append(
            Sample(
                variant=values.text(record, "variant"),
                temperature_c=values.numbers(record, "temperature_c"),
                clock_mhz=values.numbers(record, "clock_mhz"),
                throttled=None if throttled is None else int(abs(throttled)),
                watts=values.numbers(record, "watts"),
                resident_bytes=values.count(record, "resident_bytes"),
                peak_resident_bytes=values.count(record, "peak_resident_bytes"),
                available_bytes=values.count(record, "memory_available_bytes"),
                at_s=at_s,
            )
        )

    def _event(self, record: Mapping[str, Any], at_s: float, t: float | None) -> None:
        self.events.append(
            Event(
                what=values.text(record, "what"),
                text=values.text(record, "text"),
                variant=values.text(record, "variant") or self.variant,
                is_of_host=record.get("host") is True,
                at_s=at_s,
                t=t,
            )
        )

    def _see(self, variant: str) -> None:
        self.variant = variant
        self.variants.setdefault(variant, Variant(variant, route="", branch="", delegate=""))


def _cost(report: Mapping[str, Any]) -> Cost | None:
    times = values.mapping(report, "times")
    first, total = values.number(times, "first_token_ms"), values.number(times, "total_ms")
    if first is None or total is None:
        return None
    load = values.number(times, "load_ms") or 0.0
    return Cost(
        first_token_ms=max(0.0, first - load),
        answer_ms=max(0.0, total - load),
        load_ms=load,
        new_tokens=values.count(report, "new_tokens"),
        decode_tokens_per_s=values.number(report, "decode_tokens_per_s") or 0.0,
        visual_tokens=values.count(report, "visual_tokens"),
        visual_tokens_unrouted=values.count(report, "visual_tokens_unrouted"),
        peak_resident_bytes=values.count(values.mapping(report, "memory"), "peak_resident_bytes"),
    )


def _routing(picture: Mapping[str, Any]) -> Routing | None:
    """None for what is no whole grid."""
    sides, tokens = values.counts(picture, "sides_px"), values.counts(picture, "tokens")
    found = Routing(
        width_px=values.count(picture, "width_px"),
        height_px=values.count(picture, "height_px"),
        columns=values.count(picture, "columns"),
        rows=values.count(picture, "rows"),
        sides_px=sides,
        tokens=tokens,
        tokens_unrouted=values.count(picture, "tokens_unrouted"),
    )
    is_grid = min(found.width_px, found.height_px, found.columns, found.rows) > 0
    cells = found.columns * found.rows
    return found if is_grid and len(sides) == len(tokens) and cells <= len(sides) <= 1000 else None
