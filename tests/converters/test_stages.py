"""Stages run apart, resume, and turn every kind of death into one clear message."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from converters.stages import (
    Stage,
    StageEvent,
    StageFailed,
    StageFinished,
    StageLog,
    StageProgress,
    StageStarted,
    finished,
    log_file,
    run_stages,
)
from rpi_runtime.errors import CheckpointError, EdgeError, ResourceError
from tests.converters import small_hosts

ROOT = Path(__file__).resolve().parents[2]
MB = 1 << 20


def task(name: str) -> str:
    return f"tests.converters.tasks:{name}"


def chain(work: Path, first: str = "one", second: str = "two") -> list[Stage]:
    """Two stages that note in `runs` that they ran; the second reads what the first wrote."""
    runs = str(work / "runs")
    a = Stage("write a", task("write"), {"text": first}, {"runs": runs}, {"file": "a.txt"})
    b = Stage(
        "write b", task("write"), {"text": second}, {"runs": runs, "a": "a.txt"}, {"file": "b.txt"}, (a,)
    )
    return [a, b]


def runs(work: Path) -> list[str]:
    return (work / "runs").read_text().split()


def failure(stage: Stage, work: Path) -> EdgeError:
    with pytest.raises(EdgeError) as caught:
        run_stages([stage], work)
    return caught.value


def test_each_stage_is_a_process_of_its_own(tmp_path: Path) -> None:
    results = run_stages(chain(tmp_path), tmp_path)
    processes = {r.value["pid"] for r in results.values()}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert (tmp_path / "b.txt").read_text() == "onetwo"
    assert results["write b"].output_bytes == 6


def test_what_finished_is_not_done_again(tmp_path: Path) -> None:
    run_stages(chain(tmp_path), tmp_path)
    again = run_stages(chain(tmp_path), tmp_path)
    assert runs(tmp_path) == ["one", "two"]
    assert all(r.resumed for r in again.values())
    assert again["write b"].value["length"] == 3


def test_a_run_resumes_after_the_last_finished_stage(tmp_path: Path) -> None:
    a, b = chain(tmp_path)
    broken = Stage(b.name, task("die"), {"signal": "SIGKILL"}, b.inputs, b.outputs, b.after)
    with pytest.raises(ResourceError):
        run_stages([a, broken], tmp_path)
    run_stages([a, b], tmp_path)
    assert runs(tmp_path) == ["one", "two"]


def test_a_changed_option_redoes_only_what_it_touches(tmp_path: Path) -> None:
    run_stages(chain(tmp_path), tmp_path)
    run_stages(chain(tmp_path, second="new"), tmp_path)
    assert runs(tmp_path) == ["one", "two", "new"]
    run_stages(chain(tmp_path, first="other", second="new"), tmp_path)
    assert runs(tmp_path) == ["one", "two", "new", "other", "new"]
    assert (tmp_path / "b.txt").read_text() == "othernew"


@pytest.mark.parametrize("damage", ["gone", "changed", "no result", "half a result"])
def test_an_output_that_is_not_as_it_was_made_is_made_again(tmp_path: Path, damage: str) -> None:
    run_stages(chain(tmp_path), tmp_path)
    result = tmp_path / "stages" / "write-b.json"
    match damage:
        case "gone":
            (tmp_path / "b.txt").unlink()
        case "changed":
            (tmp_path / "b.txt").write_text("onetwx")
        case "no result":
            result.unlink()
        case "half a result":
            result.write_text(result.read_text()[:40])
    run_stages(chain(tmp_path), tmp_path)
    assert runs(tmp_path) == ["one", "two", "two"]
    assert (tmp_path / "b.txt").read_text() == "onetwo"


def test_a_half_written_output_never_takes_its_place(tmp_path: Path) -> None:
    stage = Stage("write", task("write_half_and_die"), {"signal": "SIGSEGV"}, {}, {"file": "a.txt"})
    failure(stage, tmp_path)
    assert not (tmp_path / "a.txt").exists()
    assert finished(stage, tmp_path) is None


def test_a_kill_is_reported_with_its_likely_reason(tmp_path: Path) -> None:
    error = failure(Stage("export x", task("die"), {"signal": "SIGKILL"}), tmp_path)
    assert isinstance(error, ResourceError)
    assert "'export x' was killed (SIGKILL): most likely memory ran out. It had reached" in error.message
    assert "second run goes on" in error.remedy


def test_a_crash_names_the_signal_and_shows_the_end_of_the_log(tmp_path: Path) -> None:
    stage = Stage("export x", task("die"), {"signal": "SIGILL"})
    error = failure(stage, tmp_path)
    assert isinstance(error, StageFailed)
    assert "SIGILL (Illegal instruction)" in error.message
    assert "about to fall over" in error.message
    assert str(log_file(stage, tmp_path)) in error.remedy
    assert "about to fall over" in log_file(stage, tmp_path).read_text()


def test_a_real_segmentation_fault_is_named(tmp_path: Path) -> None:
    assert "SIGSEGV" in failure(Stage("export x", task("read_address_zero")), tmp_path).message


def test_a_bug_shows_where_its_traceback_lies(tmp_path: Path) -> None:
    stage = Stage("export x", task("bug"))
    error = failure(stage, tmp_path)
    assert isinstance(error, StageFailed)
    assert "ZeroDivisionError: a bug of ours" in error.message
    assert "Traceback" in log_file(stage, tmp_path).read_text()


def test_a_users_mistake_keeps_its_class_and_words(tmp_path: Path) -> None:
    error = failure(Stage("export x", task("user_error")), tmp_path)
    assert isinstance(error, CheckpointError)
    assert (error.message, error.remedy) == ("tensor 'decoder.norm.weight' has NaN", "Train less boldly.")


def test_a_refused_allocation_is_a_matter_of_memory(tmp_path: Path) -> None:
    error = failure(Stage("export x", task("no_memory")), tmp_path)
    assert isinstance(error, ResourceError)
    assert "memory ran out" in error.message


def test_peak_memory_is_that_of_the_stage_alone(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        stage = Stage(f"take {count}", task("take_memory"), {"bytes": count}, {}, {"file": "n"})
        return run_stages([stage], tmp_path)[stage.name].peak_bytes

    ours = bytes(300 * MB)  # a fat parent must not show in the figure of its child
    assert 90 * MB < peak(100 * MB) - peak(MB) < 120 * MB
    assert peak(MB) < 200 * MB < len(ours)


def test_events_tell_number_progress_log_and_result(tmp_path: Path) -> None:
    events: list[StageEvent] = []

    def stop_after_progress(event: StageEvent) -> None:
        events.append(event)
        if isinstance(event, StageProgress):
            raise KeyboardInterrupt

    run_stages(chain(tmp_path), tmp_path, events.append)
    assert [e.name for e in events if isinstance(e, StageStarted)] == ["write a", "write b"]
    assert [(e.number, e.count) for e in events if isinstance(e, StageFinished)] == [(1, 2), (2, 2)]
    with pytest.raises(KeyboardInterrupt):
        run_stages(
            [Stage("wait", task("sleep"), {}, {"pid": str(tmp_path / "pid")})], tmp_path, stop_after_progress
        )
    assert isinstance(events[-1], StageProgress)
    assert events[-1].peak_bytes > MB
    events.clear()
    with pytest.raises(StageFailed):
        run_stages([Stage("die", task("die"), {"signal": "SIGABRT"})], tmp_path, events.append)
    assert "about to fall over" in "".join(e.text for e in events if isinstance(e, StageLog))


def _alive(process: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A convert-like process in the middle of a stage, and the process of that stage."""
    script = f"""
        from pathlib import Path
        from converters.stages import Stage, run_stages
        work = Path({str(tmp_path)!r})
        run_stages([Stage("wait", {task("sleep")!r}, {{}}, {{"pid": str(work / "pid")}})], work)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    pid = tmp_path / "pid"
    assert small_hosts.until(lambda: pid.exists() and pid.read_text() != "")
    yield parent, int(pid.read_text())
    parent.kill()
    parent.wait()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_no_stage_outlives_its_convert(running: tuple[subprocess.Popen[str], int], name: str) -> None:
    if name != "SIGINT" and not sys.platform.startswith("linux"):
        pytest.skip("only Linux ends a child with its parent")
    parent, child = running
    assert _alive(child)
    parent.send_signal(signal.Signals[name])
    _, errors = parent.communicate()
    assert small_hosts.until(lambda: not _alive(child))
    if name == "SIGINT":
        assert "KeyboardInterrupt" in errors


def test_files_in_the_current_folder_do_not_shadow_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    seen = run_stages([Stage("look", task("environment"))], work)["look"].value
    assert seen["json"] == json.__file__
    assert seen["temporary"].startswith(str(work))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_hosts.disk(tmp_path, megabytes=2) as disk:
        yield disk


def test_a_full_disk_says_how_full(small_disk: Path) -> None:
    stage = Stage("fill", task("fill"), {"bytes": 8 * MB}, {}, {"file": "big"})
    error = failure(stage, small_disk)
    assert isinstance(error, ResourceError)
    assert "disk is full: 0.0 MB free while writing" in error.message or "0 MB free on" in error.message
    assert not (small_disk / "big").exists()
    smaller = Stage("fill", task("fill"), {"bytes": MB}, {}, {"file": "big"})
    assert run_stages([smaller], small_disk)["fill"].output_bytes == MB


def test_a_limit_on_file_size_counts_as_a_full_disk(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MB, before[1]))
    try:
        error = failure(Stage("fill", task("fill"), {"bytes": 8 * MB}, {}, {"file": "big"}), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert isinstance(error, ResourceError)
    assert "MB free while writing" in error.message


@pytest.fixture
def memory_group() -> Iterator[Path]:
    with small_hosts.memory_group(megabytes=96) as group:
        yield group


def test_a_real_kill_by_the_kernel_is_told_as_such(memory_group: Path, tmp_path: Path) -> None:
    script = f"""
        import os, pathlib
        from converters.stages import Stage, run_stages
        from rpi_runtime import kernel
        from rpi_runtime.errors import ResourceError
        pathlib.Path({str(memory_group / "cgroup.procs")!r}).write_text(str(os.getpid()))
        print("room", kernel.memory_available()[0])
        stage = Stage("export x", {task("take_memory")!r}, {{"bytes": 1 << 30}}, {{}}, {{"file": "n"}})
        try:
            run_stages([stage], pathlib.Path({str(tmp_path)!r}))
        except ResourceError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True
    )
    assert "the kernel's out-of-memory killer struck" in done.stdout, done.stdout + done.stderr
    assert f"limit of the control group {memory_group}" in done.stdout
    assert 0 < int(done.stdout.split()[1]) <= 96 * MB
