"""Batches in order, some ahead, at levels that hang on the batch's number alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hypervl.training.feed import AHEAD, Feed, workers
from hypervl.training.panel_data import PrimerSource


class _Echo:
    def __init__(self) -> None:
        self.made: list[int] = []
        self._lock = threading.Lock()

    def build(self, number: int, level: int) -> tuple[int, int]:
        with self._lock:
            self.made.append(number)
        if number == 13:
            raise ValueError("batch 13")
        return number, level


def test_batches_come_in_order_from_where_a_run_goes_on() -> None:
    feed = Feed(_Echo(), None, first=5, levels=[(0, 1)])
    assert [feed.take() for _ in range(3)] == [(5, 1), (6, 1), (7, 1)]


@pytest.mark.parametrize("raised_at", [0, 1, 4])
def test_a_pool_gives_the_batches_and_levels_that_no_pool_gives(raised_at: int) -> None:
    taken = []
    with ThreadPoolExecutor(3) as pool:
        for where in (None, pool):
            feed = Feed(_Echo(), where, 0, [(0, 0)])  # type: ignore[arg-type]
            found = []
            for number in range(12):
                if number == raised_at:
                    feed.raise_level()
                found.append(feed.take())
            taken.append(found)
    assert taken[0] == taken[1] == [(n, int(n >= raised_at + AHEAD)) for n in range(12)]


def test_a_feed_that_goes_on_knows_the_levels_that_were_reached() -> None:
    first = Feed(_Echo(), None, 0, [(0, 0)])
    first.take()
    first.raise_level()
    resumed = Feed(_Echo(), None, 1, list(first.levels))
    assert first.level == resumed.level == 1
    assert [resumed.take() for _ in range(8)] == [first.take() for _ in range(8)]


def test_no_more_is_made_ahead_than_promised() -> None:
    source = _Echo()
    with ThreadPoolExecutor(2) as pool:
        Feed(source, pool, 0, [(0, 0)]).take()  # type: ignore[arg-type]
    assert sorted(source.made) == list(range(AHEAD))


def test_what_goes_wrong_in_a_worker_is_raised_where_its_batch_is_taken() -> None:
    with ThreadPoolExecutor(1) as pool:
        feed = Feed(_Echo(), pool, 12, [(0, 0)])  # type: ignore[arg-type]
        assert feed.take() == (12, 0)
        with pytest.raises(ValueError, match="batch 13"):
            feed.take()


def test_a_worker_process_makes_the_same_batches() -> None:
    source = PrimerSource(side=64, cell=8, pages=1)
    with workers(0) as nobody, workers(1) as pool:
        assert nobody is None
        here, there = Feed(source, nobody, 0, [(0, 2)]), Feed(source, pool, 0, [(0, 2)])
        for _ in range(2):
            one, other = here.take(), there.take()
            np.testing.assert_array_equal(one.images, other.images)
            np.testing.assert_array_equal(one.characters, other.characters)
