"""Axes have round marks around what they show, and thinned lines keep their peaks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from field.report.scales import Scale, log_ticks, thin, ticks, time_ticks

values = st.floats(-1e12, 1e12).map(lambda value: 0.0 if abs(value) < 1e-9 else value)


@given(values, values, st.integers(3, 12))
def test_marks_are_few_ascend_evenly_and_enclose_what_is_shown(one: float, other: float, most: int) -> None:
    low, high = sorted((one, other))
    marks = ticks(low, high, most)
    assert 2 <= len(marks) <= most
    assert marks[0] <= low
    assert marks[-1] >= high
    steps = [b - a for a, b in pairwise(marks)]
    assert min(steps) > 0
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6), st.integers(3, 12))
def test_their_step_is_one_two_or_five_times_a_power_of_ten(low: float, width: float, most: int) -> None:
    marks = ticks(low, low + width, most)
    step = (marks[-1] - marks[0]) / (len(marks) - 1)
    if width > 1e-6 * low:
        leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
        assert min(abs(leading - factor) for factor in (1, 2, 5)) < 1e-3


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 256, [0, 50, 100, 150, 200, 250, 300]),
        (0, 0.3, [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]),
        (45.2, 81.3, [40, 50, 60, 70, 80, 90]),
        (600, 600, [540, 560, 580, 600, 620, 640, 660]),
        (-3, 2, [-3, -2, -1, 0, 1, 2]),
    ],
)
def test_marks_that_people_expect(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 7) == expected


@given(st.floats(1e-3, 1e7), st.floats(1, 1e6))
def test_logarithmic_marks_enclose_what_is_shown(low: float, ratio: float) -> None:
    marks = log_ticks(low, low * ratio)
    assert len(marks) >= 2
    assert marks == sorted(set(marks))
    assert marks[0] <= low * (1 + 1e-9)
    assert marks[-1] >= low * ratio * (1 - 1e-9)


@given(st.floats(0, 1e9))
def test_marks_of_time_begin_at_the_start_and_stay_within(span_s: float) -> None:
    marks = time_ticks(span_s)
    assert marks[0] == 0
    assert marks[-1] <= span_s
    assert 1 <= len(marks) <= 7


@pytest.mark.parametrize(
    ("span_s", "expected"),
    [
        (0, [0]),
        (200, [0, 60, 120, 180]),
        (3600, [0, 900, 1800, 2700, 3600]),
        (86400, [0, 21600, 43200, 64800, 86400]),
    ],
)
def test_marks_of_time_are_those_of_clocks(span_s: float, expected: list[float]) -> None:
    assert time_ticks(span_s) == expected


@given(values, values, values, st.booleans())
def test_a_scale_stays_within_its_ends_and_keeps_the_order(
    a: float, b: float, value: float, up: bool
) -> None:
    low, high = min(a, b), max(a, b)
    start, end = (0.0, 100.0) if up else (100.0, 0.0)
    scale = Scale(low, high, start, end)
    assert 0 <= scale(value) <= 100
    assert scale(low) == start
    if high - low > 1e-6 * max(abs(low), abs(high), 1e-3):
        assert scale(high) == end
        assert abs(scale((low + high) / 2) - 50) <= 0.1


def test_a_logarithmic_scale_has_equal_steps_for_equal_ratios() -> None:
    scale = Scale(1, 1000, 0, 300, is_log=True)
    assert [scale(value) for value in (1, 10, 100, 1000)] == [0, 100, 200, 300]


@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.floats(-1e3, 1e3)), min_size=1, max_size=400), st.integers(1, 50)
)
def test_a_thinned_line_keeps_its_ends_and_extremes(points: list[tuple[float, float]], buckets: int) -> None:
    points.sort(key=lambda point: point[0])
    kept = thin(points, buckets)
    assert len(kept) <= 2 * buckets + 2
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert max(y for _, y in kept) == max(y for _, y in points)
    assert min(y for _, y in kept) == min(y for _, y in points)
    remaining = iter(points)
    assert all(point in remaining for point in kept)  # the same points, in their order
