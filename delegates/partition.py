"""Into which partitions TFLite cuts a graph, of whose operators a delegate takes some.

The algorithm is that of `PartitionGraphIntoIndependentNodeSubsets` (tensorflow/lite/graph_info.cc): whatever
can run is gathered, of one kind at a time, until nothing of that kind is left whose inputs are there, and
which no control edge holds back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from delegates.graph import Subgraph


@dataclass(frozen=True)
class Partition:
    """Operators that run one after another on one side. Partitions run in their order."""

    is_delegated: bool
    operators: tuple[int, ...]
    inputs: tuple[int, ...]  # tensors that it reads and others made, ascending; no constants
    outputs: tuple[int, ...]  # tensors that it makes and others read, ascending


def partitions(subgraph: Subgraph, taken: Collection[int]) -> tuple[Partition, ...]:
    """Those of `subgraph`, when a delegate takes the operators numbered `taken`."""
    taken = frozenset(taken)
    before: dict[int, set[int]] = {}
    for first, later in subgraph.control_edges:
        before.setdefault(later, set()).add(first)
    done: set[int] = set()
    made = {tensor for operator in subgraph.operators for tensor in operator.outputs}
    ready: set[int] = set()  # of `made`
    left = list(range(len(subgraph.operators)))
    groups: list[tuple[bool, list[int]]] = []
    while left:
        kind: bool | None = None
        group: list[int] = []
        progress = True
        while progress:
            progress = False
            waiting = []
            for number in left:
                operator = subgraph.operators[number]
                fits = kind is None or (number in taken) == kind
                waits = before.get(number, set()) - done
                if fits and not waits and all(t in ready for t in operator.inputs if t in made):
                    done.add(number)
                    kind = number in taken
                    group.append(number)
                    ready.update(operator.outputs)
                    progress = True
                else:
                    waiting.append(number)
            left = waiting
        if kind is None:  # a cycle: no runtime opens such a graph
            raise ValueError(f"the operators {left} wait for each other")
        groups.append((kind, group))
    return tuple(_partition(subgraph, kind, group) for kind, group in groups)


def largest(found: tuple[Partition, ...], most: int | None = None) -> frozenset[int]:
    """Operators of those delegated partitions that a delegate keeps which takes at most `most`, the
    largest."""
    kept = [p for p in found if p.is_delegated]
    kept.sort(key=lambda p: -len(p.operators))  # stable: of equal ones the first
    return frozenset(number for p in kept[:most] for number in p.operators)


def _partition(subgraph: Subgraph, kind: bool, group: list[int]) -> Partition:
    inside = set(group)
    made = {tensor for number in group for tensor in subgraph.operators[number].outputs}
    read = {tensor for number in group for tensor in subgraph.operators[number].inputs if tensor >= 0}
    elsewhere = {
        tensor
        for number, operator in enumerate(subgraph.operators)
        if number not in inside
        for tensor in operator.inputs
    }
    inputs = (t for t in read - made if not subgraph.tensors[t].is_constant)
    return Partition(
        kind, tuple(group), tuple(sorted(inputs)), tuple(sorted(made & (elsewhere | set(subgraph.outputs))))
    )
