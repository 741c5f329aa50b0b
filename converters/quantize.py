"""Applies a recipe to a float32 graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from converters.recipes import Recipe

# Signature -> inputs, one dict of arrays per sample.
Calibration = Mapping[str, Sequence[Mapping[str, np.ndarray]]]


def quantize_component(
    fp32_path: Path, recipe: Recipe, out_path: Path, calibration: Calibration | None = None
) -> None:
    """Writes `fp32_path` quantised by `recipe` to `out_path` (recipe fp32: a copy).

    `calibration` is needed when `recipe.needs_calibration` (`converters.calibration.calibration`). Raises
    `EdgeError` when a rule matches no operator or cannot be applied.
    """
    raise NotImplementedError


def bits_per_weight(path: Path) -> float:
    """Bits per weight on average over the constant tensors of the graph, scales included, each buffer once."""
    raise NotImplementedError
