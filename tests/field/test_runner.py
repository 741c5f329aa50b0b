"""The runner on the device: it asks what has no answer yet, whatever ended the one before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from field.plan import Camera, Case, Order, Variant, Watch, write_order
from tests.field.runs import ROOT, Run, children_of, lines, wait_for, with_picture


def test_every_case_is_asked_in_every_variant_and_repetition(tmp_path: Path) -> None:
    run = Run(tmp_path, "echo a", "echo b", variants=(Variant("one"), Variant("two")), repetitions=2)
    run.finish()
    asked = [(r["variant"], r["case"], r["repetition"]) for r in run.of("answer")]
    assert asked == [(v, c, r) for r in (0, 1) for v in ("one", "two") for c in ("c0", "c1")]
    assert run.records[0]["kind"] == "start"
    assert run.records[-1]["what"] == "done"
    assert [record["seq"] for record in run.records] == list(range(1, len(run.records) + 1))
    assert len(run.of("telemetry")) >= 1


def test_answers_are_judged_by_the_rules_of_evaluation(tmp_path: Path) -> None:
    cases = (
        Case("a", "echo 3.50 bar", expected="3.5bar"),
        Case("b", "echo x", expected="X"),
        Case("c", "echo y"),
    )
    run = Run(tmp_path, cases=cases)
    run.finish()
    assert [(r["exact"], r["numeric"]) for r in run.of("answer")] == [
        (False, True),
        (True, True),
        (None, None),
    ]


def test_all_that_is_recorded_is_written_to_the_host_too(tmp_path: Path) -> None:
    run = Run(tmp_path, "echo a")
    assert lines(run.finish()) == run.records


def test_a_run_that_is_done_is_told_again_and_asks_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, "echo a")
    run.finish()
    before = run.records
    assert lines(run.finish()) == before == run.records


def test_after_a_killed_runner_the_next_goes_on_and_no_worker_is_left(tmp_path: Path) -> None:
    run = Run(tmp_path, "echo a", "slow 0.5", "echo c", repetitions=2)
    process = run.start()
    wait_for(lambda: len(run.answers) == 1 and children_of(process.pid))
    workers = children_of(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    kept = run.records
    run.finish()
    assert run.records[: len(kept)] == kept
    assert run.answers == ["a", "0.5", "c"] * 2
    assert run.events == ["resumed", "done"]


def test_a_line_that_a_power_cut_tore_is_cut_off(tmp_path: Path) -> None:
    run = Run(tmp_path, "echo a", "echo b")
    run.finish()
    path = run.folder / "records.jsonl"
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if b'"b"' not in line]
    path.write_bytes(
        b"".join(line for line in whole if b"done" not in line) + b'{"kind":"answer","t":17\x00\x00'
    )
    run.finish()
    assert run.answers == ["a", "b"]
    assert all(line.startswith(b'{"kind"') for line in path.read_bytes().splitlines())


def test_a_worker_that_is_killed_is_told_and_started_again(tmp_path: Path) -> None:
    run = Run(tmp_path, "echo a", f"die once {tmp_path}/mark", "echo c")
    run.finish()
    assert run.answers == ["a", f"once {tmp_path}/mark", "c"]
    (error,) = run.of("error")
    assert error["message"] == "the process was killed by signal 9 (out of memory?)"
    assert not error["fatal"]
    assert run.events == ["restart", "done"]


def test_a_case_that_kills_three_times_is_given_up_and_the_rest_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, "die", "echo b", repetitions=2)
    run.finish()
    assert run.answers == ["b", "b"]
    assert [error["fatal"] for error in run.of("error")] == [False, False, True]


def test_a_variant_that_cannot_be_opened_is_given_up_and_the_rest_goes_on(tmp_path: Path) -> None:
    variants = (Variant("impossible"), Variant("deadly"), Variant("plain"))
    run = Run(tmp_path, "echo a", "echo b", variants=variants)
    run.finish()
    assert run.answers == ["a", "b"]
    errors = [(e["variant"], e["case"], e["fatal"]) for e in run.of("error")]
    assert errors == [("impossible", "", True), *[("deadly", "", fatal) for fatal in (False, False, True)]]
    assert run.of("error")[0]["remedy"] == "Use another."


def test_a_question_that_is_refused_is_an_error_and_the_rest_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, "refuse", "echo b")
    run.finish()
    assert run.answers == ["b"]
    assert [(e["message"], e["fatal"]) for e in run.of("error")] == [("the picture is damaged", True)]


def test_a_worker_that_hangs_is_ended(tmp_path: Path) -> None:
    run = Run(tmp_path, "hang", "echo b", timeout_s=0.2)
    run.finish()
    assert run.answers == ["b"]
    assert run.of("error")[0]["message"] == "there was no answer in 0.2 s"


def test_another_boot_is_a_reboot(tmp_path: Path) -> None:
    run = Run(tmp_path, "echo a", "slow 0.4", "echo c")
    process = run.start()
    wait_for(lambda: run.answers)
    process.kill()
    process.wait()
    run.boot("two")
    run.finish()
    assert run.events == ["reboot", "done"]
    assert run.answers == ["a", "0.4", "c"]
    assert {record["boot"] for record in run.records} == {"one", "two"}


def test_a_case_that_takes_the_device_down_each_time_is_given_up(tmp_path: Path) -> None:
    run = Run(tmp_path, "slow 1000", "echo b")
    for boot in range(3):
        process = run.start()
        wait_for(partial(_has_begun, run, process.pid, boot + 1))
        process.kill()
        process.wait()
        run.boot(f"after {boot}")
    run.finish()
    assert run.answers == ["b"]
    assert run.of("error")[0]["message"] == "the test went down 3 times while this was asked"


def test_a_soak_repeats_until_its_time_is_over_also_across_a_reboot(tmp_path: Path) -> None:
    run = Run(tmp_path, "slow 0.05", soak_s=1.5)
    process = run.start()
    wait_for(lambda: len(run.answers) >= 4)
    process.kill()
    process.wait()
    run.boot("two")
    run.finish()
    assert run.events == ["reboot", "done"]
    repetitions = [record["repetition"] for record in run.of("answer")]
    assert repetitions == list(range(len(repetitions)))
    assert 1.5 <= run.records[-1]["ran_s"] < 3
    assert run.records[-1]["ran_s"] - run.of("event")[0]["ran_s"] < 1.5  # what it ran before counts


def test_a_soak_of_which_nothing_is_left_to_ask_ends(tmp_path: Path) -> None:
    run = Run(tmp_path, "refuse", soak_s=1000.0)
    run.finish()
    assert run.events == ["done"]


def test_a_stopped_runner_says_so_and_the_next_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, "echo a", f"slow {5}", "echo c")
    process = run.start()
    wait_for(lambda: run.answers)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == 130
    assert run.records[-1]["what"] == "stopped"
    assert lines(out.decode())[-1] == run.records[-1]


def test_a_held_runner_ends_with_its_host(tmp_path: Path) -> None:
    run = Run(tmp_path, "echo a", "slow 1000")
    process = run.start(HYPERVL_HELD="1")
    wait_for(lambda: run.answers)
    assert process.stdin
    process.stdin.close()
    assert process.wait(timeout=10) == 130
    assert run.events == ["stopped"]


def test_a_second_runner_ends_the_one_that_does_not_know_that_its_host_is_gone(tmp_path: Path) -> None:
    run = Run(tmp_path, "echo a", f"die once {tmp_path}/mark", "slow 1.5", "echo d")
    first = run.start()
    wait_for(lambda: len(run.answers) == 2)
    run.finish()
    assert first.wait(timeout=5) == 130
    assert run.answers == ["a", f"once {tmp_path}/mark", "1.5", "d"]
    assert run.events == ["restart", "stopped", "resumed", "done"]


def test_another_bundle_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, "echo a", "slow 0.5")
    process = run.start()
    wait_for(lambda: run.answers)
    process.kill()
    process.wait()
    (run.bundle / "manifest.json").write_text('{"model": "other"}')
    process = run.start()
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 3
    refused = lines(out.decode())[-1]
    assert refused["kind"] == "refused"
    assert "is in use now" in refused["message"]


def test_a_folder_that_is_watched_gives_a_round_for_each_picture(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "a.jpg").write_text("first")
    (inbox / ".hidden.jpg").write_text("no")
    (inbox / "b.jpg.part").write_text("no")
    run = Run(
        tmp_path, watch=Watch(str(inbox)), live=(Case("q", "picture"), Case("r", "echo r")), repetitions=2
    )
    process = run.start()
    wait_for(lambda: len(run.answers) == 2)
    process.kill()
    process.wait()
    (inbox / "b.jpg").write_text("second")
    run.finish()
    assert run.answers == ["first", "r", "second", "r"]
    assert [(r["image"], r["repetition"]) for r in run.of("answer")] == [("a.jpg", 0)] * 2 + [
        ("b.jpg", 1)
    ] * 2
    for record in run.of("answer"):
        assert (run.folder / "pictures" / record["image_file"]).exists()


def test_a_camera_gives_a_round_for_each_shot(tmp_path: Path) -> None:
    camera = Camera(f"echo shot >>{tmp_path}/count; cp {tmp_path}/count {{output}}")
    run = Run(tmp_path, camera=camera, live=(Case("q", "picture"),), repetitions=3)
    run.finish()
    assert [answer.count("shot") for answer in run.answers] == [1, 2, 3]
    assert [r["image"] for r in run.of("answer")] == [f"camera-{i:06}.jpg" for i in (1, 2, 3)]


def test_a_round_that_was_cut_short_is_finished_with_the_same_shot(tmp_path: Path) -> None:
    camera = Camera(f"echo shot >>{tmp_path}/count; cp {tmp_path}/count {{output}}")
    live = (Case("q", "picture"), Case("r", "slow 0.5"), Case("s", "picture"))
    run = Run(tmp_path, camera=camera, live=live)
    process = run.start()
    wait_for(lambda: run.answers)
    process.kill()
    process.wait()
    run.finish()
    assert run.answers == ["shot\n", "0.5", "shot\n"]
    assert len({record["image_sha256"] for record in run.of("answer")}) == 1


def test_a_camera_that_fails_is_tried_again_and_then_its_round_is_given_up(tmp_path: Path) -> None:
    run = Run(
        tmp_path,
        "echo a",
        camera=Camera("echo no camera >&2; exit 7 # {output}"),
        live=(Case("q", "picture"),),
    )
    run.finish()
    assert run.answers == ["a"]
    assert [e["fatal"] for e in run.of("error")] == [False, False, True]
    assert run.of("error")[0]["message"] == "the camera's command ended with code 7: no camera"


def test_a_picture_is_asked_about_by_its_content(tmp_path: Path) -> None:
    run = Run(tmp_path)
    case = with_picture(run, Case("a", "picture"), b"pixels", "photos/a.jpg")
    write_order(run.folder / "suite.json", Order(replace(run.plan, cases=(case,)), "local", {}, "none", {}))
    run.finish()
    (answer,) = run.of("answer")
    assert (answer["answer"], answer["image"]) == ("pixels", "photos/a.jpg")


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path) -> None:
    run = Run(tmp_path, "echo a", "slow 0.3", "echo c")
    process = run.start()
    assert process.stdout
    process.stdout.close()
    process.wait(timeout=30)
    assert run.answers == ["a", "0.3", "c"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_storage_is_told_and_nothing_is_torn(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        run = Run(small, "echo " + "x" * 3000, repetitions=100)
        process = run.start()
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 3
        assert "No space left" in lines(out.decode())[-1]["message"]
        assert (run.folder / "records.jsonl").read_bytes().endswith(b"}\n")
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def _has_begun(run: Run, process: int, times: int) -> bool:
    return len(run.of("start") + run.of("event")) == times and bool(children_of(process))


def test_the_runner_leaves_the_memory_to_what_it_tests() -> None:
    code = "import sys, field.runner; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(done.stdout.split()) & {"numpy", "PIL", "tokenizers", "jinja2", "yaml", "rich", "typer"}
