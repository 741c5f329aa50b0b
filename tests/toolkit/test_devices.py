"""`toolkit devices`: what is within reach, what it is, and why something is not reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from field.address import parse_address
from field.doctor.delegates import for_apps, usable
from field.known_devices import remember
from field.roll_call import Answer
from tests.field.recorded import NAMES, closed_port, machine
from toolkit.device_view import show_devices

ROOT = Path(__file__).resolve().parents[2]
# Of adb, what we call: two phones, of which one has not allowed it yet. The other one is this machine.
ADB = """#!/bin/sh
case $1 in
  devices) printf 'List of devices attached\\nR58M123ABC\\tdevice\\nemulator-5554\\tunauthorized\\n\\n' ;;
  -s) [ "$2 $3 $4" = "R58M123ABC shell -T" ] && exec sh -c "$5" ;;
esac
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without a device that was ever deployed to, and without a phone."""
    program = tmp_path / "bin" / "adb"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'List of devices attached'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def adb(home: Path) -> Path:
    program = home / "bin" / "adb"
    program.write_text(ADB)
    return program


def devices(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolkit.cli", "devices", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def answers(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(devices(*arguments, "--json").stdout)
    return found


def test_this_machine_is_always_there(home: Path) -> None:
    done = devices()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("this machine")
    for row in (
        "cpu",
        "features",
        "memory",
        "storage",
        "system",
        "python",
        "runtime",
        "delegates",
        "temperature",
    ):
        assert f"\n{row} " in done.stdout
    assert answers()[0]["address"] == "local"
    assert answers()[0]["delegates"][0] == "cpu"


def test_phones_that_adb_knows_are_there_and_one_that_is_not_allowed_says_so(adb: Path) -> None:
    found = {answer["address"]: answer for answer in answers()}
    assert list(found) == ["local", "adb://R58M123ABC", "adb://emulator-5554"]
    assert found["adb://R58M123ABC"]["machine"]["kernel"] == os.uname().release
    assert found["adb://emulator-5554"]["machine"] is None
    assert "unauthorized" in found["adb://emulator-5554"]["error"]
    assert "phone's screen" in found["adb://emulator-5554"]["remedy"]
    assert devices().returncode == 0  # nobody asked for that one


def test_an_adb_that_does_not_start_is_told_and_the_rest_is_listed(adb: Path) -> None:
    adb.write_text("#!/bin/sh\necho 'cannot bind to 127.0.0.1:5037' >&2; exit 1\n")
    done = devices()
    assert done.returncode == 0
    assert "cannot bind" in done.stderr
    assert done.stdout.startswith("this machine")


def test_one_that_was_deployed_to_is_asked_and_its_silence_is_no_failure(home: Path) -> None:
    address = f"ssh://pi@127.0.0.1:{closed_port()}"
    remember(parse_address(address))
    done = devices()
    assert done.returncode == 0, done.stderr
    assert address in done.stdout
    assert "Connection refused" in done.stdout


def test_one_that_was_asked_for_by_name_and_is_silent_leaves_with_3(home: Path) -> None:
    address = f"ssh://pi@127.0.0.1:{closed_port()}"
    done = devices(address)
    assert done.returncode == 3
    assert f"not reached: {address}" in done.stderr
    assert "Is ssh enabled there?" in done.stdout
    assert done.stdout.startswith("this machine")
    as_json = devices(address, "--json")
    assert as_json.returncode == 3
    assert [answer["address"] for answer in json.loads(as_json.stdout)] == ["local", address]


def test_nothing_waits_for_another(home: Path) -> None:
    """Hosts that never answer cost one wait together (192.0.2.0/24 is nobody's, RFC 5737)."""
    began = time.monotonic()
    done = devices(*(f"ssh://pi@192.0.2.{number}" for number in range(1, 7)))
    assert done.returncode == 3
    assert time.monotonic() - began < 25


def test_what_is_no_address_leaves_with_2_before_anything_is_asked(home: Path) -> None:
    done = devices("local", "raspberrypi")
    assert done.returncode == 2
    assert "'raspberrypi' is no address" in done.stderr
    assert done.stdout == ""


def test_each_is_listed_once(adb: Path) -> None:
    remember(parse_address("adb://R58M123ABC"))
    listed = [answer["address"] for answer in answers("local", "adb://R58M123ABC")]
    assert listed == ["local", "adb://R58M123ABC", "adb://emulator-5554"]


@pytest.mark.parametrize("name", NAMES)
def test_devices_fit_80_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.report.out._width", 80)
    found = machine(name)
    show_devices([Answer(parse_address("ssh://pi"), found, usable(found), for_apps(found))])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    if name == "pi4_bookworm":
        assert "Cortex-A72, 4 cores, aarch64" in shown
        assert "no LSE, no dot product" in shown
        assert "cpu-thermal 49 °C" in shown
