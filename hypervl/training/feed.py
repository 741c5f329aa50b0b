"""Batches made by worker processes, in order, a few ahead of the training."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

AHEAD = 6  # batches in the making


class Source(Protocol):
    """Anything that makes batch `number` at a level of difficulty, and can be sent to another process."""

    def build(self, number: int, level: int) -> Any: ...


class Feed:
    """Batch after batch of `source`. The level may rise while batches are in the making; `levels` notes from
    which batch on each holds, so that a resumed training sees the same batches as an uninterrupted one."""

    def __init__(
        self, source: Source, pool: ProcessPoolExecutor | None, first: int, levels: list[tuple[int, int]]
    ) -> None:
        self._source, self._pool, self._next = source, pool, first
        self.levels = levels  # (first batch, level), ascending
        self._waiting: deque[Future[Any]] = deque()

    def take(self) -> Any:
        """The next batch."""
        if self._pool is None:
            self._next += 1
            return self._source.build(self._next - 1, self._level(self._next - 1))
        while len(self._waiting) < AHEAD:
            number = self._next + len(self._waiting)
            self._waiting.append(self._pool.submit(self._source.build, number, self._level(number)))
        self._next += 1
        return self._waiting.popleft().result()

    def raise_level(self) -> None:
        """From the first batch on that can not have been begun."""
        self.levels.append((self._next + AHEAD, self.levels[-1][1] + 1))

    @property
    def level(self) -> int:
        return self.levels[-1][1]

    def _level(self, number: int) -> int:
        return next(level for first, level in reversed(self.levels) if number >= first)


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor | None]:
    """`count` processes, or None for 0: batches are then made where they are used."""
    if count == 0:
        yield None
        return
    # "spawn": a forked child of a process that runs PyTorch threads may hang.
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _serve) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _serve() -> None:
    """Ctrl-C is the parent's to handle; a worker whose parent was killed leaves."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)  # training's threads wait for one another: one that is kept waiting holds up all
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
