"""A field test on an emulated phone, whose cable is pulled out in its midst."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.field.reached import Reached
from tests.field.runs import wait_for
from tests.field.test_phone import phone

__all__ = ["phone"]  # a fixture
pytestmark = [pytest.mark.emulation, pytest.mark.slow]


def test_it_goes_on_when_the_cable_is_back(
    phone: Reached, nano_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    results, path = tmp_path / "results", tmp_path / "suite.yaml"
    path.write_text(f"images: [{photo}]\nquestions: ['What is this?']\nrepetitions: 6\nmax_new_tokens: 2\n")

    def of(kind: str) -> list[dict[str, Any]]:
        found = list(results.glob("adb-*/records.jsonl"))
        told = [json.loads(line) for line in found[0].read_text().splitlines()] if found else []
        return [record for record in told if record["kind"] == kind]

    phone.toolkit("deploy", nano_bundle, "--device", phone.address)
    process = phone.start("field-test", path, "--device", phone.address, "-o", results)
    wait_for(lambda: len(of("answer")) >= 2 or process.poll() is not None, seconds=300)
    phone.device.unplug()
    wait_for(lambda: of("event"), seconds=60)
    phone.device.plug_in()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    whats = [record["what"] for record in of("event")]
    assert (whats[0], whats[-1]) == ("lost", "done")
    assert "back" in whats
    assert [record["repetition"] for record in of("answer")] == list(range(6))
    assert of("start")[0]["machine"]["android_api"]
