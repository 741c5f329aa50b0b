"""The KV cache in each of its types and sizes: what the graph reads, and how close it stays to PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert.tools import flatbuffer_utils

from converters import cache_order
from converters.cache_order import METADATA, serialised
from converters.export import ExportOptions, export_component
from converters.parity import check_component
from converters.quantize import quantize_component
from converters.recipes import RECIPES
from hypervl.byte_tokenizer import byte_tokenizer
from hypervl.checkpoint import Checkpoint, save
from hypervl.decoder import Decoder as TorchDecoder
from hypervl.decoder import attention_mask, rope_table
from hypervl.model import build
from hypervl.specs import decoder_spec
from rpi_runtime import tflite_file
from rpi_runtime.backends.base import Array, Graph
from rpi_runtime.backends.select import open_graph
from rpi_runtime.decoder import Decoder
from rpi_runtime.embedding import EmbeddingTable, PromptRows
from rpi_runtime.kv_cache import KVCache
from rpi_runtime.manifest import DECODER, KV_BYTES, DecoderSpec
from rpi_runtime.prompt import TokenRun
from tests.converters import tiny

ROOT = Path(__file__).resolve().parents[2]

CONTEXTS, SIZES = (24, 64), (8, 32)
# Root mean square of the logits' error, as a share of their own: 100, 60 and 34 dB.
CLOSE = {"float32": 1e-5, "float16": 1e-3, "int8": 2e-2}

Exported = dict[str, Path]


def options(dtype: str) -> ExportOptions:
    return ExportOptions((), SIZES, CONTEXTS, dtype)


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("kv")
    paths = {dtype: folder / f"{dtype}.tflite" for dtype in KV_BYTES}
    for dtype, path in paths.items():
        export_component(DECODER, tiny_checkpoint, options(dtype), path)
    return paths


@pytest.fixture(params=KV_BYTES)
def dtype(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=["compiled", "interpreter"])
def graph(exported: Exported, dtype: str, request: pytest.FixtureRequest) -> Iterator[Graph]:
    opened = open_graph(exported[dtype], backend=request.param)
    yield opened
    opened.close()


@pytest.fixture
def spec(tiny_checkpoint: Checkpoint, dtype: str) -> DecoderSpec:
    return decoder_spec(tiny_checkpoint.config.decoder, CONTEXTS, SIZES, dtype)


class Rows(EmbeddingTable):
    def __init__(self, weight: Array) -> None:
        self._weight, self.columns = weight, weight.shape[1]

    def rows(self, ids: object) -> Array:
        return self._weight[list(ids)]  # type: ignore[call-overload]


def prompt(table: Rows, ids: list[int]) -> PromptRows:
    return PromptRows([TokenRun(tuple(ids))], table, lambda run: np.empty(0))


# The graph


def test_every_context_has_signatures_of_its_own(exported: Exported, spec: DecoderSpec, dtype: str) -> None:
    found = {
        s.name: {t.name: (t.shape, t.dtype) for t in s.inputs}
        for s in tflite_file.read(exported[dtype]).signatures
    }
    assert list(found) == ["prefill_32", "prefill_8", "decode", "prefill_8_in_24", "decode_in_24"]
    for slots in CONTEXTS:
        inputs = found[spec.signature(1, slots)]
        assert inputs["kv_v_1"] == ((2 * slots * 16,), dtype)
        scales = [name for name in inputs if name.endswith("_scale")]
        assert len(scales) == (4 if dtype == "int8" else 0)
        assert all(inputs[name] == ((2 * slots,), "float32") for name in scales)


@pytest.mark.parametrize("dtype", ["float16", "int8"], indirect=True)
def test_a_small_cache_becomes_float32_layer_by_layer(exported: Exported, dtype: str) -> None:
    """By CAST: by DEQUANTIZE, XNNPACK kept all layers at once, five times over."""
    found = [{op.name for op in graph.operators} for graph in tflite_file.read(exported[dtype]).subgraphs]
    assert all("CAST" in names and "DEQUANTIZE" not in names for names in found)


def test_the_weights_stand_in_the_file_once(exported: Exported, tiny_checkpoint: Checkpoint) -> None:
    weights = sum(b.bytes for b in tflite_file.read(exported["int8"]).buffers if b.bytes >= 1024)
    assert weights < 1.2 * 4 * tiny_checkpoint.parameters("decoder.")


# On the device


@torch.no_grad()
def test_answers_follow_pytorch_while_the_cache_grows(
    graph: Graph, spec: DecoderSpec, dtype: str, tiny_checkpoint: Checkpoint
) -> None:
    module = tiny_checkpoint.load_component(DECODER)
    assert isinstance(module, TorchDecoder)
    ids = np.random.default_rng(0).integers(0, 256, CONTEXTS[-1]).tolist()
    embeddings = module.embed_tokens(torch.tensor([ids]))
    angles = rope_table(torch.arange(len(ids)), spec.head_dim, spec.rope_theta)
    logits, _ = module(embeddings, *angles, attention_mask(len(ids)), module.empty_kv())
    expected = logits[0].numpy()

    table = Rows(module.embed_tokens.weight.numpy())
    decoder = Decoder(graph, spec, table)
    fed = 13
    found = [decoder.prefill(prompt(table, ids[:fed]))]
    slots = [decoder.kv.slots]
    for token in ids[fed:]:
        found.append(decoder.step(token))
        slots.append(decoder.kv.slots)
    error = np.stack(found) - expected[fed - 1 :]
    assert error.std() < CLOSE[dtype] * expected.std()
    if graph.copies_shared_inputs:
        assert set(slots) == {CONTEXTS[-1]}, "each signature would keep a cache of its own"
    else:
        assert slots == [CONTEXTS[0]] * (CONTEXTS[0] - fed + 1) + [CONTEXTS[1]] * (CONTEXTS[1] - CONTEXTS[0])
    with pytest.raises(ValueError, match="65 tokens do not fit the 64 slots"):
        decoder.step(1)


def test_a_short_conversation_after_a_long_one_holds_a_short_cache(
    exported: Exported, tiny_checkpoint: Checkpoint
) -> None:
    graph = open_graph(exported["float32"], backend="compiled")
    module = tiny_checkpoint.load_component(DECODER)
    assert isinstance(module, TorchDecoder)
    table = Rows(module.embed_tokens.weight.detach().numpy())
    spec = decoder_spec(tiny_checkpoint.config.decoder, CONTEXTS, SIZES)
    decoder = Decoder(graph, spec, table)
    decoder.prefill(prompt(table, list(range(40))))
    assert decoder.kv.slots == CONTEXTS[1]
    decoder.kv.keep(10)
    before = {name: decoder.kv.read(name)[:, :10] for name in ("k_0", "v_1")}
    again = decoder.prefill(prompt(table, list(range(10, 20))))
    assert decoder.kv.slots == CONTEXTS[0]
    assert decoder.kv.shared.shapes["kv_k_0"] == (2, CONTEXTS[0], 16)
    for name, values in before.items():
        np.testing.assert_array_equal(decoder.kv.read(name)[:, :10], values)
    fresh = Decoder(graph, spec, table)
    np.testing.assert_allclose(again, fresh.prefill(prompt(table, list(range(20)))), atol=1e-4)
    graph.close()


# What is kept


def new_slices(spec: DecoderSpec, tokens: int, largest: float = 3.0) -> dict[str, Array]:
    random = np.random.default_rng(tokens)
    shape = (1, spec.kv_heads, tokens, spec.head_dim)
    return {
        f"{part}_{layer}": (largest * random.standard_normal(shape)).astype(np.float32)
        for layer in range(spec.layers)
        for part in "kv"
    }


@pytest.mark.parametrize("dtype", ["int8"], indirect=True)
@pytest.mark.parametrize("largest", [1e-6, 3.0, 1e6])
def test_8_bits_are_off_by_half_a_step_of_the_rows_largest_number(
    graph: Graph, spec: DecoderSpec, largest: float
) -> None:
    kv = KVCache(graph, spec, 64)
    graph.runner("decode", kv.shared)
    new = new_slices(spec, 20, largest)
    new["k_1"][0, 1, 3] = 0
    kv.append(new, range(20))
    for name, values in new.items():
        step = np.abs(values[0]).max(-1, keepdims=True) / 127
        assert (np.abs(kv.read(name)[:, :20] - values[0]) <= 0.501 * step).all()
    assert not kv.read("k_1")[1, 3].any()


@pytest.mark.parametrize("dtype", ["int8"], indirect=True)
def test_nan_does_not_hide_in_8_bits(graph: Graph, spec: DecoderSpec) -> None:
    kv = KVCache(graph, spec, 64)
    graph.runner("decode", kv.shared)
    new = new_slices(spec, 2)
    new["v_0"][0, 0, 1, 3] = np.nan
    kv.append(new, range(2))
    assert np.isnan(kv.read("v_0")[0, 1]).all()
    assert np.isfinite(kv.read("v_0")[1]).all()
    kv.wipe()
    assert not kv.read("v_0").any()


def test_a_token_takes_what_the_spec_says(graph: Graph, spec: DecoderSpec) -> None:
    kv = KVCache(graph, spec, 64)
    held = sum(kv.shared.read(name).nbytes for name in kv.shared.shapes)
    assert held == 64 * spec.kv_bytes_per_token


# Parity


def test_parity_covers_every_context_and_allows_for_the_type(
    exported: Exported, tiny_checkpoint: Checkpoint, dtype: str, spec: DecoderSpec
) -> None:
    rows = check_component(
        DECODER, tiny_checkpoint, exported[dtype], RECIPES[DECODER]["fp32"], options(dtype)
    )
    assert {row.signature for row in rows} == {
        spec.signature(n, slots) for slots in CONTEXTS for n in (1, *spec.chunk_sizes(slots))
    }
    assert all(row.passed for row in rows), rows


def test_a_type_widens_limits_and_asks_nothing_new() -> None:
    exact, rough = RECIPES[DECODER]["fp32"].limits, RECIPES[DECODER]["int4-channel"].limits
    assert exact.with_kv("float32") == exact
    assert exact.with_kv("int8").snr_db == 28
    assert exact.with_kv("int8").kl_divergence == 0.01
    assert rough.with_kv("int8") == rough
    assert dataclasses.replace(rough, snr_db=None).with_kv("float16").snr_db is None


@pytest.mark.parametrize("recipe", ["fp32", "int8", "int4-channel"])
def test_one_layer_at_a_time_becomes_float32(exported: Exported, tmp_path: Path, recipe: str) -> None:
    """The last that reads a layer's cache comes before the next is cast."""
    path = tmp_path / "quantised.tflite"
    quantize_component(exported["int8"], RECIPES[DECODER][recipe], path)
    held = tflite_file.read(path)
    assert held.metadata.count(METADATA) == 1
    model = flatbuffer_utils.read_model(str(path))
    (entry,) = (one for one in model.metadata if one.name == METADATA.encode())
    expected = []
    for graph in held.subgraphs:
        casts = [i for i, op in enumerate(graph.operators) if op.name == "CAST" and is_cache(graph, op)]
        edges = []
        for k in range(2, len(casts), 2):
            made = {graph.operators[cast].outputs[0] for cast in casts[k - 2 : k]}
            last = max(i for i, op in enumerate(graph.operators) if made & set(op.inputs))
            shaped = {graph.operators[cast].inputs[0] for cast in casts[k : k + 2]}
            reshapes = [i for i, op in enumerate(graph.operators) if shaped & set(op.outputs)]
            assert [graph.operators[i].name for i in reshapes] == ["RESHAPE", "RESHAPE"]
            edges += [(last, index) for index in reshapes]
        assert len(casts) >= 2
        expected.append(edges)
    assert bytes(model.buffers[entry.buffer].data) == serialised(expected)
    read_again = tflite_file.read(path, details=True).subgraphs
    assert [[*subgraph.control_edges] for subgraph in read_again] == expected


