"""Ctrl-C and SIGTERM, at a time that suits."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupts:
    """SIGINT and SIGTERM as one KeyboardInterrupt, but not between the file and the host having a record."""

    def __init__(self) -> None:
        self._came = self._deferred = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._came:
            self._came = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: Any) -> None:
        for again in (signal.SIGINT, signal.SIGTERM):  # once is enough
            signal.signal(again, signal.SIG_IGN)
        if not self._deferred:
            raise KeyboardInterrupt
        self._came = True
