"""The figures of parity, against PyTorch's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from converters.metrics import SAME_DB, Closeness, Distributions, rounded

SHAPE = (3, 7)
LOGITS = arrays(np.float32, 9, elements=st.floats(-30, 30, width=32))
VALUES = arrays(np.float32, SHAPE, elements=st.floats(-100, 100, width=32))


def compared(reference: np.ndarray, result: np.ndarray) -> Closeness:
    """Row by row: several samples count as one vector."""
    closeness = Closeness()
    for a, b in zip(reference, result, strict=True):
        closeness.add(a, b)
    return closeness


@given(VALUES, VALUES)
def test_cosine_and_error_are_those_of_the_whole_vector(a: np.ndarray, b: np.ndarray) -> None:
    found = compared(a, b)
    assert found.samples == len(a)
    assert found.max_abs_error == np.abs(a.astype(np.float64) - b).max()
    x, y = (torch.from_numpy(v.astype(np.float64).ravel()) for v in (a, b))
    if min(x.norm(), y.norm()) > 1e-3:
        expected = torch.nn.functional.cosine_similarity(x, y, dim=0)
        assert found.cosine == pytest.approx(float(expected), abs=1e-9)


def test_snr_is_the_energy_of_the_reference_over_that_of_the_error() -> None:
    found = compared(np.full(SHAPE, 10.0, np.float32), np.full(SHAPE, 11.0, np.float32))
    assert found.snr_db == pytest.approx(20.0)


def test_equal_arrays_have_the_largest_figure_that_json_can_hold() -> None:
    same = np.ones(SHAPE, np.float32)
    found = compared(same, same)
    assert (found.cosine, found.snr_db, found.max_abs_error) == (1.0, SAME_DB, 0.0)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_result_that_is_not_finite_is_as_far_away_as_can_be(wrong: float) -> None:
    reference = np.ones(SHAPE, np.float32)
    result = reference.copy()
    result[1, 2] = wrong
    found = compared(reference, result)
    assert found.snr_db == -SAME_DB
    assert found.max_abs_error == math.inf
    assert found.cosine < 1


def test_other_shapes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        Closeness().add(np.ones((2, 3)), np.ones((3, 2)))


@given(LOGITS, LOGITS)
def test_divergence_is_that_of_pytorch(a: np.ndarray, b: np.ndarray) -> None:
    found = Distributions()
    found.add(a, b)
    p, q = (torch.log_softmax(torch.from_numpy(v.astype(np.float64)), 0) for v in (a, b))
    expected = torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True)
    assert found.kl_divergence == pytest.approx(float(expected), abs=1e-9)
    assert found.kl_divergence >= 0


def test_agreement_counts_positions_with_the_same_most_likely_token() -> None:
    found = Distributions()
    found.add(np.array([1.0, 2.0]), np.array([0.0, 9.0]))
    found.add(np.array([1.0, 2.0]), np.array([9.0, 0.0]))
    assert (found.positions, found.top1_agreement) == (2, 0.5)


@given(st.floats(-1e300, 1e300))
def test_rounding_keeps_four_significant_digits(value: float) -> None:
    assert rounded(value) == pytest.approx(value, rel=5.1e-4)
    assert rounded(rounded(value)) == rounded(value)
