"""What happened on each device: data, read by `reader`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from field import records
from field.plan import Variant
from rpi_runtime.errors import EdgeError
from rpi_runtime.memory_plan import parse_budget


@dataclass(frozen=True)
class Routing:
    """How a picture was cut and encoded; one entry per tile, the thumbnail last."""

    width_px: int
    height_px: int
    columns: int
    rows: int
    sides_px: tuple[int, ...]
    tokens: tuple[int, ...]
    tokens_unrouted: int

    @property
    def grid_sides_px(self) -> tuple[int, ...]:
        """Without the thumbnail."""
        return self.sides_px[: self.columns * self.rows]


@dataclass(frozen=True)
class Cost:
    """Of one answer; times are without opening graphs."""

    first_token_ms: float
    answer_ms: float
    load_ms: float
    new_tokens: int
    decode_tokens_per_s: float  # 0 for less than two tokens
    visual_tokens: int
    visual_tokens_unrouted: int
    peak_resident_bytes: int  # of the process so far; 0 where the system does not tell


@dataclass(frozen=True)
class Answer:
    variant: str
    case: str
    repetition: int
    image: str  # its name for people
    image_sha256: str
    image_file: str
    question: str
    expected: str | None
    type: str
    answer: str
    exact: bool | None
    numeric: bool | None
    cost: Cost | None  # None when the record has no report that can be read
    routing: Routing | None  # of the first picture
    at_s: float


@dataclass(frozen=True)
class Failure:
    variant: str
    case: str
    message: str
    remedy: str
    is_final: bool  # what was asked has no answer for good
    at_s: float
    t: float | None


@dataclass(frozen=True)
class Sample:
    """Of telemetry. What a device does not tell is empty, None, or 0."""

    variant: str
    temperature_c: Mapping[str, float]
    clock_mhz: Mapping[str, float]
    throttled: int | None
    watts: Mapping[str, float]
    resident_bytes: int
    peak_resident_bytes: int
    available_bytes: int
    at_s: float


@dataclass(frozen=True)
class Event:
    what: str
    text: str
    variant: str  # that it tells of, or that was asked before it
    is_of_host: bool
    at_s: float
    t: float | None


@dataclass(frozen=True)
class DeviceRun:
    folder: str
    address: str
    machine: Mapping[str, Any]
    bundle: Mapping[str, Any]
    runtime: Mapping[str, Any]
    suite_sha256: str
    variants: tuple[Variant, ...]  # those of the suite, then any other that was seen
    telemetry_s: float
    answers: tuple[Answer, ...]
    failures: tuple[Failure, ...]
    samples: tuple[Sample, ...]
    events: tuple[Event, ...]
    began: float | None  # by the device's clock, s since 1970
    ended: float | None
    ran_s: float  # without the time that the device was away
    long_s: float  # from the first record to the last
    unreadable: int  # lines and records
    unknown: int  # records of kinds that this version does not know

    @property
    def name(self) -> str:
        return self.address or self.folder

    @property
    def is_done(self) -> bool:
        return any(event.what == records.DONE for event in self.events)


@dataclass(frozen=True)
class Results:
    folder: Path
    suite: Mapping[str, Any]  # the plan; empty where there is none
    devices: tuple[DeviceRun, ...]


def budget_bytes(variant: Variant) -> int | None:
    """None without a budget, and for "auto", which is the device's to find."""
    if variant.memory is None or variant.memory.strip().lower() == "auto":
        return None
    try:
        return parse_budget(variant.memory)
    except EdgeError:
        return None
