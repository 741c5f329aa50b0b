"""What `toolkit field-test` shows: a line per device while it runs, and a table when it has."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn

from toolkit import report

if TYPE_CHECKING:
    from field.address import Address
    from field.outcomes import DeviceOutcome
    from field.plan import Plan
    from field.records import Record

_LINE_EVERY_S = 60.0  # off a terminal


class DevicesBar:
    """Hears of every record, from several threads."""

    def __init__(self, plan: Plan, answers: Mapping[Address, int]) -> None:
        """`answers` are those of an earlier run, by device."""
        self._plan = plan
        self._lock = threading.Lock()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[told]}"),
            console=report.err,
            disable=not report.err.is_terminal,
        )
        self._devices = {
            at: _Device(self._bar.add_task(str(at), total=1, told=""), done) for at, done in answers.items()
        }

    def __call__(self, address: Address, record: Record) -> None:
        with self._lock:
            device = self._devices[address]
            device.count(record)
            if line := _line(record):
                report.note(f"{address}: {line}")
            done, told = device.progress(self._plan)
            self._bar.update(device.task, completed=done, told=told)  # type: ignore[arg-type]
            if not report.err.is_terminal and time.monotonic() - device.told_at > _LINE_EVERY_S:
                device.told_at = time.monotonic()
                report.note(f"{address}: {told}")

    def __enter__(self) -> DevicesBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class _Device:
    def __init__(self, task: int, done: int) -> None:
        self.task = task
        self.told_at = time.monotonic()
        self._done = done  # answers, and what was given up
        self._new = 0
        self._began: float | None = None
        self._ran_s = 0.0
        self._hottest_c: float | None = None

    def count(self, record: Record) -> None:
        self._ran_s = max(self._ran_s, record.get("ran_s", 0.0))
        if record["kind"] == "answer" or (record["kind"] == "error" and record["fatal"]):
            self._began = self._began or time.monotonic()
            self._done += 1
            self._new += 1
        elif record["kind"] == "telemetry" and record["temperature_c"]:
            self._hottest_c = max(record["temperature_c"].values())

    def progress(self, plan: Plan) -> tuple[float, str]:
        """Share that is done; the same in words."""
        seconds = time.monotonic() - self._began if self._began else 0.0
        per_second = (self._new - 1) / seconds if self._new > 1 and seconds > 0 else 0.0
        share = min(1.0, self._done / plan.answers) if plan.answers else 1.0
        left_s = (plan.answers - self._done) / per_second if per_second else 0.0
        if plan.soak_s:
            share, left_s = min(1.0, self._ran_s / plan.soak_s), plan.soak_s - self._ran_s
        words = [f"{self._done:,}" if plan.soak_s else f"{self._done:,} of {plan.answers:,}"]
        if per_second:
            words.append(f"{per_second:.2g} answers/s")
        if left_s > 0:
            words.append(f"{_duration(left_s)} left")
        if self._hottest_c is not None:
            words.append(f"{self._hottest_c:.0f} °C")
        return share, ", ".join(words)


def _line(record: Record) -> str:
    """What is worth a line of its own."""
    if record["kind"] == "event" and record["what"] != "restart":
        return str(record["text"])
    if record["kind"] == "error":
        case = f" {record['case']}" if record["case"] else ""
        again = "" if record["fatal"] else "; it is tried again"
        return f"{record['variant'] or 'camera'}{case}: {record['message']}{again}"
    return ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def print_outcomes(devices: Sequence[tuple[str, DeviceOutcome]]) -> None:
    for name, outcome in devices:
        _print_outcome(name, outcome)
    report.out.print("ms and p95: whole answers, median and 95th percentile", highlight=False, markup=False)
    for name, outcome in devices:
        told = [
            report.count(number, what)
            for number, what in (
                (outcome.reboots, "reboot"),
                (outcome.lost, "lost connection"),
                (outcome.camera_errors, "picture that did not come"),
            )
            if number
        ]
        if told:
            report.out.print(f"{name}: {', '.join(told)}", highlight=False, markup=False)


def _print_outcome(name: str, outcome: DeviceOutcome) -> None:
    columns = ("answers", "exact", "ms", "p95", "MB", "°C", "restarts", "errors")
    rows = [
        (
            one.variant,
            f"{one.answers:,}",
            "-" if one.accuracy is None else f"{100 * one.accuracy:.1f} %",
            "-" if one.median_ms is None else f"{one.median_ms:.0f}",
            "-" if one.p95_ms is None else f"{one.p95_ms:.0f}",
            f"{one.peak_resident_bytes / 1e6:.0f}" if one.peak_resident_bytes else "-",
            "-" if one.hottest_c is None else f"{one.hottest_c:.0f}",
            one.restarts,
            one.errors,
        )
        for one in outcome.variants
    ]
    report.table(name, ("variant", *columns), rows, right=columns)
