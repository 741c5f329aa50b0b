"""What a field test does on every device, with nothing left to look up: `suite.json` of a run's folder.

The host makes it of a suite (`suite`), the runner on the device reads it. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from rpi_runtime.errors import ResourceError

SUITE_FILE, RECORDS_FILE, PICTURES = "suite.json", "records.jsonl", "pictures"
INTERRUPTED = 130  # exit code of a runner that was stopped: 128 and the number of SIGINT
FORMAT = 1  # of that file and of the records


@dataclass(frozen=True)
class Variant:
    """One way to answer; fields as the options of `toolkit run`."""

    name: str
    route: str = "tile"
    branch: str = "base"
    memory: str | None = None
    delegate: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Case:
    """One question, about one picture or none."""

    id: str  # unique in its suite
    question: str
    image: str = ""  # its name for people
    image_sha256: str = ""
    image_file: str = ""  # its name in the folder `pictures`
    expected: str | None = None
    type: str = "other"


@dataclass(frozen=True)
class Camera:
    command: str  # of a shell, with {output} for the picture's file
    every_s: float = 0.0  # at least, from one start to the next


@dataclass(frozen=True)
class Watch:
    folder: str  # on the device


@dataclass(frozen=True)
class Plan:
    """A round asks every case, and every live case about one new picture, in every variant. There are as many
    rounds as `repetitions`, and more until `soak_s` is over."""

    name: str
    variants: tuple[Variant, ...]
    cases: tuple[Case, ...]  # in the order in which they are asked
    live: tuple[Case, ...]  # asked about each picture of the camera or the folder; these have no `image`
    camera: Camera | None
    watch: Watch | None
    repetitions: int
    soak_s: float  # 0: no longer than the repetitions take
    max_new_tokens: int
    telemetry_s: float
    timeout_s: float  # for one answer

    @property
    def sha256(self) -> str:
        """Another one, another test. It covers the pictures' content."""
        return hashlib.sha256(json.dumps([FORMAT, asdict(self)], sort_keys=True).encode()).hexdigest()

    @property
    def answers(self) -> int:
        """At least so many, without errors."""
        return self.repetitions * len(self.variants) * (len(self.cases) + len(self.live))


@dataclass(frozen=True)
class Order:
    """What the runner of one device gets: the plan, and what is told of the device in the records."""

    plan: Plan
    device: str  # its address
    machine: Mapping[str, Any]
    bundle_name: str
    runtime: Mapping[str, str]  # id, version


def write_order(path: Path, order: Order) -> None:
    path.write_text(order_text(order), encoding="utf-8")


def order_text(order: Order) -> str:
    return json.dumps({"format": FORMAT, **asdict(order)}, ensure_ascii=False)


def read_order(path: Path) -> Order:
    """Raises `ResourceError` for a file that cannot be read, or is of another version of this toolkit."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("format") != FORMAT:
            raise ResourceError(
                f"{path} was written by another version of the toolkit",
                "Deploy the version of the host to the device.",
            )
        return Order(**{**record, "plan": plan_of(record["plan"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResourceError(f"{path} cannot be read: {error}", "Start the field test anew.") from None


def plan_of(record: Mapping[str, Any]) -> Plan:
    """A plan as it was before it became JSON. Raises KeyError or TypeError for what is none."""
    return Plan(
        **{
            **record,
            "variants": tuple(_made(Variant, one) for one in record["variants"]),
            "cases": tuple(_made(Case, one) for one in record["cases"]),
            "live": tuple(_made(Case, one) for one in record["live"]),
            "camera": _made(Camera, record["camera"]) if record["camera"] else None,
            "watch": _made(Watch, record["watch"]) if record["watch"] else None,
        }
    )


_T = TypeVar("_T")


def _made(kind: type[_T], record: Mapping[str, Any]) -> _T:
    return kind(**{f.name: record[f.name] for f in fields(kind)})  # type: ignore[arg-type]
