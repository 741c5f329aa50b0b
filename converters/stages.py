"""Runs the stages of a convert, each in a process of its own, and resumes after the last one that finished.

A process per stage returns all memory, survives a kill by the kernel, and keeps the chatter of native
libraries in a log file. A stage's result is believed only when its key (everything the result depends on) is
the same and its outputs still have the bytes they had.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters import host
from rpi_runtime import errors
from rpi_runtime.bundle import sha256_of
from rpi_runtime.errors import EdgeError, ResourceError

_LOG_TAIL_LINES = 12
_PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Stage:
    """One step. `task` is "module:function", called as `function(options, inputs, outputs)` in the worker.

    The result depends on `options` and on the stages in `after`, which together make the key. `inputs` only
    say where things lie: absolute paths, or paths relative to the work folder, like `outputs`.
    """

    name: str  # "export decoder"
    task: str
    options: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    after: tuple[Stage, ...] = ()

    @property
    def key(self) -> str:
        parts = [self.name, self.task, self.options, self.outputs, [s.key for s in self.after]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def slug(self) -> str:
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class StageResult:
    name: str
    seconds: float
    peak_bytes: int  # resident, of the stage's process
    output_bytes: int
    sha256: dict[str, str]  # of each output, by its name in `Stage.outputs`
    value: Any  # what the task returned
    resumed: bool  # from an earlier run


@dataclass(frozen=True)
class StageStarted:
    name: str
    number: int  # from 1
    count: int


@dataclass(frozen=True)
class StageProgress:
    name: str
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class StageLog:
    """What the stage's process printed since the last one."""

    text: str


@dataclass(frozen=True)
class StageFinished:
    number: int
    count: int
    result: StageResult


StageEvent = StageStarted | StageProgress | StageLog | StageFinished


class StageFailed(EdgeError):
    """A stage's process crashed or raised something that is not the user's mistake."""


def run_stages(
    stages: Sequence[Stage],
    work: Path,
    on_event: Callable[[StageEvent], None] = lambda event: None,
    more: int = 0,
) -> dict[str, StageResult]:
    """Runs what is not finished yet, in order; results by stage name. Events count `more` stages that the
    caller will run.

    Raises what a stage raised (an `EdgeError`), `ResourceError` for a kill or a full disk, `StageFailed`
    for a crash. KeyboardInterrupt, like any exception here, first ends the stage's process.
    """
    results, count = {}, len(stages) + more
    for number, stage in enumerate(stages, 1):
        result = finished(stage, work)
        if result is None:
            on_event(StageStarted(stage.name, number, count))
            result = _run(stage, work, on_event)
        on_event(StageFinished(number, count, result))
        results[stage.name] = result
    return results


