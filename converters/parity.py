"""How close a graph is to PyTorch: every signature on real inputs."""

from __future__ import annotations

from pathlib import Path

from converters.export import ExportOptions
from converters.recipes import Recipe
from hypervl.checkpoint import Checkpoint
from rpi_runtime.manifest import Parity


def check_component(
    name: str, checkpoint: Checkpoint, tflite_path: Path, recipe: Recipe, options: ExportOptions
) -> tuple[Parity, ...]:
    """One `Parity` per signature of component `name`, in the graph's order; `passed` says what the recipe's
    limits say. Raises nothing for a miss: the caller decides. Figures are rounded to 4 significant digits, so
    that the same files give the same manifest."""
    raise NotImplementedError
