"""The token table beside the graphs: rows the device maps and reads one at a time."""

from __future__ import annotations

from pathlib import Path

from hypervl.checkpoint import Checkpoint
from rpi_runtime.manifest import Embedding


def write_embedding(checkpoint: Checkpoint, dtype: str, out_path: Path) -> Embedding:
    """Writes the decoder's token embedding in "int8" (symmetric per row, float32 scales behind the rows) or
    "float16" to `out_path`, a block of rows at a time. The entry's `file.path` is `out_path.name`."""
    raise NotImplementedError