def finished(stage: Stage, work: Path) -> StageResult | None:
    """The result that an earlier run left, when nothing it depends on and no byte it made has changed."""
    try:
        stored = json.loads(_result_file(stage, work).read_text())
        if stored["key"] != stage.key:
            return None
        for name, path in stage.outputs.items():
            if sha256_of(work / path) != stored["sha256"][name]:
                return None
        return _result(stage, stored, resumed=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget(stage: Stage, work: Path) -> None:
    """Has `stage` run again, whatever an earlier run left."""
    _result_file(stage, work).unlink(missing_ok=True)


def log_file(stage: Stage, work: Path) -> Path:
    return work / "logs" / f"{stage.slug}.log"


def _result_file(stage: Stage, work: Path) -> Path:
    return work / "stages" / f"{stage.slug}.json"


def _result(stage: Stage, stored: dict[str, Any], resumed: bool) -> StageResult:
    return StageResult(
        name=stage.name,
        seconds=stored["seconds"],
        peak_bytes=stored["peak_bytes"],
        output_bytes=stored["output_bytes"],
        sha256=stored["sha256"],
        value=stored["value"],
        resumed=resumed,
    )


def _run(stage: Stage, work: Path, on_event: Callable[[StageEvent], None]) -> StageResult:
    scratch = work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    result_file, log = _result_file(stage, work), log_file(stage, work)
    for folder in (scratch, result_file.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    result_file.unlink(missing_ok=True)
    job = {
        "task": stage.task,
        "key": stage.key,
        "options": stage.options,
        "inputs": {name: str(work / path) for name, path in stage.inputs.items()},
        "outputs": {name: str(work / path) for name, path in stage.outputs.items()},
        "scratch": str(scratch),
        "result": str(result_file),
        "parent": os.getpid(),
    }
    kills_before = host.kernel_kills()
    exit_status, peak_bytes = _spawn_and_wait(stage, job, log, scratch, on_event)
    free_bytes = shutil.disk_usage(work).free
    shutil.rmtree(scratch, ignore_errors=True)
    with contextlib.suppress(OSError, ValueError):
        answer = json.loads(result_file.read_text())
        if exit_status == 0:
            return _result(stage, answer, resumed=False)
        if "error" in answer:
            kind = getattr(errors, answer["error"], EdgeError)
            raise kind(answer["message"], answer["remedy"])
    raise _explain(stage, exit_status, peak_bytes, log, work, free_bytes, host.kernel_kills() - kills_before)


def _spawn_and_wait(
    stage: Stage, job: dict[str, Any], log: Path, scratch: Path, on_event: Callable[[StageEvent], None]
) -> tuple[int, int]:
    """Exit status (negative: the signal) and the peak resident bytes that were seen from outside."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            # -P: what lies in the current folder must not shadow a library.
            [sys.executable, "-P", "-m", "converters.stage_worker"],
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=_environment(scratch),
            start_new_session=True,  # Ctrl-C reaches us alone; we end the whole group
        )
    started = told = time.monotonic()
    peak_bytes, pause = 0, 0.005
    try:
        with log.open("r", errors="replace") as lines, process.stdin as stdin:  # type: ignore[union-attr]
            with contextlib.suppress(BrokenPipeError):
                stdin.write(json.dumps(job).encode())
                stdin.close()
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if text := lines.read():
                    on_event(StageLog(text))
                if pid:
                    process.returncode = os.waitstatus_to_exitcode(status)
                    return process.returncode, max(peak_bytes, host.peak_bytes(usage))
                peak_bytes = max(peak_bytes, host.peak_bytes_of(process.pid))
                if time.monotonic() - told > _PROGRESS_SECONDS:
                    told = time.monotonic()
                    on_event(StageProgress(stage.name, told - started, peak_bytes))
                time.sleep(pause)
                pause = min(pause * 1.5, 0.1)
    except BaseException:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        raise


def _environment(scratch: Path) -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    known = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": root + (os.pathsep + known if known else ""),
        "PYTHONHASHSEED": "0",  # the order of sets must not reach the bytes of a graph
        "PYTHONUNBUFFERED": "1",  # the last lines before a crash are in the log
        "TMPDIR": str(scratch),  # large temporary files fall under the disk that was checked
    }


def _explain(
    stage: Stage, exit_status: int, peak_bytes: int, log: Path, work: Path, free_bytes: int, kernel_kills: int
) -> EdgeError:
    """The error for a process that ended without leaving a result."""
    tail = "\n".join(f"  | {line}" for line in _tail(log))
    resume = "A second run goes on after the last finished stage."
    number = -exit_status
    if number == signal.SIGKILL:
        why = "the kernel's out-of-memory killer struck" if kernel_kills > 0 else "most likely memory ran out"
        now = host.resources(work)
        return ResourceError(
            f"stage '{stage.name}' was killed (SIGKILL): {why}. It had reached {_mb(peak_bytes)}; "
            f"{_mb(now.memory_bytes)} are free now ({now.memory_source})",
            f"Close other programs, add swap, or convert on a machine with more memory. {resume}",
        )
    if free_bytes < 1 << 20:
        return ResourceError(
            f"stage '{stage.name}' stopped because the disk is full: {_mb(free_bytes)} free on {work}",
            f"Free some space or write to another disk. {resume}",
        )
    what = f"was ended by {_signal_name(number)}" if number > 0 else f"failed (exit {exit_status})"
    return StageFailed(
        f"stage '{stage.name}' {what}. The end of its log:\n{tail}",
        f"The whole log: {log}. {resume}",
    )


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} ({signal.strsignal(number)})"
    except ValueError:
        return f"signal {number}"


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-_LOG_TAIL_LINES:]


def _mb(count_bytes: int) -> str:
    return f"{count_bytes / 1e6:,.0f} MB"
