"""The KV cache holds what it says it holds, whatever was written, cut off and written again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpi_runtime.backends.base import Array, Graph
from rpi_runtime.backends.compiled import BoundArrays
from rpi_runtime.backends.select import open_graph
from rpi_runtime.bundle import Bundle
from rpi_runtime.kv_cache import KVCache
from rpi_runtime.manifest import DecoderSpec


@pytest.fixture(scope="module")
def spec(nano_bundle: Path) -> DecoderSpec:
    spec = Bundle.open(nano_bundle).manifest.decoder
    assert spec is not None
    return spec


@pytest.fixture(scope="module", params=["compiled", "interpreter"])
def graph(nano_bundle: Path, request: pytest.FixtureRequest) -> Iterator[Graph]:
    graph = open_graph(nano_bundle / "decoder.tflite", backend=request.param)
    yield graph
    graph.close()


def cache_with_reader(graph: Graph, spec: DecoderSpec) -> KVCache:
    """A cache that a runner reads: on the Interpreter the values lie in the runners alone."""
    kv = KVCache(graph, spec, spec.context_tokens)
    graph.runner("decode", kv.shared)
    return kv


def slices(spec: DecoderSpec, tokens: int, seed: int) -> dict[str, Array]:
    """New keys and values as a call of the graph returns them."""
    random = np.random.default_rng(seed)
    shape = (1, spec.kv_heads, tokens, spec.head_dim)
    return {
        f"{part}_{layer}": random.standard_normal(shape).astype(np.float32)
        for layer in range(spec.layers)
        for part in "kv"
    }


# Either (new tokens, padding behind them) or how many positions to keep.
steps = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 7)) | st.integers(0, 120), min_size=1, max_size=12
)


@given(steps)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_held_is_what_was_written_last_at_each_position(
    graph: Graph, spec: DecoderSpec, steps: list[tuple[int, int] | int]
) -> None:
    kv = cache_with_reader(graph, spec)
    expected = {
        f"{p}_{i}": np.zeros((spec.kv_heads, 0, spec.head_dim)) for p in "kv" for i in range(spec.layers)
    }
    names: list[int] = []
    for seed, step in enumerate(steps):
        if isinstance(step, int):
            kv.keep(step)
            names = names[:step]
            expected = {n: values[:, :step] for n, values in expected.items()}
        else:
            tokens, padding = step
            new = slices(spec, tokens + padding, seed)
            kv.append(new, range(100 * seed, 100 * seed + tokens))
            names += range(100 * seed, 100 * seed + tokens)
            expected = {
                n: np.concatenate([values, new[n][0, :, :tokens]], axis=1) for n, values in expected.items()
            }
    assert kv.held == names
    assert kv.tokens == len(names)
    for name, values in expected.items():
        np.testing.assert_array_equal(kv.read(name)[:, : len(names)], values)


def test_more_positions_than_slots_are_refused_before_anything_is_written(
    graph: Graph, spec: DecoderSpec
) -> None:
    kv = cache_with_reader(graph, spec)
    kv.append(slices(spec, spec.context_tokens, 0), range(spec.context_tokens))
    before = kv.read("k_0")
    with pytest.raises(ValueError, match=f"{spec.context_tokens + 1} positions do not fit"):
        kv.append(slices(spec, 1, 1), [7])
    assert kv.tokens == spec.context_tokens
    np.testing.assert_array_equal(kv.read("k_0"), before)


def test_an_append_that_fails_halfway_does_not_count(graph: Graph, spec: DecoderSpec) -> None:
    kv = cache_with_reader(graph, spec)
    kv.append(slices(spec, 3, 0), [1, 2, 3])
    halfway = slices(spec, 2, 1)
    del halfway[f"v_{spec.layers - 1}"]
    with pytest.raises(KeyError):
        kv.append(halfway, [4, 5])
    assert kv.held == [1, 2, 3]


def test_wiping_takes_away_even_nan(graph: Graph, spec: DecoderSpec) -> None:
    kv = KVCache(graph, spec, spec.context_tokens)
    runner = graph.runner("decode", kv.shared)
    bad = {name: np.full_like(values, np.nan) for name, values in slices(spec, 4, 0).items()}
    kv.append(bad, [1, 2, 3, 4])
    inputs = {
        t.name: np.full(t.shape, -3e4 if t.name == "mask" else 0.5, np.float32)
        for t in runner.signature.inputs
        if t.name not in kv.shared.shapes
    }
    inputs["mask"][..., -1] = 0
    assert np.isnan(runner.run(inputs)["logits"]).all()  # a mask does not hide it
    kv.wipe()
    assert kv.held == []
    assert np.isfinite(runner.run(inputs)["logits"]).all()


def test_compiled_model_keeps_the_arrays_where_they_are(nano_bundle: Path, spec: DecoderSpec) -> None:
    graph = open_graph(nano_bundle / "decoder.tflite", backend="compiled")
    kv = KVCache(graph, spec, spec.context_tokens)
    assert isinstance(kv.shared, BoundArrays)
    addresses = {name: kv.shared.address(name) for name in kv.shared.shapes}
    for name in graph.signatures:
        graph.runner(name, kv.shared)
    kv.append(slices(spec, 9, 0), range(9))
    kv.keep(4)
    kv.append(slices(spec, 2, 1), range(2))
    assert {name: kv.shared.address(name) for name in kv.shared.shapes} == addresses
    assert len(set(addresses.values())) == 2 * spec.layers
    assert all(address % 64 == 0 for address in addresses.values())
