"""A trial: what may crash or hang is done in a process of its own, which notes each step before it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 300  # a slow board loads Python and the runtime
_POLL_S = 0.1


@dataclass(frozen=True)
class Trial:
    """How one ended."""

    notes: Mapping[str, Any]  # of each kind the last; "stage" is what it did last
    returncode: int | None  # -11: by signal 11; None: it did not end in time
    said: bytes  # on stdout and stderr
    timeout_s: float

    def failure(self, while_: str) -> str:
        """In words, behind the name of what was tried."""
        if self.returncode is None:
            within_s = self.timeout_s if "stage" in self.notes else START_S
            return f"did not come back within {within_s:g} s, {while_}"
        if self.returncode < 0:
            try:
                name = signal.Signals(-self.returncode).name
            except ValueError:  # real-time signals have no names
                name = f"signal {-self.returncode}"
            return f"crashed ({name}) {while_}"
        return f"ended its process with status {self.returncode} {while_}"


def run(module: str, request: Mapping[str, Any], timeout_s: float) -> Trial:
    """Runs `python -m module NOTES REQUEST`; `timeout_s` counts from its first note."""
    with tempfile.TemporaryDirectory() as folder:
        notes, said = Path(folder) / "notes", Path(folder) / "said"
        command = [sys.executable, "-m", module, str(notes), json.dumps(request)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
        with said.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
            try:
                ended = _wait(process, notes, timeout_s)
            finally:
                process.kill()
                process.wait()
        found: dict[str, Any] = {}
        for line in notes.read_text().splitlines() if notes.exists() else ():
            found.update(json.loads(line))
        return Trial(found, ended, said.read_bytes(), timeout_s)


def _wait(process: subprocess.Popen[bytes], notes: Path, timeout_s: float) -> int | None:
    """How it ended, None for not within the time."""
    began, deadline = False, time.monotonic() + START_S
    while time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_POLL_S)
        if not began and notes.exists() and notes.stat().st_size:
            began, deadline = True, time.monotonic() + timeout_s
    return None
