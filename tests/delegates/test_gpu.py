"""What the GPU takes, and what it computes. LiteRT's own accelerator on a software Vulkan is the oracle."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from delegates.gpu import RULES, refusals, taken, verdicts
from delegates.gpu_faults import FAULTS, faults
from delegates.graph import GraphTensor, Node, Operator, Quantization, Subgraph
from delegates.halves import is_half_constant
from delegates.partition import partitions
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import ResourceError
from rpi_runtime.manifest import Signature
from rpi_runtime.tflite_file import read
from tests.conftest import script
from tests.delegates.graph_file import Graph, Single, Value, Wired, write
from tests.delegates.single_operators import all_of_them

# Of the fetched graphs, those with operators of their own that neither the CPU nor the GPU knows.
WITH_OPERATORS_OF_THEIR_OWN = {"face_landmark_with_attention"}
WITH_INDICES = ("GATHER", "EMBEDDING_LOOKUP", "ONE_HOT", "DYNAMIC_UPDATE_SLICE")


def tensor(*shape: int, dtype: str = "float32", constant: bool = False, scales: int = 0) -> GraphTensor:
    quantization = Quantization(0.1, 0, scales, 0) if scales else None
    return GraphTensor("t", shape, dtype, 0, constant, quantization)


def node(name: str, *inputs: GraphTensor, output: GraphTensor, version: int = 1, **options: Any) -> Node:
    operator = Operator(name, tuple(range(len(inputs))), (len(inputs),), version, options)
    return Node(0, operator, inputs, (output,))


def reasons(checked: Node) -> str:
    return "; ".join(refusal.reason for refusal in refusals(checked))


# Rules


def test_what_fits_is_accepted() -> None:
    image = tensor(1, 8, 8, 4)
    assert refusals(node("ADD", image, tensor(4, constant=True), output=image)) == ()


def test_a_refusal_names_the_value_and_what_would_help() -> None:
    five = tensor(1, 2, 2, 2, 4)
    (refusal,) = refusals(node("ABS", five, output=five))
    assert refusal.reason == "input 0 is float32 [1, 2, 2, 2, 4], and may have at most 4 dimensions"
    assert refusal.fix == "Reshape around it to at most 4 dimensions."


def test_an_operator_that_the_accelerator_lacks_is_told_with_what_to_export_instead() -> None:
    value = tensor(1, 4)
    (refusal,) = refusals(node("SQUEEZE", value, output=value))
    assert refusal.reason == "the GPU accelerator has no such operation"
    assert refusal.fix == "Export it as RESHAPE."


def test_integers_are_computed_only_by_some() -> None:
    whole = tensor(2, 4, dtype="int32")
    assert reasons(node("ADD", whole, whole, output=whole)) == ""
    assert "input 0 is int32 [2, 4]" in reasons(node("EXP", whole, output=whole))
    assert "int64" in reasons(node("ADD", *[tensor(2, 4, dtype="int64")] * 2, output=whole))


def test_a_slice_may_not_go_backwards() -> None:
    def constant(*values: int) -> GraphTensor:
        return dataclasses.replace(tensor(len(values), dtype="int32", constant=True), values=values)

    source, made = tensor(2, 4), tensor(2, 3)
    back = node("STRIDED_SLICE", source, constant(0, 3), constant(2, 0), constant(1, -1), output=made)
    assert "it goes backwards, by [1, -1]" in reasons(back)


def test_only_the_largest_part_runs() -> None:
    """Three operators that are accepted, one that is not, one that is."""
    values = tuple(tensor(1, 4) for _ in range(6))
    names = ("ABS", "ABS", "ABS", "SQUEEZE", "ABS")
    operators = tuple(Operator(name, (i,), (i + 1,)) for i, name in enumerate(names))
    subgraph = Subgraph("", values, (0,), (5,), operators)
    assert [not why for why in verdicts(subgraph).values()] == [True, True, True, False, True]
    assert taken(subgraph) == {0, 1, 2}


def test_a_constant_of_the_same_rank_with_a_batch_is_a_fault() -> None:
    value = tensor(2, 4)
    (fault,) = faults(node("ADD", value, tensor(2, 4, constant=True), output=value))
    assert "along other dimensions" in fault.reason
    assert faults(node("ADD", value, tensor(4, constant=True), output=value)) == ()


@given(
    name=st.sampled_from([*RULES, *FAULTS, "MyOwn"]),
    inputs=st.lists(st.none() | st.lists(st.integers(0, 5), max_size=6), max_size=4),
    outputs=st.lists(st.lists(st.integers(0, 5), max_size=6), max_size=2),
    dtypes=st.lists(
        st.sampled_from(["float32", "int8", "uint8", "int32", "int64", "float16"]), min_size=6, max_size=6
    ),
    constants=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_any_node_is_judged(
    name: str, inputs: list[Any], outputs: list[Any], dtypes: list[str], constants: list[bool]
) -> None:
    """Also one that lacks inputs, outputs or dimensions, as a file may have it."""
    kinds = iter(zip(dtypes, constants, strict=True))

    def made(shape: list[int]) -> GraphTensor:
        dtype, constant = next(kinds)
        return tensor(*shape, dtype=dtype, constant=constant)

    tensors = tuple(None if shape is None else made(shape) for shape in inputs)
    results = tuple(made(shape) for shape in outputs)
    ids = tuple(-1 if t is None else i for i, t in enumerate(tensors))
    judged = Node(0, Operator(name, ids, tuple(range(len(results)))), tensors, results)
    for refusal in (*refusals(judged), *faults(judged)):
        assert refusal.reason
        assert refusal.fix


# Against the real accelerator


@pytest.fixture(scope="module")
def gpu_scripts() -> dict[str, ModuleType]:
    names = ("emulation", "software_vulkan", "gpu_child", "gpu_accelerator")
    return {name: script(name) for name in names}


@pytest.fixture(scope="module")
def accelerator(gpu_scripts: dict[str, ModuleType]) -> Any:
    """On SwiftShader, which computes in float32."""
    return prepared(gpu_scripts, "swiftshader")


@pytest.fixture(scope="module")
def half_accelerator(gpu_scripts: dict[str, ModuleType]) -> Any:
    """On lavapipe, which computes in float16 where it may."""
    return prepared(gpu_scripts, "lavapipe")


def prepared(scripts: dict[str, ModuleType], driver: str) -> Any:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed here")
    try:
        return scripts["gpu_accelerator"].prepare(driver)
    except scripts["emulation"].Unavailable as reason:
        pytest.skip(f"a software Vulkan cannot be had here: {reason}")


def accepted(subgraph: Subgraph) -> set[int]:
    return {number for number, why in verdicts(subgraph).items() if not why}


def assert_the_accelerator_takes_the_same(accelerator: Any, graph: Path) -> None:
    subgraphs = read(graph, details=True).subgraphs
    found = accelerator.delegations(graph)
    assert len(found) == len(subgraphs)
    for number, (subgraph, delegation) in enumerate(zip(subgraphs, found, strict=True)):
        where = f"{graph.name}, subgraph {number}"
        # It asks about all but constants of float16, which go with the others or not at all.
        halves = {n.number for n in subgraph.nodes() if is_half_constant(n)}
        assert accepted(subgraph) - halves == delegation.accepted, where
        assert taken(subgraph) == delegation.taken, where


@pytest.mark.emulation
def test_of_single_operators_the_accelerator_accepts_what_the_rules_say(
    accelerator: Any, tmp_path: Path
) -> None:
    singles = all_of_them()
    graph = written(tmp_path, singles)
    assert len(singles) > 2000
    subgraphs = read(graph, details=True).subgraphs
    found = accelerator.delegations(graph)
    wrong = [
        f"{single}: {'accepted' if seen.accepted else seen.reasons}, but {verdicts(subgraph)[0]}"
        for single, subgraph, seen in zip(singles, subgraphs, found, strict=True)
        if accepted(subgraph) != seen.accepted and not is_half_constant(next(subgraph.nodes()))
    ]
    assert not wrong


@pytest.mark.emulation
def test_a_graph_falls_into_the_parts_that_tflite_makes(accelerator: Any, tmp_path: Path) -> None:
    graph = written(tmp_path, [tangle(seed) for seed in range(100)])
    found = accelerator.delegations(graph)
    for subgraph, seen in zip(read(graph, details=True).subgraphs, found, strict=True):
        parts = [p for p in partitions(subgraph, accepted(subgraph)) if p.is_delegated]
        assert len(parts) == seen.partitions
    assert max(seen.partitions for seen in found) > 2
    assert_the_accelerator_takes_the_same(accelerator, graph)


def tangle(seed: int) -> Graph:
    """Operators that read each other's results, of which the accelerator does not take all."""
    chosen = random.Random(seed)
    names, operators = ["0", "1"], []
    for number in range(2, 26):
        left, right = chosen.sample(names[-8:], 2)
        name = chosen.choice(("ABS", "ABS", "ZEROS_LIKE", "ADD", "MAXIMUM"))
        inputs = (left,) if name in ("ABS", "ZEROS_LIKE") else (left, right)
        operators.append(Wired(name, inputs, (str(number),)))
        names.append(str(number))
    return Graph(dict.fromkeys(names, Value((1, 4))), tuple(operators))


