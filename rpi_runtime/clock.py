"""Where the time of an answer goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Milliseconds per phase. A phase within another stops the outer one."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._since = self._started
        self._stack: list[str] = []
        self._ms: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._book()
        self._stack.append(name)
        try:
            yield
        finally:
            self._book()
            self._stack.pop()

    def ms(self, name: str) -> float:
        return self._ms.get(name, 0.0)

    @property
    def total_ms(self) -> float:
        return (time.perf_counter() - self._started) * 1e3

    def _book(self) -> None:
        now = time.perf_counter()
        if self._stack:
            self._ms[self._stack[-1]] = self.ms(self._stack[-1]) + (now - self._since) * 1e3
        self._since = now
