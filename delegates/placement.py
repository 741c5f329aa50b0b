"""Where the operators of a graph run on a target, and what that costs: partitions, boundaries, work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from delegates.graph import Node, Subgraph
from delegates.partition import Partition, largest, partitions
from delegates.rules import Refusal
from delegates.work import multiply_adds, tensor_bytes


@dataclass(frozen=True)
class PlacedOperator:
    number: int  # in the subgraph
    name: str
    output: str  # name of the tensor that it makes
    reads: tuple[int, ...]  # operators whose results it reads, ascending
    multiply_adds: int
    partition: int  # index into `Placement.partitions`
    is_delegated: bool
    # Why the delegate leaves it to the CPU, and what would help; empty where it takes it, even if it does
    # not keep the partition.
    refusals: tuple[Refusal, ...]
    faults: tuple[Refusal, ...]  # what the delegate takes, and is known to compute wrongly


@dataclass(frozen=True)
class PartitionReport:
    is_delegated: bool
    operators: tuple[int, ...]
    multiply_adds: int
    bytes_in: int  # of the tensors that others made, constants left out
    bytes_out: int  # of those that others read


@dataclass(frozen=True)
class Placement:
    """Of one subgraph: that of a signature, or one that an operator calls."""

    graph: str  # component or file
    subgraph: str
    operators: tuple[PlacedOperator, ...]  # in the order of the graph
    delegated_operators: int
    multiply_adds: int
    delegated_multiply_adds: int
    delegated_partitions: int
    boundary_bytes: int  # what goes to the delegate and comes back in one run
    partitions: tuple[PartitionReport, ...]  # in the order in which they run

    @property
    def fallbacks(self) -> tuple[PlacedOperator, ...]:
        """What the CPU runs."""
        return tuple(operator for operator in self.operators if not operator.is_delegated)

    @property
    def faulty(self) -> tuple[PlacedOperator, ...]:
        """What the delegate is known to compute wrongly."""
        return tuple(operator for operator in self.operators if operator.faults)

    @property
    def fallback_share(self) -> float:
        """Of the multiply-adds, those of the CPU; of the operators where the graph multiplies nothing."""
        if self.multiply_adds:
            return (self.multiply_adds - self.delegated_multiply_adds) / self.multiply_adds
        return len(self.fallbacks) / len(self.operators) if self.operators else 0.0


def place(
    graph: str,
    name: str,
    subgraph: Subgraph,
    verdicts: Mapping[int, tuple[Refusal, ...]],
    most_partitions: int | None = None,
    faults: Callable[[Node], tuple[Refusal, ...]] = lambda node: (),
) -> Placement:
    """`verdicts` has for each operator why the delegate refuses it, empty where it takes it; of the
    partitions, the delegate keeps at most `most_partitions`, the largest; `faults` is what it is known to
    compute wrongly of what it takes."""
    allowed = {number for number, refusals in verdicts.items() if not refusals}
    cut = partitions(subgraph, allowed)
    kept = largest(cut, most_partitions)
    if kept != allowed:
        cut = partitions(subgraph, kept)
    index = {number: i for i, partition in enumerate(cut) for number in partition.operators}
    makers = {tensor: n for n, operator in enumerate(subgraph.operators) for tensor in operator.outputs}
    operators = tuple(
        PlacedOperator(
            number=node.number,
            name=node.name,
            output=node.outputs[0].name if node.outputs else "",
            reads=tuple(sorted({makers[t] for t in node.operator.inputs if t in makers})),
            multiply_adds=multiply_adds(node),
            partition=index[node.number],
            is_delegated=node.number in kept,
            refusals=verdicts[node.number],
            faults=faults(node) if node.number in kept else (),
        )
        for node in subgraph.nodes()
    )
    reports = tuple(_report(subgraph, partition, operators) for partition in cut)
    delegated = [report for report in reports if report.is_delegated]
    return Placement(
        graph=graph,
        subgraph=name,
        operators=operators,
        delegated_operators=len(kept),
        multiply_adds=sum(operator.multiply_adds for operator in operators),
        delegated_multiply_adds=sum(report.multiply_adds for report in delegated),
        delegated_partitions=len(delegated),
        boundary_bytes=sum(report.bytes_in + report.bytes_out for report in delegated),
        partitions=reports,
    )


def _report(
    subgraph: Subgraph, partition: Partition, operators: tuple[PlacedOperator, ...]
) -> PartitionReport:
    return PartitionReport(
        is_delegated=partition.is_delegated,
        operators=partition.operators,
        multiply_adds=sum(operators[number].multiply_adds for number in partition.operators),
        bytes_in=sum(tensor_bytes(subgraph.tensors[t]) for t in partition.inputs),
        bytes_out=sum(tensor_bytes(subgraph.tensors[t]) for t in partition.outputs),
    )
