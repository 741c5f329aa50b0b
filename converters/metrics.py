"""How close two arrays, or two sequences of distributions, are. All sums run in float64, sample by sample."""

from __future__ import annotations

import math

import numpy as np

SAME_DB = 200.0  # what stands for "no difference at all", which JSON has no number for


class Closeness:
    """Compares any number of pairs of arrays as if they were one long vector."""

    def __init__(self) -> None:
        self.samples = 0
        self.max_abs_error = 0.0
        self._dot = self._reference = self._result = self._error = 0.0

    def add(self, reference: np.ndarray, result: np.ndarray) -> None:
        """One sample: two arrays of one shape. A result that is not finite counts as infinitely far away."""
        if reference.shape != result.shape:
            raise ValueError(f"shapes differ: {reference.shape} and {result.shape}")
        a, b = reference.astype(np.float64).ravel(), result.astype(np.float64).ravel()
        if not np.isfinite(b).all():
            b, self._error, self.max_abs_error = np.zeros_like(b), math.inf, math.inf
        error = a - b
        self.samples += 1
        self._dot += float(a @ b)
        self._reference += float(a @ a)
        self._result += float(b @ b)
        self._error += float(error @ error)
        self.max_abs_error = max(self.max_abs_error, float(np.abs(error).max(initial=0.0)))

    @property
    def cosine(self) -> float:
        """1 for the same direction; 0 when either is all zeros and the other is not."""
        if self._reference == self._result == 0:
            return 1.0
        norms = math.sqrt(self._reference * self._result)
        return self._dot / norms if norms else 0.0

    @property
    def snr_db(self) -> float:
        """Energy of the reference over energy of the difference, in decibels; at most `SAME_DB`."""
        if self._error == 0:
            return SAME_DB
        if self._reference == 0 or math.isinf(self._error):
            return -SAME_DB
        return min(SAME_DB, 10 * math.log10(self._reference / self._error))


class Distributions:
    """Compares next-token distributions, given as logits."""

    def __init__(self) -> None:
        self.positions = 0
        self._divergence = 0.0
        self._agreed = 0

    def add(self, reference: np.ndarray, result: np.ndarray) -> None:
        """Logits [vocab] of one position."""
        p, q = log_softmax(reference), log_softmax(result)
        self.positions += 1
        self._divergence += float(np.exp(p) @ (p - q))
        self._agreed += int(np.argmax(reference) == np.argmax(result))

    @property
    def kl_divergence(self) -> float:
        """KL(reference || result), nats per position. Not below 0, where rounding could put it."""
        return max(0.0, self._divergence / self.positions)

    @property
    def top1_agreement(self) -> float:
        """Share of positions at which both have the same most likely token."""
        return self._agreed / self.positions


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    log_probabilities: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return log_probabilities


def rounded(value: float, digits: int = 4) -> float:
    """`value` to `digits` significant digits: what is stored is what is compared and shown."""
    return float(f"{value:.{digits}g}")
