"""How much an operator computes and moves, from its shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

from delegates.graph import GraphTensor, Node

# Bits of a number; what is not here has as many as its name says.
_BITS = {"bool": 8, "complex64": 64, "string": 0, "resource": 0, "variant": 0}


def multiply_adds(node: Node) -> int:
    """Of convolutions, matrix products and recurrent layers; 0 for all others, and where shapes lack."""
    count = _COUNTS.get(node.name)
    try:
        return count(node) if count else 0
    except IndexError:
        return 0


def tensor_bytes(tensor: GraphTensor) -> int:
    """Of its numbers, packed; 0 where their size is not known."""
    digits = "".join(c for c in tensor.dtype if c.isdigit())
    bits = _BITS.get(tensor.dtype, int(digits or 0))
    return (tensor.numbers * bits + 7) // 8


def _conv_2d(node: Node) -> int:
    # Weights [out, height, width, in of a group].
    return node.outputs[0].numbers * math.prod(node.input(1).shape[1:])


def _depthwise(node: Node) -> int:
    # Weights [1, height, width, out].
    _, height, width, _ = _dimensions(node.input(1), 4)
    return node.outputs[0].numbers * height * width


def _transpose_conv(node: Node) -> int:
    # Inputs: shape of the output, weights [out, height, width, in], values.
    out, height, width, _ = _dimensions(node.input(1), 4)
    return node.input(2).numbers * out * height * width


def _conv_3d(node: Node) -> int:
    # Weights [depth, height, width, in, out].
    return node.outputs[0].numbers * math.prod(_dimensions(node.input(1), 5)[:4])


def _fully_connected(node: Node) -> int:
    # Weights [out, in].
    return node.outputs[0].numbers * _dimensions(node.input(1), 2)[1]


def _batch_matmul(node: Node) -> int:
    left = node.input(0).shape
    return node.outputs[0].numbers * left[-2 if node.option("adj_x") else -1]


def _recurrent(node: Node) -> int:
    """Each weight matrix once per step."""
    steps = node.input(0).numbers // (node.input(0).shape[-1] or 1)
    return steps * sum(t.numbers for t in node.inputs[1:] if t and len(t.shape) == 2 and t.is_constant)


def _dimensions(tensor: GraphTensor, rank: int) -> tuple[int, ...]:
    if len(tensor.shape) != rank:
        raise IndexError(f"{tensor.name} has {len(tensor.shape)} dimensions, not {rank}")
    return tensor.shape


_COUNTS: dict[str, Callable[[Node], int]] = {
    "CONV_2D": _conv_2d,
    "CONV_3D": _conv_3d,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transpose_conv,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _batch_matmul,
    "LSTM": _recurrent,
    "RNN": _recurrent,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _recurrent,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _recurrent,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _recurrent,
    "BIDIRECTIONAL_SEQUENCE_RNN": _recurrent,
}
