"""The toolkit of here and a device that it reaches, emulated or of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


class Reached:
    """A device, and the toolkit of here in an `environment` where ssh or adb reach it."""

    def __init__(self, device: Any, work: Path, environment: Mapping[str, str]) -> None:
        self.device, self.work = device, work
        self.address: str = device.address
        ours = {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(work / "state")}
        self.environment = {**os.environ, **environment, **ours}

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "toolkit.cli", *map(str, words)],
            cwd=self.work,
            env=self.environment,
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


def question(bundle: Path | str, photo: Path) -> list[str]:
    asked = ["run", str(bundle), "--image", str(photo), "--prompt", "What is this?", "--max-new-tokens", "8"]
    return asked


def check_same(there: dict[str, Any], here: dict[str, Any]) -> None:
    assert len(here["token_ids"]) == 8
    assert there["token_ids"] == here["token_ids"]
    assert [i["sides_px"] for i in there["images"]] == [i["sides_px"] for i in here["images"]]


def when(told: Callable[[], bool], then: Callable[[], object], every_s: float = 0.02) -> threading.Thread:
    """Does `then` once `told` is true."""

    def wait() -> None:
        end = time.monotonic() + 300
        while not told() and time.monotonic() < end:
            time.sleep(every_s)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread
