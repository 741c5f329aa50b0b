"""What the records of a run say about it: how a runner knows what is left to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from field import records
from field.plan import Plan
from field.records import Record

Key = tuple[str, str, int]  # variant, case, repetition


@dataclass
class History:
    """Grows with every record."""

    plan: Plan
    seq: int = 0  # of the last record
    ran_s: float = 0.0
    boot: str = ""
    start: Record | None = None
    is_done: bool = False
    answers: int = 0
    finished: set[Key] = field(default_factory=set)  # answered, or given up
    variants_given_up: set[str] = field(default_factory=set)
    cases_given_up: set[tuple[str, str]] = field(default_factory=set)  # variant, case
    pictures: dict[int, Record] = field(default_factory=dict)  # repetition -> a record about its live picture
    rounds_without_picture: set[int] = field(default_factory=set)
    lives: int = 0  # of runners, with the present one, that got nothing done and were not stopped

    @classmethod
    def of(cls, plan: Plan, written: Iterable[Record]) -> History:
        found = cls(plan)
        for record in written:
            found.add(record)
        return found

    def add(self, record: Record) -> None:
        self.seq = max(self.seq, record.get("seq", 0))
        self.ran_s = max(self.ran_s, record.get("ran_s", 0.0))
        self.boot = record.get("boot") or self.boot
        match record["kind"]:
            case records.START:
                self.start = self.start or record
                self.lives += 1
            case records.ANSWER:
                self.answers += 1
                self.lives = 0
                self._finish(record)
            case records.ERROR:
                self.lives = 0
                if record["fatal"]:
                    self._finish(record)
            case records.EVENT:
                self._event(record["what"])

    def is_finished(self, variant: str, case: str, repetition: int) -> bool:
        return (
            (variant, case, repetition) in self.finished
            or variant in self.variants_given_up
            or (variant, case) in self.cases_given_up
        )

    def _finish(self, record: Record) -> None:
        variant, case, repetition = record["variant"], record["case"], record["repetition"]
        is_live = any(case == live.id for live in self.plan.live)
        self.finished.add((variant, case, repetition))
        if is_live and record.get("image"):
            self.pictures.setdefault(repetition, record)
        if record["kind"] == records.ANSWER:
            return
        if not variant:
            self.rounds_without_picture.add(repetition)
        elif not case:
            self.variants_given_up.add(variant)
        elif not is_live:
            self.cases_given_up.add((variant, case))

    def _event(self, what: Any) -> None:
        if what in (records.RESUMED, records.REBOOT):
            self.lives += 1
        elif what == records.STOPPED:
            self.lives = max(0, self.lives - 1)
        elif what == records.DONE:
            self.is_done = True
