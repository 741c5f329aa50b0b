"""What NNAPI takes. TFLite's own delegate, with a device that claims every operation, is the oracle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delegates.graph import GraphTensor, Node, Operator, Quantization, Subgraph
from delegates.nnapi import ANDROID_LEVELS, LEVELS, RULES, refusals, verdicts
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import ResourceError
from rpi_runtime.tflite_file import read
from tests.conftest import script

# Of the fetched graphs, those with operators that stock TFLite does not have: no runtime here opens them.
WITH_OPERATORS_OF_THEIR_OWN = {
    "face_landmark_with_attention",
    "selfie_segmentation",
    "selfie_segmentation_landscape",
}


def tensor(
    *shape: int,
    dtype: str = "float32",
    constant: bool = False,
    scale: float | None = None,
    zero_point: int = 0,
) -> GraphTensor:
    quantization = Quantization(scale, zero_point, 1, 0) if scale else None
    return GraphTensor("t", shape, dtype, 0, constant, quantization)


def node(name: str, *inputs: GraphTensor, output: GraphTensor, version: int = 1, **options: Any) -> Node:
    operator = Operator(name, tuple(range(len(inputs))), (len(inputs),), version, options)
    return Node(0, operator, inputs, (output,))


def reasons(checked: Node, level: int) -> str:
    return "; ".join(refusal.reason for refusal in refusals(checked, level))


# Rules


def test_what_fits_is_taken() -> None:
    image = tensor(1, 8, 8, 4)
    assert refusals(node("ADD", image, image, output=image), 27) == ()


def test_a_refusal_names_the_value_and_what_would_help() -> None:
    five = tensor(1, 2, 2, 2, 4)
    (refusal,) = refusals(node("ADD", five, five, output=five), 29)
    assert refusal.reason == "input 0 is float32 [1, 2, 2, 2, 4], and may have at most 4 dimensions"
    assert refusal.fix


def test_an_operator_that_nnapi_lacks_is_told() -> None:
    value = tensor(1, 4)
    assert reasons(node("CUMSUM", value, output=value), 31) == "NNAPI has no such operation"
    assert reasons(node("MyOwn", value, output=value), 31) == "NNAPI has no such operation"


def test_a_level_brings_operations() -> None:
    value = tensor(1, 4)
    assert "from feature level 29 (Android 10, NNAPI 1.2) on" in reasons(node("EXP", value, output=value), 28)
    assert reasons(node("EXP", value, output=value), 29) == ""


def test_weights_of_8_bits_under_float32_need_nnapi_1_2() -> None:
    layer = node(
        "FULLY_CONNECTED",
        tensor(1, 4),
        tensor(8, 4, dtype="int8", constant=True, scale=0.1),
        tensor(8, constant=True),
        output=tensor(1, 8),
    )
    assert "its weights have 8 bits and its input is float32" in reasons(layer, 28)
    assert reasons(layer, 29) == ""
    kept = dataclasses.replace(
        layer, operator=dataclasses.replace(layer.operator, options={"keep_num_dims": True})
    )
    assert "it keeps more than two dimensions" in reasons(kept, 29)
    assert reasons(kept, 30) == ""


def test_attention_by_batch_matmul_falls_back_on_every_android() -> None:
    batched = tensor(1, 4, 8, 8)
    for level in ANDROID_LEVELS:
        assert "feature level 1000006" in reasons(
            node("BATCH_MATMUL", batched, batched, output=batched), level
        )
    assert reasons(node("BATCH_MATMUL", batched, batched, output=batched), 1_000_006) == ""


def test_weights_of_float16_go_along_when_all_else_is_taken() -> None:
    def subgraph(rank: int) -> Subgraph:
        value = tensor(*[1] * (rank - 1), 4)
        tensors = (value, tensor(4, dtype="float16", constant=True), tensor(4), value)
        operators = (Operator("DEQUANTIZE", (1,), (2,)), Operator("ADD", (0, 2), (3,)))
        return Subgraph("", tensors, (0,), (3,), operators)

    assert verdicts(subgraph(4), 27) == {0: (), 1: ()}
    refused = verdicts(subgraph(5), 27)
    assert "not all others are taken" in refused[0][0].reason
    assert "at most 4 dimensions" in refused[1][0].reason


@given(
    name=st.sampled_from([*RULES, "MyOwn"]),
    inputs=st.lists(st.none() | st.lists(st.integers(0, 5), max_size=5), max_size=4),
    outputs=st.lists(st.lists(st.integers(0, 5), max_size=5), max_size=2),
    dtypes=st.lists(
        st.sampled_from(["float32", "int8", "uint8", "int32", "int64", "float16"]), min_size=6, max_size=6
    ),
    level=st.sampled_from(list(LEVELS)),
)
def test_any_node_is_judged(
    name: str, inputs: list[Any], outputs: list[Any], dtypes: list[str], level: int
) -> None:
    """Also one that lacks inputs, outputs or dimensions, as a file may have it."""
    kinds = iter(dtypes)
    given_inputs = tuple(None if shape is None else tensor(*shape, dtype=next(kinds)) for shape in inputs)
    made = tuple(tensor(*shape, dtype=next(kinds)) for shape in outputs)
    ids = tuple(-1 if t is None else i for i, t in enumerate(given_inputs))
    found = refusals(Node(0, Operator(name, ids, tuple(range(len(made)))), given_inputs, made), level)
    assert all(refusal.reason and refusal.fix for refusal in found)


# Against the real delegate


@pytest.fixture(scope="module")
def delegate() -> Any:
    emulation = script("emulation")
    environment = script("tflite_runtime_env")
    try:
        return script("nnapi_delegate").prepare(environment.make())
    except (emulation.Unavailable, ResourceError) as reason:
        pytest.skip(f"TFLite's NNAPI delegate cannot be had here: {reason}")


def assert_the_delegate_takes_the_same(delegate: Any, graph: Path) -> None:
    subgraphs = read(graph, details=True).subgraphs
    for level in ANDROID_LEVELS:
        ours = [{n for n, why in verdicts(s, level).items() if not why} for s in subgraphs]
        assert ours == delegate.taken(graph, level), f"{graph.name} at level {level}"


@pytest.mark.emulation
def test_of_our_graphs_the_delegate_takes_what_the_rules_say(delegate: Any, nano_bundle: Path) -> None:
    bundle = Bundle.open(nano_bundle)
    for component in bundle.manifest.components:
        assert_the_delegate_takes_the_same(delegate, bundle.path(component.name))


@pytest.mark.emulation
@pytest.mark.weights
@pytest.mark.parametrize("package", ["face-graphs", "mediapipe-graphs"])
def test_of_graphs_of_others_too(delegate: Any, fetch_weights: ModuleType, package: str) -> None:
    try:
        folder = fetch_weights.fetch(package)
    except ResourceError as error:
        pytest.skip(f"{package} cannot be fetched here: {error.message}")
    graphs = [g for g in sorted(folder.rglob("*.tflite")) if g.stem not in WITH_OPERATORS_OF_THEIR_OWN]
    assert len(graphs) >= 7
    for graph in graphs:
        assert_the_delegate_takes_the_same(delegate, graph)