def test_the_order_of_many_signatures_stays_where_the_runtime_looks(
    deep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quantizer moves what is larger than a kilobyte out of the graph. Here the limit is smaller."""
    model = flatbuffer_utils.read_model(str(deep))
    sizes = []
    for most in (1023, 40):
        monkeypatch.setattr(cache_order, "_MOST_BYTES", most)
        cache_order.order_casts(model)
        (entry,) = (one for one in model.metadata if one.name == METADATA.encode())
        sizes.append(len(model.buffers[entry.buffer].data))
    assert 40 < sizes[0] <= 1023
    assert 10 < sizes[1] <= 40


def test_an_order_of_other_operators_is_dropped(exported: Exported, tmp_path: Path) -> None:
    """float16 weights are expanded by operators of their own."""
    path = tmp_path / "quantised.tflite"
    quantize_component(exported["int8"], RECIPES[DECODER]["fp16"], path)
    assert METADATA not in tflite_file.read(path).metadata
    with contextlib.closing(open_graph(path)) as graph:
        assert "decode" in graph.signatures


def is_cache(graph: tflite_file.Subgraph, op: tflite_file.Operator) -> bool:
    return graph.tensors[op.inputs[0]].dtype == "int8"


DEEP = dataclasses.replace(tiny.CONFIG.decoder, num_hidden_layers=8, max_position_embeddings=4096)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`decode` of eight layers with 4,096 slots of int8."""
    folder = tmp_path_factory.mktemp("deep")
    save(build(dataclasses.replace(tiny.CONFIG, decoder=DEEP)), folder / "checkpoint", byte_tokenizer())
    path = folder / "decoder.tflite"
    checkpoint = Checkpoint.open(folder / "checkpoint")
    export_component(DECODER, checkpoint, ExportOptions((), (), (4096,), "int8"), path)
    return path


def test_the_second_layer_takes_the_place_of_the_first(deep: Path, tmp_path: Path) -> None:
    """Measured: without the edges each layer of a long cache is held as float32 in each signature, and in its
    shape as int8. Where only casts are ordered it takes 5.7 layers."""
    unordered = tmp_path / "unordered.tflite"
    model = flatbuffer_utils.read_model(str(deep))
    model.metadata = []
    flatbuffer_utils.write_model(model, str(unordered))
    held = {path: resident_by_running(path) for path in (deep, unordered)}
    layer = 2 * DEEP.num_key_value_heads * 4096 * DEEP.head_dim * 4
    assert held[deep] < 5 * layer, (held, layer)
    assert held[unordered] > 10 * layer, (held, layer)


def resident_by_running(path: Path) -> int:
    """Anonymous bytes that the first run of `decode` takes, in a process of its own."""
    script = """
import sys
from pathlib import Path
import numpy as np
from rpi_runtime.backends.select import open_graph
from rpi_runtime.kernel import memory
graph = open_graph(Path(sys.argv[1]), threads=1)
runner = graph.runner("decode")
inputs = {t.name: np.zeros(t.shape, t.dtype) for t in runner.signature.inputs}
for value in inputs.values():
    value += 0  # so that its pages are there before
before = memory().anonymous_bytes
runner.run(inputs)
print(memory().anonymous_bytes - before)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_numbers_are_written_as_the_runtime_reads_them() -> None:
    """From the runtime's source: protobuf's varints, signed ones zigzag, vectors behind their size."""
    assert serialised([[], [(1, 2), (64, 300)]]) == bytes([1, 2, 0, 2, 2, 4, 0x80, 1, 0xD8, 4])
