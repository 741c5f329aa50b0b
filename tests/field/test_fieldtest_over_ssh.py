"""A field test over a real sshd, from a deployed bundle: cut in its midst, stopped, and finished."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.field.reached import Reached, when
from tests.field.runs import processes_with, wait_for
from tests.field.test_over_ssh import deployed, prefix, reached

__all__ = ["deployed", "reached"]  # fixtures
pytestmark = pytest.mark.emulation


def records_in(results: Path) -> list[dict[str, Any]]:
    found = list(results.glob("ssh-*/records.jsonl"))
    return [json.loads(line) for line in found[0].read_text().splitlines()] if found else []


def of(results: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in records_in(results) if record["kind"] == kind]


def suite(work: Path, photo: Path, repetitions: int) -> Path:
    path = work / "suite.yaml"
    path.write_text(
        f"images: [{photo}]\nquestions: ['What is this?']\nrepetitions: {repetitions}\nmax_new_tokens: 2\n"
    )
    return path


def test_a_cut_and_a_stopped_field_test_goes_on_and_leaves_nothing_there(
    deployed: Reached, photo: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    words = ["field-test", suite(tmp_path, photo, 40), "--device", deployed.address, "-o", results]
    process = deployed.start(*words)
    cut = when(lambda: len(of(results, "answer")) >= 5, deployed.device.cut_connections)
    wait_for(lambda: [e for e in of(results, "event") if e["what"] == "back"], seconds=120)
    cut.join()
    before = len(of(results, "answer"))
    wait_for(lambda: len(of(results, "answer")) > before, seconds=60)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not processes_with("field.runner")
    deployed.toolkit(*words)
    events = [record["what"] for record in of(results, "event")]
    assert events[:3] == ["lost", "back", "stopped"] or events[:3] == ["lost", "back", "resumed"]
    assert events[-3:] == ["stopped", "resumed", "done"]
    assert [record["repetition"] for record in of(results, "answer")] == list(range(40))
    (start,) = of(results, "start")
    assert start["runtime"]["id"]
    assert start["device"] == deployed.address
    assert not list((prefix(deployed) / "field").glob("*"))
