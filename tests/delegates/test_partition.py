"""How TFLite cuts a graph between a delegate and the CPU."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delegates.graph import GraphTensor, Operator, Subgraph
from delegates.partition import largest, partitions
from delegates.placement import place
from delegates.rules import Refusal
from rpi_runtime.backends.external import ExternalDelegate
from rpi_runtime.backends.interpreter import InterpreterGraph
from rpi_runtime.backends.select import choose
from rpi_runtime.bundle import Bundle
from rpi_runtime.tflite_file import read
from tests.conftest import script

NO = (Refusal("no", "none"),)


def chain(*reads: tuple[int, ...]) -> Subgraph:
    """A subgraph whose operator i makes tensor i + 1 from the tensors `reads[i]`; tensor 0 is its input, and
    the last its output."""
    count = len(reads)
    tensors = tuple(GraphTensor(f"t{i}", (4,), "float32", 0) for i in range(count + 1))
    operators = tuple(Operator("ADD", of, (i + 1,)) for i, of in enumerate(reads))
    return Subgraph("", tensors, (0,), (count,), operators)


def cut(subgraph: Subgraph, *taken: int) -> list[tuple[str, tuple[int, ...]]]:
    return [("taken" if p.is_delegated else "left", p.operators) for p in partitions(subgraph, taken)]


def test_all_that_is_taken_is_one_partition() -> None:
    assert cut(chain((0,), (1,), (2,)), 0, 1, 2) == [("taken", (0, 1, 2))]


def test_one_that_is_left_in_the_middle_makes_two_of_the_rest() -> None:
    assert cut(chain((0,), (1,), (2,)), 0, 2) == [("taken", (0,)), ("left", (1,)), ("taken", (2,))]


def test_what_is_left_beside_the_others_does_not_part_them() -> None:
    """Operator 1 reads the input, so it can run before or behind the others."""
    beside = chain((0,), (0,), (1,), (3,), (2, 4))
    assert cut(beside, 0, 2, 3) == [("taken", (0, 2, 3)), ("left", (1, 4))]


def test_inputs_and_outputs_are_what_crosses_the_boundary() -> None:
    first, second, third = partitions(chain((0,), (1,), (0, 2)), {1})
    assert (first.inputs, first.outputs) == ((0,), (1,))
    assert (second.inputs, second.outputs) == ((1,), (2,))
    assert (third.inputs, third.outputs) == ((0, 2), (3,))


def test_a_delegate_may_keep_only_the_largest() -> None:
    parts = partitions(chain(*((i,) for i in range(7))), {0, 2, 3, 5})
    assert largest(parts, most=1) == {2, 3}
    assert largest(parts, most=2) == {0, 2, 3}
    assert largest(parts) == {0, 2, 3, 5}


def test_a_placement_counts_what_falls_back_and_what_crosses() -> None:
    placed = place("g", "s", chain((0,), (1,), (2,)), {0: (), 1: NO, 2: ()}, most_partitions=1)
    assert [operator.is_delegated for operator in placed.operators] == [True, False, False]
    assert [operator.refusals for operator in placed.fallbacks] == [NO, ()]
    assert placed.boundary_bytes == 2 * 16
    assert placed.fallback_share == 2 / 3, "without multiply-adds the operators are counted"
    assert [operator.reads for operator in placed.operators] == [(), (0,), (1,)]


@st.composite
def graphs(draw: Any) -> tuple[Subgraph, set[int]]:
    count = draw(st.integers(1, 14))
    reads = [tuple(draw(st.sets(st.integers(0, i), min_size=1, max_size=3))) for i in range(count)]
    return chain(*reads), draw(st.sets(st.integers(0, count - 1)))


@given(graphs())
def test_every_operator_runs_once_behind_what_it_reads(made: tuple[Subgraph, set[int]]) -> None:
    subgraph, taken = made
    parts = partitions(subgraph, taken)
    order = [number for part in parts for number in part.operators]
    assert sorted(order) == list(range(len(subgraph.operators)))
    assert {n for part in parts if part.is_delegated for n in part.operators} == taken
    ready = set(subgraph.inputs)
    for number in order:
        assert set(subgraph.operators[number].inputs) <= ready
        ready |= set(subgraph.operators[number].outputs)
    assert all(a.is_delegated != b.is_delegated for a, b in itertools.pairwise(parts))


@given(graphs())
def test_what_a_partition_reads_was_made_before_it(made: tuple[Subgraph, set[int]]) -> None:
    subgraph, taken = made
    known = set(subgraph.inputs)
    for part in partitions(subgraph, taken):
        assert set(part.inputs) <= known
        known |= set(part.outputs)
    assert set(subgraph.outputs) <= known


def test_a_control_edge_holds_an_operator_back() -> None:
    """Operator 1 reads the input, and waits for operator 2."""
    free = chain((0,), (0,), (1,), (2, 3))
    assert cut(free, 1) == [("left", (0, 2)), ("taken", (1,)), ("left", (3,))]
    assert cut(free, 0, 2, 3) == [("taken", (0, 2)), ("left", (1,)), ("taken", (3,))]
    early = dataclasses.replace(free, control_edges=((1, 0),))
    assert cut(early, 1) == [("taken", (1,)), ("left", (0, 2, 3))]


# Against the runtime


def cut_by_the_runtime(graph: Path, library: Path, subgraph: int, taken: set[int]) -> list[dict[str, Any]]:
    """What TFLite hands a delegate that takes these operators of one subgraph: its partitions."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        nodes = "+".join(map(str, sorted(taken)))
        options = (("log", str(log)), ("subgraph", str(subgraph)), ("nodes", nodes))
        delegate = ExternalDelegate(library, options)
        choice = choose("interpreter")
        InterpreterGraph(graph, threads=1, verbose=False, choice=choice, delegate=delegate).close()
        events = [json.loads(line) for line in log.read_text().splitlines()]
    return [event for event in events if event["event"] == "partition"]


@pytest.mark.emulation
@pytest.mark.parametrize("component", ["vrc", "vision_base", "decoder"])
def test_the_runtime_cuts_our_graphs_the_same_way(component: str, nano_bundle: Path) -> None:
    emulation = script("emulation")
    script("nnapi_delegate")
    try:
        library = script("external_delegate").prepare()
    except emulation.Unavailable as reason:
        pytest.skip(f"the external delegate cannot be built here: {reason}")
    path = Bundle.open(nano_bundle).path(component)
    drawn = random.Random(0)
    for number, subgraph in enumerate(read(path, details=True).subgraphs[:3]):
        everything = range(len(subgraph.operators))
        for share in (0.5, 0.9, 0.97):
            taken = {operator for operator in everything if drawn.random() < share}
            found = cut_by_the_runtime(path, library, number, taken)
            ours = [part for part in partitions(subgraph, taken) if part.is_delegated]
            assert [event["nodes"] for event in found] == [list(part.operators) for part in ours]
            for event, part in zip(found, ours, strict=True):
                inputs = {t for t in event["inputs"] if t >= 0 and not subgraph.tensors[t].is_constant}
                assert inputs == set(part.inputs)
                assert set(event["outputs"]) == set(part.outputs)
