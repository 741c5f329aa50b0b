"""What XNNPACK takes, as the runtime tells it, and into how many parts the runtime then cuts a graph."""

from __future__ import annotations

from pathlib import Path

import pytest

from delegates.partition import partitions
from rpi_runtime.backends.execution_plan import ExecutionPlans
from rpi_runtime.backends.interpreter import interpreter_class
from rpi_runtime.backends.xnnpack import taken
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import BundleError
from rpi_runtime.tflite_file import read


def parts(path: Path) -> list[int]:
    """Of each signature, nodes that XNNPACK put into the plan."""
    interpreter = interpreter_class("ai-edge-litert")(model_path=str(path), num_threads=1)
    native = interpreter._interpreter
    plans = ExecutionPlans(native)
    before = plans.read()
    for name in interpreter.get_signature_list():
        native.AllocateTensors(native.GetSubgraphIndexFromSignature(name))
    return [len(set(new) - set(old)) for old, new in zip(before, plans.read(), strict=True)]


@pytest.mark.parametrize(
    ("component", "delegate"),
    [("vision_base", "cpu"), ("decoder", "gpu"), ("decoder", "cpu"), ("vision_base", "nnapi:30")],
)
def test_a_graph_is_cut_as_the_runtime_cuts_it(component: str, delegate: str, variants_bundle: Path) -> None:
    """The decoders have a cache of 8 bits, whose casts XNNPACK leaves."""
    path = Bundle.open(variants_bundle).path(component, delegate)
    runtime, found = taken(path)
    assert runtime.startswith("ai-edge-litert 2.")
    graph = read(path, details=True)
    cut = [partitions(s, nodes) for s, nodes in zip(graph.subgraphs, found, strict=True)]
    assert [sum(part.is_delegated for part in these) for these in cut] == parts(path)
    left = {
        s.operators[n].name
        for s, nodes in zip(graph.subgraphs, found, strict=True)
        for n in {*range(len(s.operators))} - nodes
    }
    if component == "decoder":
        assert left == {"CAST", "RESHAPE"}
    elif delegate != "nnapi:30":
        assert left == set()


def test_a_graph_that_the_runtime_does_not_open_is_told(tmp_path: Path) -> None:
    from tests.delegates.graph_file import Single, Value, write

    path = tmp_path / "own.tflite"
    path.write_bytes(write([Single("MyOwn", (Value((1, 4)),), (Value((1, 4)),))]))
    with pytest.raises(BundleError, match=r"own\.tflite: ai-edge-litert 2.* cannot open it \(.*MyOwn"):
        taken(path)
