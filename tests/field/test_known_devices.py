"""Devices that were deployed to are found again."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from field.address import parse_address
from field.known_devices import known, remember, state_file


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def names() -> list[str]:
    return [str(address) for address in known()]


def test_the_latest_is_first_and_each_is_there_once(state: Path) -> None:
    assert known() == ()
    for text in ("ssh://pi@one", "adb://1234", "ssh://pi@two:2222", "ssh://pi@one"):
        remember(parse_address(text))
    assert names() == ["ssh://pi@one", "ssh://pi@two:2222", "adb://1234"]
    assert state_file() == state / "hypervl-edge" / "devices.json"
    assert [file.name for file in state_file().parent.iterdir()] == ["devices.json"]


def test_this_machine_and_the_only_phone_need_no_remembering() -> None:
    remember(parse_address("local"))
    remember(parse_address("adb://"))
    assert known() == ()


def test_only_the_latest_are_kept() -> None:
    for number in range(40):
        remember(parse_address(f"ssh://board{number}"))
    assert names() == [f"ssh://board{number}" for number in range(39, 7, -1)]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"devices": 3}', "\x00", '{"devices": ' * 5000])
def test_a_file_that_cannot_be_read_is_as_none_and_is_replaced(text: str) -> None:
    state_file().parent.mkdir(parents=True)
    state_file().write_text(text)
    assert known() == ()
    remember(parse_address("ssh://pi"))
    assert names() == ["ssh://pi"]


def test_what_is_no_address_is_passed_over() -> None:
    state_file().parent.mkdir(parents=True)
    state_file().write_text(json.dumps({"devices": ["ssh://-oProxyCommand=x", 3, None, "ssh://pi"]}))
    assert names() == ["ssh://pi"]


def test_a_home_that_cannot_be_written_to_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember(parse_address("ssh://pi"))
    assert known() == ()


def test_a_relative_folder_counts_as_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert state_file() == tmp_path / ".local" / "state" / "hypervl-edge" / "devices.json"


def test_who_reads_while_others_write_sees_a_whole_list() -> None:
    remember(parse_address("ssh://first"))
    over = threading.Event()

    def write() -> None:
        for number in range(100):
            remember(parse_address(f"ssh://board{number}"))
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not over.is_set():
        assert json.loads(state_file().read_text())["devices"]
    writer.join()
