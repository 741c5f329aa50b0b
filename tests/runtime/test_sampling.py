"""Sampling filters as transformers does, draws by the filtered distribution, and repeats with its seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpi_runtime.errors import BundleError, UsageError
from rpi_runtime.sampling import Sampler, Sampling

VOCABULARY = 1000

samplings = st.builds(
    Sampling,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 2 * VOCABULARY),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 2),
)


def _theirs(sampling: Sampling, logits: np.ndarray, history: list[int]) -> np.ndarray:
    """Probabilities of all tokens by transformers' processors, in the order of its `generate`."""
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps: list[Any] = []
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        steps.append(MinPLogitsWarper(sampling.min_p))
    scores = LogitsProcessorList(steps)(torch.tensor([history], dtype=torch.long), torch.tensor(logits[None]))
    return scores.softmax(-1)[0].numpy()


def _ours(sampling: Sampling, logits: np.ndarray, history: list[int]) -> np.ndarray:
    ids, probabilities = Sampler(sampling, len(logits)).candidates(logits, history)
    found = np.zeros(len(logits))
    found[ids] = probabilities
    return found


@settings(deadline=None, max_examples=300)
@given(
    sampling=samplings,
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0.1, 20),
    history=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=50),
)
def test_the_filtered_distribution_is_that_of_transformers(
    sampling: Sampling, seed: int, spread: float, history: list[int]
) -> None:
    logits = np.random.default_rng(seed).normal(0, spread, VOCABULARY)
    np.testing.assert_allclose(
        _ours(sampling, logits, history), _theirs(sampling, logits, history), atol=1e-9
    )


@pytest.mark.parametrize("k", [1, 3, 5])
def test_tokens_as_likely_as_the_kth_stay_as_in_transformers(k: int) -> None:
    logits = np.array([1.0, 2, 2, 0, 2, -1, 3, 0])
    sampling = Sampling(temperature=1.0, top_k=k)
    np.testing.assert_allclose(_ours(sampling, logits, [0]), _theirs(sampling, logits, [0]))


def test_top_p_looks_past_its_first_guess_in_a_flat_vocabulary() -> None:
    logits = np.random.default_rng(0).normal(0, 0.01, 151_936)
    sampling = Sampling(temperature=1.0, top_p=0.9)
    ours, theirs = _ours(sampling, logits, [0]), _theirs(sampling, logits, [0])
    assert np.count_nonzero(ours) > 100_000
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_greedy_takes_the_most_likely_token(seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(1, VOCABULARY)).astype(np.float32)
    assert Sampler(Sampling(), VOCABULARY).pick(logits, []) == int(logits.argmax())


def test_greedy_too_heeds_the_repetition_penalty() -> None:
    logits = np.array([0.0, 3.0, 2.0, -1.0])
    assert Sampler(Sampling(repetition_penalty=2), 4).pick(logits, [1]) == 2
    assert Sampler(Sampling(repetition_penalty=2), 4).pick(logits, []) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0, 100.0])
def test_padding_of_the_logits_is_never_chosen(temperature: float) -> None:
    logits = np.zeros(64)
    logits[48:] = 50
    sampler = Sampler(Sampling(temperature=temperature, seed=1), 48)
    assert max(sampler.pick(logits, []) for _ in range(200)) < 48


def test_a_history_may_hold_ids_beyond_the_vocabulary() -> None:
    assert Sampler(Sampling(repetition_penalty=1.5), 4).pick(np.array([0.0, 1, 2, 3]), [3, 900]) == 2


def test_draws_follow_the_distribution() -> None:
    """Pearson's chi-square over 20,000 draws; 16.27 is its 99.9 % quantile at 3 degrees of freedom."""
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    sampler = Sampler(Sampling(temperature=1.0, seed=7), 4)
    draws = 20_000
    counts = np.bincount([sampler.pick(np.log(probabilities), []) for _ in range(draws)], minlength=4)
    statistic = float(((counts - draws * probabilities) ** 2 / (draws * probabilities)).sum())
    assert statistic < 16.27


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    logits = np.random.default_rng(0).normal(size=VOCABULARY)

    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, top_p=0.95, seed=seed), VOCABULARY)
        return [sampler.pick(logits, []) for _ in range(50)]

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)
    assert tokens(None) != tokens(None)


def test_a_tiny_temperature_is_greedy_and_not_a_number_error() -> None:
    sampler = Sampler(Sampling(temperature=1e-300, seed=0), 3)
    assert [sampler.pick(np.array([1.0, 2.0, 1.5]), []) for _ in range(5)] == [1] * 5


def test_masked_tokens_are_never_drawn() -> None:
    sampler = Sampler(Sampling(temperature=5, seed=0), 3)
    assert {sampler.pick(np.array([-np.inf, 0.0, 1.0]), []) for _ in range(100)} == {1, 2}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error_and_not_a_token(bad: float, temperature: float) -> None:
    with pytest.raises(BundleError, match="no numbers"):
        Sampler(Sampling(temperature=temperature), 3).pick(np.array([0.0, bad, 1.0]), [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.01),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("seed", -1),
        ("seed", 1.5),
        ("top_k", True),
    ],
)
def test_a_value_out_of_range_is_refused_with_the_range(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value}") as caught:
        Sampling(**{name: value})
    assert "must be" in caught.value.remedy