@pytest.mark.emulation
def test_of_our_graphs_the_accelerator_takes_what_the_rules_say(accelerator: Any, nano_bundle: Path) -> None:
    bundle = Bundle.open(nano_bundle)
    for component in bundle.manifest.components:
        assert_the_accelerator_takes_the_same(accelerator, bundle.path(component.name))


@pytest.mark.emulation
@pytest.mark.weights
@pytest.mark.parametrize("package", ["face-graphs", "mediapipe-graphs"])
def test_of_graphs_of_others_too(accelerator: Any, fetch_weights: ModuleType, package: str) -> None:
    try:
        folder = fetch_weights.fetch(package)
    except ResourceError as error:
        pytest.skip(f"{package} cannot be fetched here: {error.message}")
    graphs = [g for g in sorted(folder.rglob("*.tflite")) if g.stem not in WITH_OPERATORS_OF_THEIR_OWN]
    assert len(graphs) >= 7
    for graph in graphs:
        assert_the_accelerator_takes_the_same(accelerator, graph)


# What it computes


@pytest.mark.emulation
def test_of_what_it_accepts_the_accelerator_computes_all_right_but_the_known_faults(
    accelerator: Any, tmp_path: Path
) -> None:
    sound = [single for single, known in computed_on_both(tmp_path) if not known]
    assert len(sound) > 1200
    assert not wrong(accelerator, sound, tmp_path)


