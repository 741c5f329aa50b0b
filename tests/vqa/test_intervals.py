"""Intervals of shares: Wilson's, widened for questions that share a picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from vqa.intervals import share, wilson


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_with_one_question_per_picture_it_is_scipys_wilson_interval(counts: tuple[int, int]) -> None:
    right, asked = counts
    theirs = binomtest(right, asked).proportion_ci(0.95, method="wilson")
    assert wilson(right / asked, asked) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    ours = share((number, number < right) for number in range(asked))
    assert (ours.right, ours.asked, ours.value) == (right, asked, right / asked)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_questions_that_fail_together_count_as_their_pictures() -> None:
    pictures = [number % 4 != 0 for number in range(100)]
    together = share((number, right) for number, right in enumerate(pictures) for _ in range(8))
    apart = share(enumerate(pictures))
    assert together.value == apart.value
    # But for the one degree of freedom: 800 - 1 questions by 8, not 100 - 1 pictures.
    assert (together.low, together.high) == pytest.approx((apart.low, apart.high), abs=1e-3)


@pytest.mark.parametrize("right", [True, False])
def test_where_all_answers_are_alike_only_pictures_count(right: bool) -> None:
    found = share((number // 8, right) for number in range(800))
    assert (found.low, found.high) == pytest.approx(wilson(float(right), 100))
    assert found.low < found.high


def test_nothing_asked_is_nothing_known() -> None:
    nothing = share([])
    assert (nothing.asked, nothing.value, nothing.low, nothing.high) == (0, 0.0, 0.0, 1.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1))
def test_the_share_lies_inside_and_pictures_never_narrow_it(outcomes: list[tuple[int, bool]]) -> None:
    found = share(outcomes)
    low, high = wilson(found.value, found.asked)
    assert 0 <= found.low <= min(low, found.value) + 1e-12
    assert max(high, found.value) - 1e-12 <= found.high <= 1


def test_it_covers_the_truth_as_often_as_it_says_where_plain_wilson_does_not() -> None:
    """8 questions per picture; sharp pictures are read at 95 %, blurred ones at 35 %: the truth is 80 %."""
    chance = np.random.default_rng(1)
    covered = plain = 0
    for _ in range(400):
        sharp = chance.random(100) < 0.75
        right = chance.random((100, 8)) < np.where(sharp, 0.95, 0.35)[:, None]
        found = share((picture, bool(r)) for picture, row in enumerate(right) for r in row)
        covered += found.low <= 0.8 <= found.high
        low, high = wilson(found.value, found.asked)
        plain += low <= 0.8 <= high
    assert covered >= 0.92 * 400
    assert plain < 0.85 * 400
