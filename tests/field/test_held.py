"""A program on a device lives no longer than the host that holds it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys, time
from field.held import hold
try:
    print(hold(silence_s={silence}, grace_s={grace}), flush=True)
    {body}
except KeyboardInterrupt:
    print("interrupted", flush=True)
    {after}
"""


def start(
    *,
    held: bool = True,
    silence: float = 60,
    grace: float = 10,
    body: str = "time.sleep(60)",
    after: str = "pass",
) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"HYPERVL_HELD": "1"} if held else {})
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(silence=silence, grace=grace, body=body, after=after)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout
    assert process.stdout.readline() == f"{held}\n"
    return process


def test_it_is_interrupted_when_its_stdin_ends() -> None:
    process = start()
    out, _ = process.communicate(timeout=10)
    assert out == "interrupted\n"
    assert process.returncode == 0


def test_it_is_interrupted_when_no_byte_comes_for_a_while() -> None:
    process = start(silence=2)
    assert process.stdin
    assert process.stdout
    for _ in range(6):  # longer than the silence in all
        time.sleep(0.4)
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.poll() is None
    assert process.stdout.readline() == "interrupted\n"
    assert process.wait(timeout=10) == 0


def test_it_is_killed_when_that_does_not_end_it() -> None:
    process = start(grace=0.3, after="time.sleep(60)")
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL


def test_its_own_stdin_is_empty() -> None:
    process = start(body="print(repr(sys.stdin.read()), flush=True); time.sleep(60)")
    assert process.stdout
    assert process.stdout.readline() == "''\n"
    process.communicate(timeout=10)


def test_without_the_host_s_word_stdin_is_left_alone() -> None:
    process = start(held=False, body="print(sys.stdin.read())")
    out, _ = process.communicate("text", timeout=10)
    assert out == "text\n"


def test_the_toolkit_is_held() -> None:
    code = (
        "import time, toolkit.cli\n"
        "def main(): print('started', flush=True); time.sleep(60)\n"
        "toolkit.cli.main = main\n"
        "from toolkit.entry import main\n"
        "main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HYPERVL_HELD": "1"},
    )
    assert process.stdout
    assert process.stdout.readline() == b"started\n"
    process.communicate(timeout=10)
    assert process.returncode != 0
