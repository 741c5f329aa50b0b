"""Choosing the next token: greedy, or a draw from the filtered distribution.

Order and rules are those of transformers' logits processors (5.23): repetition penalty, temperature, top-k,
top-p, min-p. A vocabulary has 152,000 entries and one is chosen per step on a small board, so candidates are
found by partition and only they are sorted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rpi_runtime.errors import BundleError, UsageError

_FIRST_NUCLEUS = 64  # tokens looked at first for top-p; usually they hold the mass


@dataclass(frozen=True)
class Sampling:
    """How to choose. The defaults are greedy. Raises `UsageError` for a value out of its range."""

    temperature: float = 0.0  # 0 is greedy: the most likely token, always
    top_k: int = 0  # keep the k most likely tokens; 0 keeps all
    top_p: float = 1.0  # keep the most likely tokens that together reach this probability; 1 keeps all
    min_p: float = 0.0  # keep tokens at least this likely, relative to the most likely one; 0 keeps all
    repetition_penalty: float = 1.0  # above 1 makes tokens of the prompt and the answer so far less likely
    seed: int | None = None  # None draws differently every time

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, self.temperature >= 0, "0 or more")
        _check("top_k", self.top_k, _whole(self.top_k), "a whole number, 0 or more")
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "from 0 to 1")
        _check("repetition_penalty", self.repetition_penalty, self.repetition_penalty > 0, "above 0")
        if self.seed is not None:
            _check("seed", self.seed, _whole(self.seed), "a whole number, 0 or more")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


class Sampler:
    """Draws token after token for one answer. The same seed and logits give the same tokens.

    `vocab_size` is the tokenizer's: logits beyond it are padding and are never chosen.
    """

    def __init__(self, sampling: Sampling, vocab_size: int) -> None:
        self._sampling = sampling
        self._vocab_size = vocab_size
        self._random = random.Random(sampling.seed)  # NumPy's would load 1.5 MB of code for one number

    def pick(self, logits: np.ndarray, history: Sequence[int]) -> int:
        """The next token.

        `logits` [vocabulary, with or without padding] float; `history` the ids of the prompt and of the
        answer so far, for the repetition penalty. Raises `BundleError` for logits that are no numbers.
        """
        if self._sampling.greedy:
            return int(np.argmax(self._scores(logits, history)))
        ids, probabilities = self.candidates(logits, history)
        steps = np.cumsum(probabilities)
        # Scaled by the last step, which rounding leaves beside 1: a draw never falls behind the last token.
        return int(ids[np.searchsorted(steps, self._random.random() * steps[-1], side="right")])

    def candidates(self, logits: np.ndarray, history: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Ids that may be drawn, [n] int64, and their probabilities, [n] float64, which sum to 1."""
        s = self._sampling
        scores = self._scores(logits, history)
        if s.greedy:
            return np.array([np.argmax(scores)]), np.ones(1)
        scores = (scores - scores.max()) / s.temperature
        ids = np.arange(len(scores))
        if 0 < s.top_k < len(scores):
            # By value, as transformers does: tokens as likely as the k-th stay.
            ids = np.flatnonzero(scores >= np.partition(scores, -s.top_k)[-s.top_k])
        weights = np.exp(scores[ids])
        if s.top_p < 1:
            kept = _nucleus(weights, s.top_p)
            ids, weights = ids[kept], weights[kept]
        kept = weights >= s.min_p  # the most likely token weighs exactly 1
        ids, weights = ids[kept], weights[kept]
        return ids, weights / weights.sum()

    def _scores(self, logits: np.ndarray, history: Sequence[int]) -> np.ndarray:
        """Logits of the real vocabulary after the repetition penalty; float64, but for those that only the
        largest is asked of."""
        scores = np.asarray(logits).reshape(-1)[: self._vocab_size]
        if not self._sampling.greedy or self._sampling.repetition_penalty != 1:
            scores = scores.astype(np.float64)
        if not np.isfinite(scores.max()):
            raise BundleError(
                f"the decoder's logits are no numbers (largest: {scores.max()})",
                "Run `toolkit verify` on the bundle; another backend or recipe may compute them.",
            )
        if self._sampling.repetition_penalty != 1 and len(history):
            seen = np.unique(np.asarray(history, dtype=np.int64))
            seen = seen[seen < len(scores)]
            penalty = self._sampling.repetition_penalty
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        return scores


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the heaviest entries, as few as reach `top_p` of the whole, heaviest first."""
    target = top_p * weights.sum()
    count = _FIRST_NUCLEUS
    while True:
        if count < len(weights):
            largest = np.argpartition(weights, -count)[-count:]
        else:
            largest = np.arange(len(weights))
        order = largest[np.argsort(-weights[largest], kind="stable")]
        mass = np.cumsum(weights[order])
        if mass[-1] >= target or len(order) == len(weights):
            return order[: int(np.searchsorted(mass, target)) + 1]
        count *= 8


def _whole(value: float) -> bool:
    return isinstance(value, int) and value >= 0


def _check(name: str, value: float, holds: bool, allowed: str) -> None:
    if isinstance(value, bool) or not holds or not math.isfinite(value):
        raise UsageError(f"{name} is {value}", f"It must be {allowed}.")
