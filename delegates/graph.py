"""A graph as far as the rules of a delegate ask for it: operators with their options, tensors with their
types.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Quantization:
    """Affine: real = scale * (stored - zero_point), per tensor or per channel."""

    scale: float  # of the first channel
    zero_point: int  # likewise
    channels: int  # 1: per tensor
    axis: int  # of the channels


@dataclass(frozen=True)
class GraphTensor:
    name: str
    shape: tuple[int, ...]
    dtype: str  # NumPy's name, or "int4", "bfloat16" ...
    buffer: int  # index into TfliteFile.buffers; an empty buffer means activations
    is_constant: bool = False  # its data is in the file
    quantization: Quantization | None = None
    block: int = 0  # inputs per scale where weights are quantised by blocks, which have no `quantization`
    values: tuple[int, ...] = ()  # of a small constant of int32: axes, sizes, strides

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Operator:
    name: str  # "FULLY_CONNECTED", or a custom operator's own
    inputs: tuple[int, ...]  # tensors of the subgraph; -1 where an optional one is left out
    outputs: tuple[int, ...]
    version: int = 1
    # By the schema's names, as "stride_w"; vectors as tuples. Custom operators have none.
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subgraph:
    name: str
    tensors: tuple[GraphTensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    operators: tuple[Operator, ...]
    control_edges: tuple[tuple[int, int], ...] = ()  # (operator, one that must run later)

    def nodes(self) -> Iterator[Node]:
        """Its operators, in the order in which they run, with their tensors."""
        for number, operator in enumerate(self.operators):
            inputs = tuple(self.tensors[i] if i >= 0 else None for i in operator.inputs)
            yield Node(number, operator, inputs, tuple(self.tensors[i] for i in operator.outputs))


@dataclass(frozen=True)
class Node:
    """An operator where it stands in its subgraph."""

    number: int
    operator: Operator
    inputs: tuple[GraphTensor | None, ...]
    outputs: tuple[GraphTensor, ...]

    @property
    def name(self) -> str:
        return self.operator.name

    def input(self, index: int) -> GraphTensor:
        """Raises IndexError where there are fewer, or it is left out."""
        tensor = self.inputs[index]
        if tensor is None:
            raise IndexError(f"{self.name} has no input {index}")
        return tensor

    def option(self, name: str, default: Any = 0) -> Any:
        return self.operator.options.get(name, default)
