"""The folder of a field test's results, on the host.

suite.json               what was asked: the plan, with the id of this run
pictures/                of the suite, named by their content
<device>/records.jsonl   all that the device recorded, with our own events between
<device>/pictures/       that its camera took or its folder got
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from field import records
from field.address import Address
from field.history import History
from field.plan import FORMAT, PICTURES, RECORDS_FILE, SUITE_FILE, Plan, plan_of
from field.records import Record
from field.suite import Suite
from rpi_runtime.errors import ResourceError, UsageError


class Results:
    def __init__(self, folder: Path, plan: Plan, run: str) -> None:
        self.folder, self.plan, self.run = folder, plan, run

    @classmethod
    def open(cls, folder: Path, suite: Suite) -> Results:
        """Begins in `folder`, or goes on with the same suite there. Raises `UsageError` for a folder that
        holds something else."""
        path = folder / SUITE_FILE
        if path.exists():
            found = cls.read(folder)
            if found.plan.sha256 != suite.plan.sha256:
                raise UsageError(
                    f"{folder} holds the results of another suite, or of this one before it was changed",
                    "Choose another folder with -o, or remove this one.",
                )
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"{folder} is there, and holds no field test", "Choose a new or an empty folder with -o."
            )
        else:
            found = cls(folder, suite.plan, secrets.token_hex(8))
        _keep_pictures(suite, folder / PICTURES)
        if not path.exists():
            content = {"format": FORMAT, "run": found.run, "plan": asdict(suite.plan)}
            partial = path.with_name(f"{path.name}.partial")
            partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            partial.replace(path)
        return found

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Raises `UsageError` where there are none."""
        path = folder / SUITE_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise UsageError(f"{path} was written by another version", "Use that version of the toolkit.")
            return cls(folder, plan_of(content["plan"]), content["run"])
        except (OSError, ValueError, KeyError, TypeError):
            what = "is damaged" if path.exists() else "is not there"
            raise UsageError(
                f"{folder} holds no results of a field test: {SUITE_FILE} {what}",
                "Choose another folder with -o.",
            ) from None

    def pictures(self) -> dict[str, Path]:
        """Of the suite, by their names in the folder `pictures`."""
        names = sorted({case.image_file for case in self.plan.cases if case.image_file})
        return {name: self.folder / PICTURES / name for name in names}

    def device(self, address: Address) -> DeviceResults:
        return DeviceResults(self.folder / slug(address), self.plan)


class DeviceResults:
    """Of one device. Cuts off a line that we did not finish when we were killed."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / RECORDS_FILE
        records.cut_torn(self._path)
        self.sent_bytes = 0  # of the device's records that are here
        self.history = History(plan)
        self.on_record: Callable[[Record], None] = lambda record: None
        for line in records.lines_of(self._path):
            self._check(record := records.parse(line))
            self._count(line, record)

    def _check(self, record: Record | None) -> None:
        """A device's records follow each other; one that is missing was damaged here."""
        if record is None or _is_ours(record) or record.get("seq") == self.history.seq + 1:
            return
        raise ResourceError(
            f"{self._path}: the record {self.history.seq + 1} is missing or damaged",
            "Choose another folder with -o; toolkit field-report shows what is left in this one.",
        )

    def add(self, line: bytes) -> Record | None:
        """Takes a whole line of the device; what it says, if anything. Raises ValueError, and takes nothing,
        when one before it is missing."""
        record = records.parse(line)
        if record is not None and record.get("seq") != self.history.seq + 1:
            raise ValueError(f"record {record.get('seq')} follows {self.history.seq}")
        self._append(line)
        self._count(line, record)
        if record is not None:
            self.on_record(record)
        return record

    def tell(self, what: str, text: str) -> None:
        """An event of our own."""
        record = {
            "kind": records.EVENT, "t": round(time.time(), 3), "boot": "", "seq": 0, "host": True,
            "what": what, "text": text,
        }  # fmt: skip
        self._append(records.line_of(record))
        self.on_record(record)

    def read(self) -> Iterator[Record]:
        return records.read_records(self._path)

    def of_device(self) -> bytes:
        """The device's records as they should lie there."""
        return b"".join(line for line in records.lines_of(self._path) if not _is_ours(records.parse(line)))

    def missing_pictures(self) -> list[str]:
        """Files of live pictures that are not here yet."""
        asked = {record["image_file"] for record in self.history.pictures.values()}
        return sorted(name for name in asked if name and not (self.folder / PICTURES / name).exists())

    def _count(self, line: bytes, record: Record | None) -> None:
        if not _is_ours(record):
            self.sent_bytes += len(line)
            if record is not None:
                self.history.add(record)

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(line)


def slug(address: Address) -> str:
    """A folder's name for a device."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(address)).strip("-.") or "device"


def _is_ours(record: Record | None) -> bool:
    return record is not None and record.get("host") is True


def _keep_pictures(suite: Suite, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in suite.pictures.items():
        if not (folder / name).exists():
            partial = folder / f"{name}.partial"
            shutil.copyfile(source, partial)
            partial.replace(folder / name)
