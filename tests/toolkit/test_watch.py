"""`toolkit watch`: every picture that comes into a folder has one line, whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache), "TERM": "dumb"}


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@contextmanager
def watching(environment: dict[str, str], bundle: Path, inbox: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [
            sys.executable, "-m", "toolkit.cli", "watch", str(bundle), "--folder", str(inbox),
            "--prompt", "What?", "--max-new-tokens", "3", "--threads", "1",
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def lines(inbox: Path) -> list[dict[str, Any]]:
    path = inbox / "answers.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for(met: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not met():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_each_picture_is_answered_once_across_a_kill_and_a_damaged_one_is_told(
    environment: dict[str, str], nano_bundle: Path, photo: Path, inbox: Path
) -> None:
    shutil.copy(photo, inbox / "a.png")
    (inbox / ".hidden.png").write_text("no picture")
    (inbox / "coming.png.part").write_text("half a picture")
    with watching(environment, nano_bundle, inbox) as process:
        wait_for(lambda: len(lines(inbox)) == 1)
        (inbox / "b.png").write_text("no picture")
        wait_for(lambda: len(lines(inbox)) == 2)
        process.kill()
        out, err = process.communicate()
    first, second = lines(inbox)
    assert first["name"] == "a.png"
    assert first["new_tokens"] <= 3
    assert out == f"a.png: {first['answer']}\n"
    assert second["name"] == "b.png"
    assert "b.png" in second["error"]
    assert second["error"] in err
    with (inbox / "answers.jsonl").open("a") as file:
        file.write('{"name": "torn')
    with watching(environment, nano_bundle, inbox) as process:
        shutil.copy(photo, inbox / "c.png")
        wait_for(lambda: (inbox / "answers.jsonl").read_text().count("\n") == 3)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert [line["name"] for line in lines(inbox)] == ["a.png", "b.png", "c.png"]
    assert "Stopped after 1 picture." in err


def test_a_picture_is_left_alone_until_its_size_is_stable(
    environment: dict[str, str], nano_bundle: Path, photo: Path, inbox: Path
) -> None:
    content = photo.read_bytes()
    with watching(environment, nano_bundle, inbox) as process:
        with (inbox / "slow.png").open("wb", buffering=0) as file:
            for start in range(0, len(content), len(content) // 15):
                file.write(content[start : start + len(content) // 15])
                time.sleep(0.2)
        wait_for(lambda: len(lines(inbox)) == 1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert "answer" in lines(inbox)[0]


def test_a_folder_that_is_not_there_is_told(
    environment: dict[str, str], nano_bundle: Path, inbox: Path
) -> None:
    with watching(environment, nano_bundle, inbox / "no") as process:
        _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "no such folder" in err
