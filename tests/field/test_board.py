"""The whole way to an emulated board with a kernel of its own, over real ssh: deployed, run, interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import script

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = [pytest.mark.emulation, pytest.mark.slow]


class Reached:
    """A board, and the toolkit of here with an ssh that knows its key."""

    def __init__(self, board: Any, path: Path, work: Path) -> None:
        self.board, self.work = board, work
        self.address: str = board.address
        self._environment = {
            **os.environ,
            "PATH": f"{path}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XDG_STATE_HOME": str(work / "state"),
        }

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "toolkit.cli", *map(str, words)],
            cwd=self.work,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def toolkit(self, *words: str | Path, code: int = 0) -> tuple[str, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=900)
        assert process.returncode == code, err
        return out, err

    def json(self, *words: str | Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.toolkit(*words, "--json")[0])
        return found

    def there(self, command: str) -> str:
        told: str = self.board.run(command, user="pi").stdout
        return told


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    """A Pi 4 with 512 MB, on which nothing of ours is installed."""
    yield from up(512, "PI4", tmp_path_factory.mktemp("board"))


def up(memory_mb: int, cpu: str, work: Path) -> Iterator[Reached]:
    emulation, openssh = script("emulation"), script("openssh")
    script("qemu")
    try:
        board = script("board").Board(memory_mb, getattr(emulation, cpu), bare=True)
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))
    with board:
        yield Reached(board, openssh.ssh_wrapper(work / "bin", board.ssh_config), work)


@pytest.fixture(scope="module")
def deployed(reached: Reached, nano_bundle: Path) -> Reached:
    reached.toolkit("deploy", nano_bundle, "--device", reached.address)
    return reached


def question(bundle: Path | str, photo: Path) -> list[str]:
    asked = ["run", str(bundle), "--image", str(photo), "--prompt", "What is this?", "--max-new-tokens", "8"]
    return asked


def check_same(there: dict[str, Any], here: dict[str, Any]) -> None:
    assert len(here["token_ids"]) == 8
    assert there["token_ids"] == here["token_ids"]
    assert [i["sides_px"] for i in there["images"]] == [i["sides_px"] for i in here["images"]]


def when(told: Callable[[], bool], then: Callable[[], object]) -> threading.Thread:
    """Does `then` once `told` is true."""

    def wait() -> None:
        end = time.monotonic() + 300
        while not told() and time.monotonic() < end:
            time.sleep(0.2)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_board_that_is_not_known_is_refused(reached: Reached, nano_bundle: Path) -> None:
    """With the keys that a user's ssh knows, which are not this board's."""
    process = subprocess.run(
        [sys.executable, "-m", "toolkit.cli", "deploy", str(nano_bundle), "--device", reached.address],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # nobody to ask
    )
    assert process.returncode == 3
    assert "Host key verification failed" in process.stderr
    assert "Connect once by hand" in process.stderr


def test_without_an_installation_it_says_how_to_make_one(
    reached: Reached, nano_bundle: Path, photo: Path
) -> None:
    _, err = reached.toolkit(*question(nano_bundle, photo), "--device", reached.address, code=3)
    assert f"toolkit deploy BUNDLE --device {reached.address}" in err


def test_a_full_device_is_refused_before_anything_is_copied(reached: Reached, nano_bundle: Path) -> None:
    reached.board.leave_free(60)
    try:
        _, err = reached.toolkit("deploy", nano_bundle, "--device", reached.address, code=3)
    finally:
        reached.board.leave_free(3000)
    assert "MB are needed in /home/pi/.local/share/hypervl-edge" in err
    assert reached.there("ls .local/share/hypervl-edge 2>/dev/null") == ""


def test_too_little_memory_is_refused_before_anything_is_copied(reached: Reached, nano_bundle: Path) -> None:
    words = ["deploy", nano_bundle, "--device", reached.address, "--memory", "60MB"]
    _, err = reached.toolkit(*words, code=3)
    assert "a memory budget of 60 MB is too small" in err
    assert "--force" in err
    assert reached.there("ls .local/share/hypervl-edge 2>/dev/null") == ""


def test_a_cut_copy_goes_on_where_it_was(reached: Reached, nano_bundle: Path) -> None:
    """It is cut while the runtime arrives, 32 MB."""
    arrived = "cat .local/share/hypervl-edge/incoming/*.partial/* 2>/dev/null | wc -c"
    cut = when(lambda: int(reached.there(arrived) or 0) > 4_000_000, reached.board.cut_connections)
    _, err = reached.toolkit("deploy", nano_bundle, "--device", reached.address, code=3)
    cut.join()
    assert "the same command goes on from there" in err
    there = int(reached.there(arrived))
    assert there > 4_000_000
    done = reached.json("deploy", nano_bundle, "--device", reached.address)
    assert done["switched"]
    assert done["runtime"]["sent_bytes"] <= done["runtime"]["bytes"] - there


def test_deployed_again_nothing_travels(deployed: Reached, nano_bundle: Path) -> None:
    done = deployed.json("deploy", nano_bundle, "--device", deployed.address)
    assert (done["runtime"]["sent_bytes"], done["bundle"]["sent_bytes"]) == (0, 0)
    assert not done["switched"]


def test_it_gives_the_same_tokens_in_512_mb_without_lse(
    deployed: Reached, nano_bundle: Path, photo: Path
) -> None:
    here = deployed.json(*question(nano_bundle, photo))
    drawn = deployed.work / "routing.png"
    asked = [*question(nano_bundle, photo), "--routing", drawn]
    there = deployed.json(*asked, "--device", deployed.address)
    check_same(there, here)
    assert set(there) == set(here)
    assert "without its GPU library" in there["backend"]["reason"]
    assert there["memory"]["peak_resident_bytes"] < 200_000_000
    assert drawn.read_bytes().startswith(b"\x89PNG")
    total = int(deployed.there("cat /proc/meminfo").split()[1])
    assert total * 1024 < 512 << 20


def test_errors_and_exit_codes_are_those_of_there(deployed: Reached, nano_bundle: Path) -> None:
    words = question(nano_bundle, Path("no such picture.jpg"))
    _, err = deployed.toolkit(*words, "--device", deployed.address, code=3)
    assert err.startswith("error: no such picture.jpg does not exist")


def test_ctrl_c_ends_it_there(deployed: Reached, nano_bundle: Path, photo: Path) -> None:
    running = "pgrep -f toolkit.entr[y] | wc -l"
    process = deployed.start(*question(nano_bundle, photo), "--device", deployed.address)
    when(lambda: int(deployed.there(running)) > 0, lambda: process.send_signal(signal.SIGINT)).join()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped by Ctrl-C" in err
    assert int(deployed.there(running)) == 0


def test_a_connection_that_is_lost_ends_it_there(deployed: Reached, nano_bundle: Path, photo: Path) -> None:
    running = "pgrep -f toolkit.entr[y] | wc -l"
    process = deployed.start(*question(nano_bundle, photo), "--device", deployed.address)
    when(lambda: int(deployed.there(running)) > 0, deployed.board.cut_connections).join()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert deployed.address in err
    end = time.monotonic() + 90
    while int(deployed.there(running)) and time.monotonic() < end:
        time.sleep(1)
    assert int(deployed.there(running)) == 0


def test_what_a_bundle_shares_with_the_one_before_does_not_travel_and_a_rollback_puts_that_back(
    deployed: Reached, nano_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(nano_bundle, changed)
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["model"] = "another-name"
    (changed / "manifest.json").write_text(json.dumps(manifest))
    done = deployed.json("deploy", changed, "--device", deployed.address)
    assert done["switched"]
    assert done["runtime"]["sent_bytes"] == 0
    assert 0 < done["bundle"]["sent_bytes"] < 100_000 < done["bundle"]["bytes"]
    back = deployed.json("deploy", "--rollback", "--device", deployed.address)
    assert back["in_use"]["name"] == nano_bundle.name
    there = deployed.json(*question(nano_bundle.name, photo), "--device", deployed.address)
    assert there["model"] != "another-name"


def test_a_reboot_keeps_it(deployed: Reached, nano_bundle: Path) -> None:
    deployed.board.reboot()
    done = deployed.json("deploy", nano_bundle, "--device", deployed.address)
    assert not done["switched"]


def test_a_pi_5_with_1_gb_gives_the_same_tokens(
    nano_bundle: Path, photo: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for board in up(1024, "PI5", tmp_path_factory.mktemp("board-5")):
        board.toolkit("deploy", nano_bundle, "--device", board.address)
        there = board.json(*question(nano_bundle, photo), "--device", board.address)
        check_same(there, board.json(*question(nano_bundle, photo)))
        assert there["backend"]["reason"] == "ai-edge-litert is installed"
