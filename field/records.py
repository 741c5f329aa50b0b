"""Records of a field test, a line of JSON each, that outlive a power cut.

The runner on a device writes one when something happened and waits until the storage has it (fsync); a line
that a power cut tore is cut off before the next is written. The host has the same lines, byte for byte, and
lines of its own between them, marked `"host": true`: how many bytes it has is all that it must know to get
the rest. docs/field_test.md lists the kinds.
"""

from __future__ import annotations

import io
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

Record = dict[str, Any]

START, ANSWER, ERROR, TELEMETRY, EVENT = "start", "answer", "error", "telemetry", "event"
RESTART, REBOOT, LOST, BACK, STOPPED, RESUMED, DONE = (
    "restart", "reboot", "lost", "back", "stopped", "resumed", "done",
)  # fmt: skip
_ASKED: dict[str, type] = {"variant": str, "case": str, "repetition": int}
# Without which a record is none.
_FIELDS: dict[str, dict[str, type]] = {
    ANSWER: _ASKED,
    ERROR: {**_ASKED, "fatal": bool},
    EVENT: {"what": str},
}
MARK = b"\x1e"  # before each line that goes to the host
_HEARTBEAT_S = 5.0


def lines_of(path: Path, offset: int = 0) -> Iterator[bytes]:
    """Whole lines of `path` from byte `offset`, with their ends; none if there is no such file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if line.endswith(b"\n"):
                yield line


def parse(line: bytes) -> Record | None:
    """None for a line that is none of ours, as storage that lost power may leave, or somebody's editor."""
    record = parse_any(line)
    needed = _FIELDS.get(str(record.get("kind")), {"kind": str})
    return record if all(type(record.get(name)) is kind for name, kind in needed.items()) else None


def parse_any(line: bytes) -> Record:
    """A JSON object; an empty one for a line that is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_records(path: Path) -> Iterator[Record]:
    return (record for record in map(parse, lines_of(path)) if record is not None)


def cut_torn(path: Path) -> int:
    """Cuts a last line that has no end off; the bytes that are left."""
    if not path.exists():
        return 0
    whole = sum(map(len, lines_of(path)))
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    return whole


def line_of(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class Log:
    """Where the runner writes. Safe for several threads."""

    def __init__(
        self, path: Path, boot: str, seq: int, ran_s: float, on_line: Callable[[bytes], None]
    ) -> None:
        """`path` has no torn line; its last record has number `seq`, and was written after `ran_s`."""
        self._seq = seq
        self._boot = boot
        self._ran_before_s, self._began = ran_s, time.monotonic()
        self._on_line = on_line
        self._lock = threading.Lock()
        self._file = io.FileIO(path, "a")
        self._bytes = path.stat().st_size
        _sync_folder(path.parent)

    @property
    def ran_s(self) -> float:
        """For how long runners ran in all; the time of day may jump, as on a board without a clock."""
        return self._ran_before_s + time.monotonic() - self._began

    def add(self, kind: str, **content: Any) -> None:
        """Raises OSError when the storage does not take it; then nothing of it is there."""
        with self._lock:
            record = {
                "kind": kind,
                "t": round(time.time(), 3),
                "boot": self._boot,
                "seq": self._seq + 1,
                "ran_s": round(self.ran_s, 3),
                **content,
            }
            line = line_of(record)
            try:
                self._write(line)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._file.fileno(), self._bytes)
                raise
            self._seq += 1
            self._bytes += len(line)
            self._on_line(line)

    def _write(self, line: bytes) -> None:
        while line:
            line = line[self._file.write(line) :]
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Sender(threading.Thread):
    """Hands lines to the host, from a thread of its own, so that a network that stalls does not stall the
    test; now and then an empty one, as a sign of life. `MARK` tells them from what else a shell prints."""

    def __init__(self, into: IO[bytes]) -> None:
        super().__init__(name="sender", daemon=True)
        self._into = into
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.start()

    def send(self, line: bytes) -> None:
        self._lines.put(MARK + line)

    def close(self) -> None:
        """Waits a little for what has not been sent; the host can get it later."""
        self._lines.put(None)
        self.join(timeout=5)

    def run(self) -> None:
        try:
            while (line := self._next()) is not None:
                self._into.write(line)
                self._into.flush()
        except (OSError, ValueError):  # the host is gone: the file has it all
            return

    def _next(self) -> bytes | None:
        try:
            return self._lines.get(timeout=_HEARTBEAT_S)
        except queue.Empty:
            return MARK + b"\n"


def _sync_folder(folder: Path) -> None:
    """A file that is new is there after a power cut only if its folder was written, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems of phones refuse
        pass
    finally:
        os.close(descriptor)
