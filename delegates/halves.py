"""Weights of float16 as delegates of TFLite see them: a constant that a DEQUANTIZE makes float32 of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from delegates.graph import GraphTensor, Node, Subgraph
from delegates.rules import Refusal


def verdicts(
    subgraph: Subgraph, refusals: Callable[[Node], tuple[Refusal, ...]]
) -> dict[int, tuple[Refusal, ...]]:
    """Number of each operator -> its `refusals`, empty where the delegate takes it.

    Operators that read such weights are looked at as if they read float16 themselves, and when all the
    others are taken, the DEQUANTIZEs go with them; otherwise they stay on the CPU.
    Source: FP16GraphPartitionHelper in tensorflow/lite/delegates/utils.cc.
    """
    nodes = list(subgraph.nodes())
    sources = {node.operator.outputs[0]: node.input(0) for node in nodes if is_half_constant(node)}
    others = (node for node in nodes if not is_half_constant(node))
    found = {node.number: refusals(_reading(node, sources)) for node in others}
    alone = Refusal(
        "it makes float32 of a float16 constant, and not all others are taken",
        "Mend all else that falls back.",
    )
    of_halves = () if not any(found.values()) else (alone,)
    return {node.number: found.get(node.number, of_halves) for node in nodes}


def is_half_constant(node: Node) -> bool:
    source = node.inputs[0] if node.name == "DEQUANTIZE" and node.inputs else None
    return source is not None and source.dtype == "float16" and source.is_constant


def _reading(node: Node, sources: Mapping[int, GraphTensor]) -> Node:
    """`node` with tensors replaced that come from `sources`."""
    inputs = tuple(sources.get(i, t) for i, t in zip(node.operator.inputs, node.inputs, strict=True))
    return replace(node, inputs=inputs)
