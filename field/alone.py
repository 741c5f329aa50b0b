"""One process at a time for a folder."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from rpi_runtime.errors import ResourceError


class Alone:
    """One runner a folder. One from before may not know yet that its host is gone: it is ended."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"

    def __enter__(self) -> None:
        self._file = self._path.open("a+")
        for number, patience_s in ((0, 1.0), (signal.SIGINT, 15.0), (signal.SIGKILL, 5.0)):
            if number:
                self._file.seek(0)
                with suppress(ValueError, OSError):
                    os.kill(int(self._file.read()), number)
            until = time.monotonic() + patience_s
            while time.monotonic() < until:
                with suppress(BlockingIOError):
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._file.truncate(0)
                    self._file.write(str(os.getpid()))
                    self._file.flush()
                    return
                time.sleep(0.1)
        raise ResourceError("another runner of this field test does not end", "Restart the device.")

    def __exit__(self, *_: object) -> None:
        self._file.close()
