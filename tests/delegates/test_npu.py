"""What LiteRT's compiler plugins take. The plugins themselves are the oracle: OpenVINO's with OpenVINO, those
of Qualcomm and MediaTek with libraries in place of their SDKs that take everything."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from delegates.graph import GraphTensor, Node, Operator, Quantization, Subgraph
from delegates.npu import JUDGED, VENDORS, refusals, verdicts
from delegates.npu_rules import RULES
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import BundleError, ResourceError
from rpi_runtime.tflite_file import read
from rpi_runtime.tflite_names import OPERATORS
from tests.conftest import script
from tests.delegates.graph_file import Single, write
from tests.delegates.npu_cases import CASES, IMAGE, REFUSED_WHOLE

# Fetched graphs whose sparse weights stay on the CPU: what the plugins write lacks the indices.
SPARSE = {"face_detection_full_range_sparse", "pose_detection"}
# Neither says much of itself: a composite stands for a graph of its own, the others must be well formed.
NOT_ASKED = {
    "STABLEHLO_COMPOSITE",
    "CUSTOM",
    "DELEGATE",
    "PLACEHOLDER_FOR_GREATER_OP_CODES",
    "SPLIT",
    "SPLIT_V",
}


def tensor(
    *shape: int, dtype: str = "float32", constant: bool = False, scales: int = 0, block: int = 0
) -> GraphTensor:
    quantization = Quantization(0.1, 0, scales, 0) if scales else None
    return GraphTensor("t", shape, dtype, 0, constant, quantization, block)


def node(name: str, *inputs: GraphTensor, output: GraphTensor, **options: Any) -> Node:
    operator = Operator(name, tuple(range(len(inputs))), (len(inputs),), 1, options)
    return Node(0, operator, inputs, (output,))


def reasons(checked: Node, vendor: str) -> str:
    return "; ".join(refusal.reason for refusal in refusals(checked, vendor))


def subgraph(name: str, *tensors: GraphTensor) -> Subgraph:
    """One operator, whose last tensor is its output."""
    last = len(tensors) - 1
    inputs = tuple(range(last))
    return Subgraph("", tensors, inputs, (last,), (Operator(name, inputs, (last,)),))


# Rules


@pytest.mark.parametrize("vendor", JUDGED)
def test_what_fits_is_taken(vendor: str) -> None:
    image = tensor(1, 8, 8, 4)
    assert verdicts(subgraph("ADD", image, image, image), vendor) == {0: ()}


@pytest.mark.parametrize("vendor", JUDGED)
def test_an_operator_that_the_plugin_lacks_is_told(vendor: str) -> None:
    value = tensor(1, 4)
    (refusal,) = refusals(node("MyOwn", value, output=value), vendor)
    assert refusal.reason == f"{VENDORS[vendor].maker}'s plugin has no such operation"
    assert refusal.fix


def test_int8_without_a_scale_falls_back_on_mediatek_alone() -> None:
    """As an 8-bit KV cache comes in."""
    cache, wide = tensor(1024, dtype="int8"), tensor(1024)
    cast = node("CAST", cache, output=wide)
    assert "'t' is int8 [1024] without a scale, for which Neuron has no type" in reasons(cast, "mediatek")
    assert reasons(cast, "qualcomm") == reasons(cast, "openvino") == ""


def test_weights_of_4_bits_under_float32_fall_back_on_qualcomm_alone() -> None:
    rows, weights = tensor(4, 8), tensor(8, 8, dtype="int4", constant=True, scales=8)
    layer = node("FULLY_CONNECTED", rows, weights, output=rows)
    assert reasons(layer, "qualcomm") == "its weights are int4 and its input is float32"
    assert reasons(layer, "mediatek") == reasons(layer, "openvino") == ""
    whole = tensor(4, 8, dtype="int8", scales=1)
    assert reasons(node("FULLY_CONNECTED", whole, weights, output=whole), "qualcomm") == ""


def test_one_tensor_that_qnn_lacks_costs_the_whole_graph() -> None:
    value, odd = tensor(4), tensor(4, dtype="bfloat16")
    operators = (Operator("RELU", (0,), (1,)), Operator("CAST", (1,), (2,)))
    found = verdicts(Subgraph("", (value, value, odd), (0,), (2,), operators), "qualcomm")
    assert len(found[0]) == len(found[1]) == 1
    assert "bfloat16 [4], and the whole graph is refused" in found[0][0].reason


def test_weights_in_blocks_cost_qualcomm_the_whole_graph() -> None:
    weights = tensor(8, 64, dtype="int8", constant=True, block=32)
    found = verdicts(subgraph("FULLY_CONNECTED", tensor(4, 64), weights, tensor(4, 8)), "qualcomm")
    assert "quantised by blocks of 32" in found[0][0].reason


def test_an_input_of_six_dimensions_costs_openvino_the_whole_graph() -> None:
    six, flat = tensor(1, 1, 1, 1, 2, 2), tensor(4)
    (refusal,) = verdicts(subgraph("RESHAPE", six, flat), "openvino")[0]
    assert "input 't' is float32 [1, 1, 1, 1, 2, 2], and the whole graph is refused" in refusal.reason
    assert verdicts(subgraph("RESHAPE", flat, six), "openvino") == {0: ()}
    assert verdicts(subgraph("RESHAPE", six, flat), "qualcomm") == {0: ()}


@pytest.mark.parametrize("vendor", JUDGED)
@pytest.mark.parametrize("name", sorted({name for rules in RULES.values() for name in rules}))
def test_a_node_without_its_inputs_is_judged_too(name: str, vendor: str) -> None:
    bare = Node(0, Operator(name, (), ()), (), ())
    assert all(refusal.reason and refusal.fix for refusal in refusals(bare, vendor))


def test_every_vendor_says_where_its_rules_come_from_or_has_none() -> None:
    assert set(RULES) == set(JUDGED)
    for vendor in VENDORS.values():
        assert vendor.limits
        assert len(set(vendor.socs)) == len(vendor.socs)


# Against the real plugins


@pytest.fixture(scope="module", params=JUDGED)
def plugin(request: pytest.FixtureRequest) -> Any:
    emulation = script("emulation")
    script("openvino_env")
    try:
        return script("npu_plugin").prepare(request.param)
    except (emulation.Unavailable, ResourceError) as reason:
        pytest.skip(f"the plugin of {request.param} cannot be had here: {reason}")


def assert_the_plugin_takes_the_same(plugin: Any, file: Path) -> None:
    subgraphs = read(file, details=True).subgraphs
    ours = [{n for n, why in verdicts(s, plugin.vendor.name).items() if not why} for s in subgraphs]
    assert ours == plugin.taken(file), file.name


def different(plugin: Any, cases: tuple[Single, ...], file: Path) -> list[str]:
    """Those of `cases` that the plugin decides otherwise than the rules."""
    file.write_bytes(write(cases))
    taken = plugin.taken(file)
    assert len(taken) == len(cases)
    ours = [not verdicts(s, plugin.vendor.name)[0] for s in read(file, details=True).subgraphs]
    decided = zip(cases, ours, taken, strict=True)
    return [f"{case}: plugin {bool(theirs)}" for case, mine, theirs in decided if mine != bool(theirs)]


@pytest.mark.emulation
def test_the_plugin_knows_the_same_socs(plugin: Any) -> None:
    assert plugin.socs() == plugin.vendor.socs


@pytest.mark.emulation
def test_of_all_operators_there_are_it_takes_what_the_rules_say(plugin: Any, tmp_path: Path) -> None:
    names = [name for name in (*OPERATORS, "MyOwn") if name not in NOT_ASKED]
    cases = tuple(Single(name, (IMAGE,) * 3, (IMAGE,)) for name in names)
    assert different(plugin, cases, tmp_path / "all.tflite") == []


@pytest.mark.emulation
def test_of_each_operator_as_a_graph_may_have_it_too(plugin: Any, tmp_path: Path) -> None:
    assert different(plugin, CASES, tmp_path / "cases.tflite") == []


@pytest.mark.emulation
@pytest.mark.parametrize("case", REFUSED_WHOLE, ids=str)
def test_what_costs_the_whole_graph_does(plugin: Any, tmp_path: Path, case: Single) -> None:
    file = tmp_path / "one.tflite"
    file.write_bytes(write([case]))
    found = verdicts(read(file, details=True).subgraphs[0], plugin.vendor.name)[0]
    if any("the whole graph is refused" in refusal.reason for refusal in found):
        with pytest.raises(ResourceError):
            plugin.taken(file)
    else:
        assert plugin.taken(file) == [set() if found else {0}]


@pytest.mark.emulation
def test_of_our_graphs_it_takes_what_the_rules_say(plugin: Any, nano_bundle: Path) -> None:
    bundle = Bundle.open(nano_bundle)
    for component in bundle.manifest.components:
        assert_the_plugin_takes_the_same(plugin, bundle.path(component.name))


@pytest.mark.emulation
@pytest.mark.weights
@pytest.mark.parametrize("package", ["face-graphs", "mediapipe-graphs"])
def test_of_graphs_of_others_too(plugin: Any, fetch_weights: ModuleType, package: str) -> None:
    try:
        folder = fetch_weights.fetch(package)
    except ResourceError as error:
        pytest.skip(f"{package} cannot be fetched here: {error.message}")
    graphs = sorted(folder.rglob("*.tflite"))
    assert len(graphs) >= 7
    for file in graphs:
        if file.stem not in SPARSE:
            assert_the_plugin_takes_the_same(plugin, file)
            continue
        with pytest.raises(BundleError, match="has only"):
            plugin.taken(file)
        (only,) = read(file, details=True).subgraphs
        assert plugin.counts(file) == [sum(not why for why in verdicts(only, plugin.vendor.name).values())]
