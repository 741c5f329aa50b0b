"""What keeps a program on a device alive that we hold (`held`): a byte on its stdin, now and then."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import IO

_BEAT_S = 5.0  # `held` waits for a minute


class Beat(threading.Thread):
    """Begins at once. When it ends, the pipe is closed, and so the program there ends."""

    def __init__(self, into: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._into = into
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        with suppress(OSError, ValueError):
            while not self._over.wait(_BEAT_S):
                self._into.write(b"\n")
                self._into.flush()
        with suppress(OSError):
            self._into.close()

    def let_go(self) -> None:
        """Ends it, and does not wait."""
        self._over.set()

    def stop(self) -> None:
        self.let_go()
        self.join(timeout=5)
