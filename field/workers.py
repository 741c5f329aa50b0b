"""Starts the process that answers (`worker`), asks it, and tells how it died."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any

from field.plan import Variant
from rpi_runtime.errors import EdgeError

_SIGNALLED = 128  # a shell's exit code for what a signal ended, less its number


class WorkerDied(Exception):
    """What the process died of, as a sentence."""


class Refused(EdgeError):
    """What an `EdgeError` in the worker said."""


def command(bundle: str) -> list[str]:
    return [sys.executable, "-m", "field.worker", bundle]


class Worker:
    """One variant's process."""

    def __init__(self, command: Sequence[str], variant: Variant, open_timeout_s: float) -> None:
        """Raises `WorkerDied`, and `Refused` for a variant that cannot be on this device."""
        self.variant = variant
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self._process.stdout
        assert self._process.stderr
        self._replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._said: deque[str] = deque(maxlen=20)
        threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True).start()
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()
        try:
            self._request({"open": asdict(variant)}, open_timeout_s)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: str, image: str | None, max_new_tokens: int, timeout_s: float) -> dict[str, Any]:
        """The reply's `answer` and `report`. Raises `WorkerDied`, `Refused`."""
        return self._request({"ask": question, "image": image, "max_new_tokens": max_new_tokens}, timeout_s)

    def close(self) -> None:
        """At once: it has nothing to keep."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _request(self, content: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self._process.stdin
        with suppress(OSError):  # it died: that is told below
            self._process.stdin.write(json.dumps(content).encode() + b"\n")
            self._process.stdin.flush()
        until = time.monotonic() + timeout_s
        while True:
            try:
                line = self._replies.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                self._process.kill()
                self._process.wait()
                raise WorkerDied(f"there was no answer in {timeout_s:g} s") from None
            if not line:
                raise WorkerDied(self._how_it_died())
            reply: dict[str, Any] = json.loads(line)
            if "error" in reply:
                raise Refused(reply["error"], reply["remedy"])
            if "note" not in reply:
                return reply

    def _how_it_died(self) -> str:
        code = self._process.wait()
        number = -code if code < 0 else code - _SIGNALLED
        if number > 0 and number in set(signal.Signals):
            why = " (out of memory?)" if number == signal.SIGKILL else ""
            return f"the process was killed by signal {number}{why}"
        self._listener.join(timeout=2)
        return f"the process ended with code {code}: {self._said[-1] if self._said else 'it said nothing'}"

    def _read(self, stream: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            for line in stream:
                self._replies.put(line)
        self._replies.put(b"")

    def _listen(self, stream: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            for line in stream:
                if text := line.decode(errors="replace").strip():
                    self._said.append(text)
