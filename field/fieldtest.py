"""A field test on several devices at once, from the host: one thread a device, which brings the runner there
what it needs, takes its records as they come, and comes back after a device that is lost.

`place.py` knows where things are on a device, `store.py` where results are here.
"""

from __future__ import annotations

import queue
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from field import records
from field.address import Address
from field.beat import Beat
from field.connect import connect
from field.device import Device, DeviceError, DeviceLost, quote
from field.outcomes import DeviceOutcome, outcome_of
from field.place import Place, clean_up, find_place, prepare
from field.plan import INTERRUPTED, PICTURES
from field.records import Record
from field.remote_pictures import unpack_pictures
from field.store import Results, slug
from rpi_runtime.errors import EdgeError, UsageError

_SILENCE_S = 60.0  # of a runner, which gives a sign of life every 5 s
_GRACE_S = 25.0  # for a runner that was asked to end
FIRST_DELAY_S = 1.0  # before a device that is lost is tried again; each time it is twice as long
LONGEST_DELAY_S = 30.0
_TRIES = 5  # of a runner that ends again and again and gets nothing done
_SAID_LINES = 20
_AT_ONCE = 200  # pictures that are fetched together

Connect = Callable[[Address], Device]


class FieldTest:
    """Starts with `start`; `wait` returns when every device is through, or after `stop`."""

    def __init__(
        self,
        results: Results,
        addresses: Sequence[Address],
        *,
        bundle: Path | None = None,
        patience_s: float = 1800.0,
        connect: Connect = connect,
    ) -> None:
        """`bundle` is what `local` asks. Raises `UsageError` for a device that is named twice."""
        names = [slug(address) for address in addresses]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"the device {name} is named twice", "Name each once.")
        self._stop = threading.Event()
        self.devices = [
            DeviceTest(results, address, bundle, patience_s, connect, self._stop) for address in addresses
        ]

    def start(self, on_record: Callable[[Address, Record], None] = lambda address, record: None) -> None:
        """`on_record` hears of each record, from several threads."""
        for device in self.devices:
            device.results.on_record = partial(on_record, device.address)
            device.start()

    def stop(self) -> None:
        """Ends the runners on the devices, too."""
        self._stop.set()

    def wait(self) -> None:
        """KeyboardInterrupt comes through."""
        for device in self.devices:
            # Not `join`: Python up to 3.12 takes a thread for ended when Ctrl-C interrupts that.
            while not device.ended.wait(0.2):
                pass
        for device in self.devices:
            if device.bug is not None:
                raise device.bug


