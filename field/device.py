"""A device at hand: its shell, and the bytes that go there and come back.

All goes through a POSIX shell that some program of this machine connects us with (the user's ssh, with its
keys and configuration; adb; for this machine itself, sh). Nothing has to be on the device but what every
Linux and Android has. Scripts are text for `sh`; whatever is put into one goes through `quote`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import TracebackType
from typing import IO

from field.address import Address
from rpi_runtime.errors import ResourceError

CHUNK_BYTES = 1 << 18
# Of one script: adb takes 64 KB, Linux 128 KB as one argument. More goes to a program's stdin.
SCRIPT_BYTES = 60_000
# A session that is cut looks like any other end: so what was run says its exit code last.
_END = b"\n\x1e"
_END_BYTES = 8  # at most: the mark, three digits, a line's end


class DeviceLost(ResourceError):
    """The connection ended, or cannot be made; the same may work again."""


class DeviceError(ResourceError):
    """What was asked of a device failed there."""


@dataclass(frozen=True)
class Done:
    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode(errors="replace")

    @property
    def said(self) -> str:
        """The last line on stderr, or of what came out."""
        lines = (self.err.decode(errors="replace").strip() or self.text.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit code {self.code}"


def quote(value: str | PurePosixPath) -> str:
    """`value` as one word of a shell's script, whatever is in it."""
    return shlex.quote(str(value))


class Device(ABC):
    """Ends in `close`, or with its `with`. One thread at a time, but for `close` and `drop`."""

    own_session = False  # whether what is started shares no terminal with us, as passwords need one

    def __init__(self, address: Address) -> None:
        self.address = address

    @abstractmethod
    def command(self, script: str) -> list[str]:
        """The program of this machine, with arguments, that has the device's shell run `script`. Its stdin,
        stdout and stderr are the script's. Raises `DeviceLost`, saying why."""

    @abstractmethod
    def lost(self, told: str) -> DeviceLost:
        """What is wrong when a program of `command` ended before its script did; `told` is its stderr."""

    def drop(self) -> None:  # noqa: B027
        """Ends the connection at once, from any thread; what runs over it is lost. The next command makes a
        new one."""

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """Ends what `start` gave, before its time."""
        process.kill()

    def close(self) -> None:  # noqa: B027
        """Ends the connection; nothing is left running on either side."""

    def start(self, script: str, stdin: int | IO[bytes] = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Starts `script` with pipes for stdout and stderr. Ctrl-C does not reach it: its starter ends it."""
        if len(os.fsencode(script)) > SCRIPT_BYTES:
            raise ValueError(f"a script of {len(os.fsencode(script))} bytes is more than a command may have")
        shielded = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", *self.command(script)]
        return subprocess.Popen(
            shielded,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=self.own_session,
        )

    def run(
        self,
        script: str,
        *,
        stdin: bytes | Iterator[bytes] = b"",
        timeout: float | None = 120,
        check: bool = True,
    ) -> Done:
        """Runs `script` to its end. Raises `DeviceLost`; with `check`, `DeviceError` for an exit code that is
        not 0."""
        out = bytearray()
        done = self.stream(script, out.extend, stdin=stdin, timeout=timeout)
        found = Done(done.code, bytes(out), done.err)
        if check and found.code:
            raise DeviceError(f"{self.address}: {found.said}", "See above; the device stays as it was.")
        return found

    def stream(
        self,
        script: str,
        on_out: Callable[[bytes], object],
        *,
        stdin: bytes | Iterator[bytes] = b"",
        timeout: float | None = None,
    ) -> Done:
        """As `run`, for output of any length: `on_out` has it as it comes. `timeout`, in seconds, is that of
        a device that says nothing at all and takes nothing; it counts as lost."""
        process = self.start(f"(\n{script}\n); printf '\\n\\036%d\\n' \"$?\"", stdin=subprocess.PIPE)
        assert process.stdin
        assert process.stdout
        assert process.stderr
        err = bytearray()
        pieces = _cut(stdin) if isinstance(stdin, bytes) else stdin
        reader = threading.Thread(target=_drain, args=(process.stderr, err), daemon=True)

        def give_up() -> None:
            self.end(process)
            self.drop()

        watch = _Watch(timeout, give_up)
        writer = _Feeder(pieces, process.stdin, watch.seen)
        reader.start()
        writer.start()
        held = b""
        patience_s = 0.2  # with pipes that something else may still hold
        try:
            while piece := process.stdout.read1(CHUNK_BYTES):  # type: ignore[attr-defined]
                watch.seen()
                held += piece
                if len(held) > _END_BYTES:
                    on_out(held[:-_END_BYTES])
                    held = held[-_END_BYTES:]
            patience_s = 5
        except BaseException:
            self.end(process)
            raise
        finally:
            watch.stop()
            process.stdout.close()
            process.wait()
            reader.join(patience_s)
            writer.join(patience_s)
        rest, mark, code = held.rpartition(_END)
        if not mark or not code.strip().isdigit():
            if writer.error is not None:
                raise writer.error
            lost = self.lost(err.decode(errors="replace"))
            if watch.fired:
                raise DeviceLost(f"{self.address}: it says nothing for {timeout:.0f} s", lost.remedy)
            raise lost
        if rest:
            on_out(rest)
        if writer.error is not None and not isinstance(writer.error, BrokenPipeError):
            raise writer.error
        return Done(int(code), b"", bytes(err))

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Feeder(threading.Thread):
    """Writes to a process that may leave before it has read all; keeps what went wrong while reading."""

    def __init__(self, pieces: Iterator[bytes], into: IO[bytes], on_written: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._pieces, self._into, self._on_written = pieces, into, on_written
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for piece in self._pieces:
                self._into.write(piece)
                self._into.flush()
                self._on_written()
        except BrokenPipeError:
            pass
        except BaseException as error:  # told by the thread that waits
            self.error = error
        finally:
            with contextlib.suppress(OSError):
                self._into.close()


class _Watch:
    """Calls `on_silence`, in a thread of its own, when nothing is seen for so long."""

    def __init__(self, seconds: float | None, on_silence: Callable[[], object]) -> None:
        self.fired = False
        self._on_silence = on_silence
        self._last = time.monotonic()
        self._over = threading.Event()
        if seconds is not None:
            threading.Thread(target=self._look, args=(seconds,), daemon=True).start()

    def seen(self) -> None:
        self._last = time.monotonic()

    def stop(self) -> None:
        self._over.set()

    def _look(self, seconds: float) -> None:
        while not self._over.wait(min(1.0, seconds / 4)):
            if time.monotonic() - self._last > seconds:
                self.fired = True
                self._on_silence()
                return


def _cut(data: bytes) -> Iterator[bytes]:
    """In pieces, each of which shows that the device still takes something."""
    return (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))


def _drain(stream: IO[bytes], into: bytearray) -> None:
    while piece := stream.read(4096):
        into.extend(piece)
