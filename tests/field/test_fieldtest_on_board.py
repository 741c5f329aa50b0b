"""A soak on an emulated board that loses its power: what was recorded stays, and the soak goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.field.reached import Reached
from tests.field.runs import wait_for
from tests.field.test_board import PREFIX, pi_4

__all__ = ["pi_4"]  # a fixture
pytestmark = [pytest.mark.emulation, pytest.mark.slow]


def test_a_soak_goes_on_after_a_power_cut(
    pi_4: Reached, nano_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    results, path = tmp_path / "results", tmp_path / "suite.yaml"
    path.write_text(
        f"images: [{photo}]\nquestions: ['What is this?']\nsoak: 60s\nmax_new_tokens: 2\ntelemetry_s: 1\n"
    )

    def records() -> list[dict[str, Any]]:
        found = list(results.glob("ssh-*/records.jsonl"))
        return [json.loads(line) for line in found[0].read_text().splitlines()] if found else []

    pi_4.toolkit("deploy", nano_bundle, "--device", pi_4.address)
    process = pi_4.start("field-test", path, "--device", pi_4.address, "-o", results)
    wait_for(lambda: len([r for r in records() if r["kind"] == "answer"]) >= 2, seconds=300)
    before = records()
    pi_4.device.reboot(power_cut=True)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    told = records()
    assert told[: len(before)] == before
    assert [r["what"] for r in told if r["kind"] == "event"] == ["lost", "back", "reboot", "done"]
    own = [r for r in told if not r.get("host")]
    assert [r["seq"] for r in own] == list(range(1, len(own) + 1))
    assert len({r["boot"] for r in own}) == 2
    rounds = [r["repetition"] for r in told if r["kind"] == "answer"]
    assert rounds == list(range(len(rounds)))
    assert own[-1]["ran_s"] >= 60
    assert {r["memory_available_bytes"] > 0 for r in told if r["kind"] == "telemetry"} == {True}
    assert not pi_4.device.run(f"ls {PREFIX}/field").stdout.strip()
