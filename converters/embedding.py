"""The token table beside the graphs: rows the device maps and reads one at a time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from hypervl.checkpoint import Checkpoint
from rpi_runtime.errors import CheckpointError, nearest
from rpi_runtime.manifest import Embedding, File

TENSOR = "decoder.embed_tokens.weight"
DTYPES = ("int8", "float16")
_ROWS = 4096  # a time: 16 MB of a 1024-wide float32 table
_LARGEST_INT8 = 127


def write_embedding(checkpoint: Checkpoint, dtype: str, out_path: Path) -> Embedding:
    """Writes the decoder's token table to `out_path`, a block of rows at a time; the entry's `file.path` is
    `out_path.name`.

    "int8" is symmetric per row, `row = scale * int8`, with all scales (float32, little-endian) behind the
    rows; "float16" is the rows. Raises `UsageError` for another dtype, `CheckpointError` for values that
    float16 cannot hold.
    """
    if dtype not in DTYPES:
        raise nearest(dtype, DTYPES, "embedding type")
    table = checkpoint.tensor(TENSOR)
    digest = hashlib.sha256()
    scales = []
    with out_path.open("wb") as file:

        def put(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        for start in range(0, table.shape[0], _ROWS):
            rows = table[start : start + _ROWS].numpy()
            if dtype == "int8":
                scale, quantised = quantise_rows(rows)
                scales.append(scale)
                put(quantised.tobytes())
            else:
                put(_float16(rows).tobytes())
        for scale in scales:
            put(scale.astype("<f4").tobytes())
        size = file.tell()
    count, width = table.shape
    return Embedding(File(out_path.name, digest.hexdigest(), size), dtype, count, width)


def quantise_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales [n] float32 and rows [n, d] int8 with `rows ~ scales[:, None] * int8`, off by half a scale at
    most; a row of zeros, or of nothing but subnormal numbers, becomes zeros with scale 1."""
    scales = (np.abs(rows).max(axis=1) / _LARGEST_INT8).astype(np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 1
    quantised = np.clip(np.rint(rows / scales[:, None]), -_LARGEST_INT8, _LARGEST_INT8)
    return scales, quantised.astype(np.int8)


def _float16(rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        small = rows.astype("<f2")
    if not np.isfinite(small).all():
        raise CheckpointError(
            f"{TENSOR} has values up to {np.abs(rows).max():.3g}, which float16 cannot hold",
            "Choose the int8 table (--embedding int8).",
        )
    return small
