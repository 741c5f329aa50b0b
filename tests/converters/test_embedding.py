"""The token table: what the converter writes is what the device maps."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from converters import embedding
from converters.embedding import TENSOR, quantise_rows, write_embedding
from hypervl.checkpoint import Checkpoint
from rpi_runtime.embedding import EmbeddingTable
from rpi_runtime.errors import UsageError


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_the_device_reads_the_rows_that_the_checkpoint_has(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(embedding, "_ROWS", 7)  # several blocks, and a last one that is short
    path = tmp_path / f"embedding.{dtype}"
    entry = write_embedding(tiny_checkpoint, dtype, path)
    assert (entry.dtype, entry.rows, entry.columns) == (dtype, 320, 64)
    assert (entry.file.path, entry.file.bytes) == (path.name, path.stat().st_size)
    assert entry.file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    table = tiny_checkpoint.tensor(TENSOR).numpy()
    read = EmbeddingTable(path, entry).rows(range(320))
    step = np.abs(table).max(axis=1, keepdims=True) * (1 / 254 if dtype == "int8" else 2**-11)
    assert (np.abs(read - table) <= step * 1.0001).all()


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2), elements=st.floats(-1e6, 1e6, width=32)))
def test_a_row_is_off_by_half_a_step_at_most(rows: np.ndarray) -> None:
    scales, quantised = quantise_rows(rows)
    assert scales.dtype == np.float32
    assert quantised.dtype == np.int8
    assert (scales > 0).all()
    assert quantised.min(initial=0) >= -127, "symmetric: -128 has no counterpart"
    restored = scales[:, None].astype(np.float64) * quantised
    step = np.where(scales == 1, 254 * np.finfo(np.float32).tiny, scales)  # 1: nothing but subnormal numbers
    assert (np.abs(restored - rows) <= step[:, None] * 0.5001).all()


def test_a_row_of_zeros_stays_one() -> None:
    scales, quantised = quantise_rows(np.zeros((2, 3), np.float32))
    assert not quantised.any()
    assert np.isfinite(scales).all()


def test_an_unknown_type_is_answered_with_the_nearest(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'float61'") as raised:
        write_embedding(tiny_checkpoint, "float61", tmp_path / "embedding")
    assert "float16" in raised.value.remedy
