"""Folders of runs, and runners in processes of their own, for several tests."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from field.plan import Case, Order, Plan, Variant, write_order
from field.records import read_records
from field.sources import file_name

ROOT = Path(__file__).resolve().parents[2]
PLAN = Plan(
    name="test",
    variants=(Variant("plain"),),
    cases=(),
    live=(),
    camera=None,
    watch=None,
    repetitions=1,
    soak_s=0.0,
    max_new_tokens=8,
    telemetry_s=0.1,
    timeout_s=60.0,
)


class Run:
    """A folder as the host prepares it, with a fake root and a fake bundle beside."""

    def __init__(self, base: Path, *questions: str, **changes: Any) -> None:
        self.folder, self.root, self.bundle = base / "run", base / "root", base / "bundle"
        self.folder.mkdir()
        self.bundle.mkdir()
        (self.bundle / "manifest.json").write_text('{"model": "none"}')
        self.boot("one")
        cases = tuple(Case(f"c{i}", question) for i, question in enumerate(questions))
        self.plan = replace(PLAN, **{"cases": cases, **changes})
        write_order(self.folder / "suite.json", Order(self.plan, "local", {}, "none", {}))

    def boot(self, name: str) -> None:
        path = self.root / "proc/sys/kernel/random/boot_id"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("scripted_runner.py")
        return subprocess.Popen(
            [sys.executable, str(script), *map(str, (self.folder, self.bundle, self.root))],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def finish(self) -> str:
        """Runs to the end; what it wrote on stdout."""
        process = self.start()
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode() + out.decode()
        assert not err
        return out.decode()

    @property
    def records(self) -> list[dict[str, Any]]:
        return list(read_records(self.folder / "records.jsonl"))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["kind"] == kind]

    @property
    def answers(self) -> list[str]:
        return [record["answer"] for record in self.of("answer")]

    @property
    def events(self) -> list[str]:
        return [record["what"] for record in self.of("event")]


def with_picture(run: Run, case: Case, content: bytes, name: str) -> Case:
    sha256 = hashlib.sha256(content).hexdigest()
    (run.folder / "pictures").mkdir(exist_ok=True)
    (run.folder / "pictures" / file_name(sha256, name)).write_bytes(content)
    return replace(case, image=name, image_sha256=sha256, image_file=file_name(sha256, name))


def wait_for(met: Callable[[], object], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def processes_with(word: str) -> Sequence[int]:
    """Processes that are alive and have `word` in their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if word in line and state != "Z":
            found.append(int(folder.name))
    return found


def children_of(process: int) -> list[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.lstrip("\x1e")) for line in text.splitlines() if line.strip("\x1e")]
