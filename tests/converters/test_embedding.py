"""The token table: what the converter writes, or finds in the decoder's head, is what the device reads."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from converters import embedding
from converters.embedding import TENSOR, Table, find_table, quantise_rows, write_table
from converters.export import export_component
from converters.quantize import quantize_component
from converters.recipes import RECIPES, Limits, Recipe, Rule
from hypervl.checkpoint import Checkpoint, save
from rpi_runtime.bundle import Bundle
from rpi_runtime.embedding import EmbeddingTable
from rpi_runtime.errors import EdgeError
from rpi_runtime.manifest import DECODER, Embedding, File
from tests.converters import tiny
from tests.converters.conftest import Converted


def read(table: Table, path: Path, scales: Path) -> np.ndarray:
    spec = Embedding(File(path.name, "", path.stat().st_size), **dataclasses.asdict(table))
    return EmbeddingTable(path, spec, scales if table.dtype == "int8" else None).rows(range(table.rows))


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_the_device_reads_the_rows_that_the_checkpoint_has(
    tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(embedding, "_ROWS", 7)  # several blocks, and a last one that is short
    path, scales = tmp_path / f"embedding.{dtype}", tmp_path / "scales"
    written = write_table(tiny_checkpoint, dtype, path, scales if dtype == "int8" else None)
    assert written == Table(dtype, 320, 64)
    table = tiny_checkpoint.tensor(TENSOR).numpy()
    step = np.abs(table).max(axis=1, keepdims=True) * (1 / 254 if dtype == "int8" else 2**-11)
    assert (np.abs(read(written, path, scales) - table) <= step * 1.0001).all()


@pytest.mark.parametrize(
    ("dtype", "rules"),
    [
        ("float32", ()),
        ("float16", (Rule("float16"),)),
        ("int8", (Rule("int4", granularity="block_32"), Rule("int8", "lm_head"))),
    ],
)
def test_a_tied_head_is_the_table(
    tiny_checkpoint: Checkpoint,
    tiny_graphs: dict[str, Path],
    tmp_path: Path,
    dtype: str,
    rules: tuple[Rule, ...],
) -> None:
    graph, scales = tmp_path / "decoder.tflite", tmp_path / "scales"
    recipe = Recipe("test", rules, Limits(0.0))
    assert recipe.head_dtype == dtype
    quantize_component(tiny_graphs[DECODER], recipe, graph)
    found = find_table(tiny_checkpoint, graph, scales if dtype == "int8" else None)
    assert found.dtype == dtype
    table = tiny_checkpoint.tensor(TENSOR).numpy()
    step = {"float32": 0.0, "float16": 2**-11, "int8": 1 / 254}[dtype]
    most = np.abs(table).max(axis=1, keepdims=True) * step * 1.02
    assert (np.abs(read(found, graph, scales) - table) <= most).all()


def test_a_head_whose_columns_were_evened_out_is_the_table_too(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """As those of int8 decoders are."""
    model = tiny_checkpoint.load_model()
    with torch.no_grad():
        model.decoder.norm.weight[:8] *= 256
    save(model, tmp_path / "uneven", tiny_checkpoint.text_files)
    checkpoint = Checkpoint.open(tmp_path / "uneven")
    whole, graph, scales = (tmp_path / name for name in ("whole", "graph", "scales"))
    recipe = RECIPES[DECODER]["int8"]
    assert recipe.smoothed
    export_component(DECODER, checkpoint, replace(tiny.OPTIONS, prefill_tokens=(), smoothed=True), whole)
    quantize_component(whole, recipe, graph)
    found = find_table(checkpoint, graph, scales)
    factors = np.fromfile(scales, "<f4")[found.rows :]
    assert factors[:8].max() < factors[8:].min()
    table = checkpoint.tensor(TENSOR).numpy()
    stored = np.abs(table / factors).max(axis=1, keepdims=True) / 254
    assert (np.abs(read(found, graph, scales) - table) <= stored * factors * 1.02).all()


def test_the_default_keeps_no_second_table(converted: Converted) -> None:
    manifest = Bundle.open(converted.bundle).manifest
    assert manifest.table_is_head
    assert not list(converted.bundle.glob("embedding.int8"))
    assert converted.report.embedding is not None
    assert converted.report.embedding.in_head


def test_another_head_is_not_taken_for_the_table(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = tiny.write_checkpoint(tmp_path / "other", seed=1)
    graph = tmp_path / "decoder.tflite"
    export_component(DECODER, other, replace(tiny.OPTIONS, prefill_tokens=()), graph)
    with pytest.raises(EdgeError, match="does not have the numbers of the token table"):
        find_table(tiny_checkpoint, graph)


@pytest.mark.parametrize("name", RECIPES[DECODER])
def test_a_head_of_4_bits_is_none(name: str) -> None:
    expected = {"fp32": "float32", "fp16": "float16", "int8": "int8", "int4": "int8"}
    assert RECIPES[DECODER][name].head_dtype == expected.get(name, "")


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
