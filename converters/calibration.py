"""Real inputs for calibration: the shipped photographs and text, fed as the device will feed them."""

from __future__ import annotations

from pathlib import Path

from converters.export import ExportOptions
from converters.quantize import Calibration
from hypervl.checkpoint import Checkpoint


def calibration(name: str, checkpoint: Checkpoint, options: ExportOptions, fp32_path: Path) -> Calibration:
    """Inputs for every signature of component `name`, whose float32 graph lies at `fp32_path`."""
    raise NotImplementedError
