"""`toolkit doctor`: findings about a device, as a table and as JSON, and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from field.address import parse_address
from field.doctor import examine
from tests.field.recorded import NAMES, closed_port, machine
from toolkit.device_view import show_findings

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = (
    "cat",
    "cp",
    "date",
    "df",
    "getconf",
    "gzip",
    "head",
    "id",
    "mkdir",
    "mv",
    "od",
    "rm",
    "tail",
    "tar",
    "uname",
)


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolkit.cli", "doctor", *arguments]
    inside = {**os.environ, "COLUMNS": "80", **environment}
    return subprocess.run(command, cwd=ROOT, env=inside, capture_output=True, text=True)


@pytest.fixture
def without_sha256sum(tmp_path: Path) -> Path:
    """A PATH that lacks a program that an installation needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).symlink_to(shutil.which(name) or name)
    return folder


def test_this_machine_can_do_the_job() -> None:
    done = doctor()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("this machine")
    assert "This device can do the job" in done.stdout
    assert "ai-edge-litert 2.3.0" in done.stdout


def test_json_has_findings_and_the_facts_behind_them() -> None:
    done = doctor("--device", "local", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["device"] == "local"
    assert told["problems"] == 0
    assert told["warnings"] == sum(finding["level"] == "warning" for finding in told["findings"])
    assert {"check", "level", "found", "follows", "remedy"} == set(told["findings"][0])
    assert told["machine"]["kernel_machine"] == os.uname().machine


def test_a_problem_leaves_with_1_and_says_what_to_do(without_sha256sum: Path) -> None:
    done = doctor(PATH=str(without_sha256sum))
    assert done.returncode == 1
    assert "local cannot do the job: tools" in done.stderr
    assert "missing: sha256sum" in done.stdout
    assert "coreutils" in done.stdout.partition("What to do")[2]
    told = json.loads(doctor("--json", PATH=str(without_sha256sum)).stdout)
    assert told["problems"] == 1


def test_a_device_that_cannot_be_reached_leaves_with_3_and_says_why() -> None:
    done = doctor("--device", f"ssh://pi@127.0.0.1:{closed_port()}")
    assert done.returncode == 3
    assert "Connection refused" in done.stderr
    assert "Is ssh enabled there?" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "address", ["raspberrypi", "ssh://", "ssh://-oProxyCommand=touch", "telnet://pi", ""]
)
def test_what_is_no_address_leaves_with_2(address: str) -> None:
    done = doctor("--device", address)
    assert done.returncode == 2
    assert "is no address" in done.stderr
    assert "ssh://user@host" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_findings_fit_80_columns_and_remedies_can_be_copied(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.report.out._width", 80)
    findings = examine(machine(name))
    show_findings(parse_address("ssh://pi@raspberrypi"), machine(name), findings)
    table, _, remedies = capsys.readouterr().out.partition("What to do")
    assert max(map(len, table.splitlines())) <= 80
    for finding in findings:
        assert finding.check in table
        assert finding.remedy in remedies  # in one line, however long
    # The worst is what one reads last.
    order = ["fine", "warning", "problem"]
    levels = [line.partition(" ")[0] for line in table.splitlines() if line.startswith(tuple(order))]
    assert len(levels) == len(findings)
    assert levels == sorted(levels, key=order.index)