class DeviceTest(threading.Thread):
    """What one device does, until it is done."""

    def __init__(
        self,
        results: Results,
        address: Address,
        bundle: Path | None,
        patience_s: float,
        connect: Connect,
        stop: threading.Event,
    ) -> None:
        super().__init__(name=str(address), daemon=True)
        self.address = address
        self.results = results.device(address)
        self.error: EdgeError | None = None  # why it is not done
        self.was_reached = False  # now, or in an earlier run
        self.bug: BaseException | None = None
        self.ended = threading.Event()
        self._plan, self._pictures, self._run = results.plan, results.pictures(), results.run
        self._bundle, self._patience_s, self._connect = bundle, patience_s, connect
        self._stop_asked = stop
        self._is_lost = False

    @property
    def is_done(self) -> bool:
        return self.results.history.is_done and not self.results.missing_pictures()

    def outcome(self) -> DeviceOutcome:
        return outcome_of(self._plan, self.results.read())

    def run(self) -> None:
        try:
            self._test()
        except EdgeError as error:
            self.error = error
        except BaseException as bug:
            self.bug = bug
        finally:
            self.ended.set()

    def _test(self) -> None:
        self.was_reached = self.results.history.start is not None
        if self.is_done:
            return
        lost_at, delay_s, tries = 0.0, FIRST_DELAY_S, 0
        with self._connect(self.address) as device:
            while not self._stop_asked.is_set():
                seq = self.results.history.seq
                try:
                    self._visit(device)
                    return
                except DeviceLost as lost:
                    self._lost(lost)
                    got_on = self.results.history.seq > seq
                    if got_on or not lost_at:
                        lost_at, delay_s, tries = time.monotonic(), FIRST_DELAY_S, 0
                    if time.monotonic() - lost_at > self._patience_s:
                        raise DeviceLost(
                            f"{lost.message}, for {self._patience_s / 60:.0f} minutes",
                            "The same command goes on from there.",
                        ) from None
                except Refused:
                    raise
                except DeviceError as ended:  # a system that shuts down fails in many ways
                    self._lost(ended)
                    tries = 1 if self.results.history.seq > seq + 2 else tries + 1
                    if tries >= _TRIES:
                        raise
                self._stop_asked.wait(delay_s)
                delay_s = min(2 * delay_s, LONGEST_DELAY_S)

    def _lost(self, why: EdgeError) -> None:
        if not self.was_reached:
            raise why
        if not self._is_lost and not self._stop_asked.is_set():
            self.results.tell(records.LOST, why.message)
            self._is_lost = True

    def _visit(self, device: Device) -> None:
        """Until the test there is done, or was stopped because we asked for it."""
        place = find_place(device, self._run, self._bundle)
        self.was_reached = True
        if not self.results.history.is_done:
            prepare(device, place, self._plan, self._pictures, self.results.of_device())
            self._follow(device, place)
        if self.results.history.is_done:
            self._fetch_pictures(device, place)
            clean_up(device, place)

    def _follow(self, device: Device, place: Place) -> None:
        """Has the runner run there, and takes what it records."""
        with _Remote(device, place.runner(self.results.sent_bytes)) as remote:
            asked_at = None
            while True:
                if self._stop_asked.is_set():
                    asked_at = asked_at or time.monotonic()
                    remote.let_go()
                    if time.monotonic() - asked_at > _GRACE_S:
                        return
                line = remote.line()
                if line is None:
                    if remote.silent_s > _SILENCE_S:
                        raise device.lost("it says nothing any more")
                    continue
                if not line:
                    break
                self._take(device, line)
        if self.results.history.is_done or self._stop_asked.is_set():
            return
        if remote.code is None:
            raise device.lost(remote.said)
        why = "was stopped" if remote.code == INTERRUPTED else f"ended with code {remote.code}"
        said = f": {remote.said.splitlines()[-1]}" if remote.said else ""
        raise DeviceError(
            f"{self.address}: the test there {why}{said}", "The same command goes on from there."
        )

    def _take(self, device: Device, line: bytes) -> None:
        record = records.parse(line)
        if record is not None and record["kind"] == "refused":
            raise Refused(f"{self.address}: {record['message']}", record["remedy"])
        if self._is_lost:
            self.results.tell(records.BACK, "the device is back, and the test goes on")
            self._is_lost = False
        try:
            self.results.add(line)
        except ValueError as error:  # the next visit gets them all
            raise device.lost(f"some of what it records did not arrive ({error})") from None

    def _fetch_pictures(self, device: Device, place: Place) -> None:
        names = self.results.missing_pictures()
        for first in range(0, len(names), _AT_ONCE):
            some = names[first : first + _AT_ONCE]
            with tempfile.TemporaryFile() as archive:
                # One that is not there does not keep the others from coming.
                device.stream(
                    f"cd {quote(f'{place.folder}/{PICTURES}')} || exit 1\nset --\n"
                    f"for name in {' '.join(map(quote, some))}; do\n"
                    '[ -f "$name" ] && set -- "$@" "$name"\ndone\n[ $# = 0 ] || tar cf - "$@"',
                    archive.write,
                    timeout=120,
                )
                if archive.tell():
                    archive.seek(0)
                    unpack_pictures(archive, some, self.results.folder / PICTURES)


class Refused(DeviceError):
    """The runner says why it cannot test: to ask again would not help."""


class _Remote:
    """A runner that runs on a device and is held by us."""

    def __init__(self, device: Device, script: str) -> None:
        self._process = device.start(f"{script}\nprintf '\\036{{\"left\":%d}}\\n' $?", stdin=subprocess.PIPE)
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        self.code: int | None = None  # of the runner; None when the connection ended first
        self._heard = time.monotonic()
        self._said: deque[str] = deque(maxlen=_SAID_LINES)
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True),
        ]
        self._beat = Beat(self._process.stdin)
        for thread in self._threads:
            thread.start()

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self._heard

    @property
    def said(self) -> str:
        return "\n".join(self._said)

    def line(self) -> bytes | None:
        """The next record, with its end; None when none came for a moment; b"" at the end."""
        try:
            return self._lines.get(timeout=0.2)
        except queue.Empty:
            return None

    def let_go(self) -> None:
        """Asks the runner to end: its stdin does."""
        self._beat.let_go()

    def __enter__(self) -> _Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self._beat.stop()
        self._process.kill()
        self._process.wait()
        for thread in self._threads:
            thread.join(timeout=5)

    def _read(self, stream: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            for line in stream:
                self._heard = time.monotonic()
                _, mark, content = line.rpartition(records.MARK)
                if not mark or not content.endswith(b"\n"):  # a shell's greeting, or torn
                    continue
                if content.startswith(b'{"left":'):
                    self.code = int(content[8:].strip().rstrip(b"}"))
                elif content != b"\n":
                    self._lines.put(content)
        self._lines.put(b"")

    def _listen(self, stream: IO[bytes]) -> None:
        with suppress(OSError, ValueError):
            for line in stream:
                if text := line.decode(errors="replace").strip():
                    self._said.append(text)