@pytest.mark.emulation
def test_each_fault_that_is_told_of_is_one(accelerator: Any, tmp_path: Path) -> None:
    """Operators that have one go wrong, or cannot be run. Of each kind, one at least: when two numbers are
    compared, the wrong one may give the right answer."""
    by_operator: dict[str, list[Single]] = {}
    for single, known in computed_on_both(tmp_path):
        if known:
            by_operator.setdefault(single.name, []).append(single)
    assert set(by_operator) == set(FAULTS)
    for name, singles in by_operator.items():
        if name not in ("EQUAL", "NOT_EQUAL"):
            assert any(goes_wrong(accelerator, single, tmp_path) for single in singles), name


def computed_on_both(folder: Path) -> list[tuple[Single, bool]]:
    """With whether a fault is known. They are accepted, have an input, of types that Python can hand over,
    and the CPU computes them: it has no TANH in convolutions."""
    singles = all_of_them()
    subgraphs = read(written(folder, singles), details=True).subgraphs
    found = []
    for single, subgraph in zip(singles, subgraphs, strict=True):
        dtypes = {value.dtype for value in (*single.inputs, *single.outputs) if value is not None}
        is_tanh = single.name == "CONV_2D" and single.options.get("fused_activation_function") == 4
        if accepted(subgraph) and subgraph.inputs and "int16" not in dtypes and not is_tanh:
            found.append((single, bool(faults(next(subgraph.nodes())))))
    return found


def goes_wrong(accelerator: Any, single: Single, folder: Path) -> bool:
    try:
        return bool(wrong(accelerator, [single], folder))
    except ResourceError:
        return True


def wrong(accelerator: Any, singles: Sequence[Single], folder: Path) -> list[str]:
    """Of results that the GPU has otherwise than the CPU, which."""
    graph = written(folder, singles)
    inputs = inputs_of(read(graph).signatures, singles)
    on_gpu, on_cpu = (accelerator.run(graph, inputs, where).outputs for where in ("gpu", "cpu"))
    found = []
    for name, there in on_cpu.items():
        single = singles[int(name.partition(":")[0].removeprefix("graph_"))]
        if not close(on_gpu[name], there, single):
            found.append(f"{single}: {on_gpu[name].ravel()[:4]}, on the CPU {there.ravel()[:4]}")
    return found


def written(folder: Path, graphs: Sequence[Graph | Single]) -> Path:
    path = folder / "operators.tflite"
    path.write_bytes(write(graphs))
    return path


def inputs_of(signatures: Sequence[Signature], singles: Sequence[Single]) -> dict[str, NDArray[Any]]:
    """Small numbers above 0, and indices of 0 or 1."""
    chosen = np.random.default_rng(0)
    found: dict[str, NDArray[Any]] = {}
    for signature, single in zip(signatures, singles, strict=True):
        for t in signature.inputs:
            if t.dtype.startswith("float"):
                values: NDArray[Any] = chosen.uniform(0.1, 2, t.shape)
            elif t.dtype == "bool" or single.name in WITH_INDICES:
                values = chosen.integers(0, 2, t.shape)
            else:
                values = chosen.integers(1, 5, t.shape)
            found[f"{signature.name}:{t.name}"] = values.astype(t.dtype)
    return found


def close(here: NDArray[Any], there: NDArray[Any], single: Single) -> bool:
    """Quantised numbers may differ by one step, and results of weights of 8 bits by what the CPU rounds."""
    if here.dtype.kind in "iub":
        steps = 1 if single.outputs[0].scales else 0
        return bool((np.abs(here.astype(float) - there.astype(float)) <= steps).all())
    return bool(np.allclose(here, there, rtol=5e-3, atol=1e-5))


def difference(scripts: dict[str, ModuleType], accelerator: Any, graph: Path, where: str) -> Any:
    """From the CPU, the largest of all signatures."""
    gpu = scripts["gpu_accelerator"]
    inputs = gpu.random_inputs(graph)
    here, there = (accelerator.run(graph, inputs, place).outputs for place in (where, "cpu"))
    return gpu.Difference.worst(here, there)


@pytest.mark.emulation
@pytest.mark.parametrize("component", ["vrc", "vision_base", "vision_large", "decoder"])
def test_in_float32_the_gpu_computes_what_the_cpu_does(
    gpu_scripts: dict[str, ModuleType], accelerator: Any, nano_bundle: Path, component: str
) -> None:
    found = difference(gpu_scripts, accelerator, Bundle.open(nano_bundle).path(component), "gpu")
    assert found.largest < 1e-5


@pytest.mark.emulation
@pytest.mark.parametrize("component", ["vrc", "vision_base", "vision_large", "decoder"])
def test_in_float16_it_comes_close(
    gpu_scripts: dict[str, ModuleType], half_accelerator: Any, nano_bundle: Path, component: str
) -> None:
    graph = Bundle.open(nano_bundle).path(component)
    found = difference(gpu_scripts, half_accelerator, graph, "gpu-half")
    assert found.largest < 0.02
    assert found.cosine > 0.999


# Of `variants_bundle`: component, the delegate its graph was made for, and how far the GPU may be from the
# CPU in float32 and in float16. Measured: 2.1e-6 and 8.4e-3; 7.8e-7 and 2.0e-3. The CPU rounds what it
# multiplies by weights of 8 bits, and the GPU does not: 1.9e-2 and 1.8e-2.
VARIANTS = {
    "vision_base": ("gpu", 1e-5, 0.02),
    "decoder": ("gpu", 1e-5, 0.01),
    "decoder of 8 bits": ("cpu", 0.03, 0.03),
}


@pytest.mark.emulation
@pytest.mark.parametrize("name", VARIANTS)
def test_graphs_for_each_delegate_agree(
    gpu_scripts: dict[str, ModuleType],
    accelerator: Any,
    half_accelerator: Any,
    variants_bundle: Path,
    name: str,
) -> None:
    made_for, in_float32, in_float16 = VARIANTS[name]
    graph = Bundle.open(variants_bundle).path(name.split()[0], made_for)
    assert not any(
        faults(node) for subgraph in read(graph, details=True).subgraphs for node in subgraph.nodes()
    )
    single = difference(gpu_scripts, accelerator, graph, "gpu")
    half = difference(gpu_scripts, half_accelerator, graph, "gpu-half")
    assert single.largest < in_float32
    assert half.largest < in_float16
    assert min(single.cosine, half.cosine) > 0.9998


@pytest.mark.emulation
def test_a_graph_for_nnapi_has_a_fault_that_shows(
    gpu_scripts: dict[str, ModuleType], accelerator: Any, variants_bundle: Path
) -> None:
    """Its positions are a constant of two dimensions, added to patches of two: cosine 0.93, measured."""
    graph = Bundle.open(variants_bundle).path("vision_base", "nnapi:30")
    for subgraph in read(graph, details=True).subgraphs:
        (wrong,) = [node for node in subgraph.nodes() if faults(node)]
        assert wrong.name == "ADD"
    assert difference(gpu_scripts, accelerator, graph, "gpu").cosine < 0.98
