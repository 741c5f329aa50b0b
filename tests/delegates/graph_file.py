"""Writes small .tflite files, to ask a real delegate about them: operators alone, or a few wired together."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from rpi_runtime.tflite_names import BITS, DTYPES

_DTYPE_CODES = {name: code for code, (name, _) in enumerate(DTYPES)}
# Options whose table is not called like the operator.
_TABLES = {
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "L2_POOL_2D": "Pool2DOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "CONCATENATION": "ConcatenationOptions",
    "L2_NORMALIZATION": "L2NormOptions",
    "TOPK_V2": "TopKV2Options",
    "BATCH_MATMUL": "BatchMatMulOptions",
    **dict.fromkeys(
        ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL"),
        "ReducerOptions",
    ),
}


@dataclass(frozen=True)
class Value:
    """A tensor: constant where it has `data`, quantised where it has `scales`. One number as `data` of floats
    or quantised numbers stands for many around it, which all differ as far as they can."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    data: Any = None
    scales: tuple[float, ...] = ()
    axis: int = 0  # of the scales


@dataclass(frozen=True)
class Single:
    """An operator with its tensors; equal inputs are one tensor, None is one left out."""

    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    version: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    same_input: bool = False  # all inputs are the first tensor


@dataclass(frozen=True)
class Wired:
    """An operator between values of a `Graph`, by their numbers; -1 is one left out."""

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    version: int = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Its inputs are the values that nothing makes, its outputs those that nothing reads."""

    values: tuple[Value, ...]
    operators: tuple[Wired, ...]


def graph_of(single: Single) -> Graph:
    values: list[Value] = []

    def number(value: Value | None) -> int:
        if value is None:
            return -1
        values.append(value)
        return len(values) - 1

    inputs = tuple(0 if single.same_input and at else number(v) for at, v in enumerate(single.inputs))
    outputs = tuple(number(value) for value in single.outputs)
    return Graph(tuple(values), (Wired(single.name, inputs, outputs, single.version, single.options),))


def write(graphs: Sequence[Graph | Single]) -> bytes:
    """A .tflite file with a subgraph, and a signature, for each."""
    wired = [graph_of(graph) if isinstance(graph, Single) else graph for graph in graphs]
    model = schema.ModelT()
    model.version = 3
    model.description = "single operators"
    model.buffers = [schema.BufferT()]
    codes = sorted({(operator.name, operator.version) for graph in wired for operator in graph.operators})
    model.operatorCodes = [_code(name, version) for name, version in codes]
    model.subgraphs = [_subgraph(model, graph, codes, number) for number, graph in enumerate(wired)]
    model.signatureDefs = [_signature(subgraph, n) for n, subgraph in enumerate(model.subgraphs)]
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _code(name: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, name)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = version
    return code


def _subgraph(model: Any, graph: Graph, codes: list[tuple[str, int]], number: int) -> Any:
    subgraph = schema.SubGraphT()
    subgraph.name = f"graph_{number}"
    subgraph.tensors = [_tensor(model, f"t{n}", value) for n, value in enumerate(graph.values)]
    subgraph.operators = [_operator(operator, codes) for operator in graph.operators]
    made = {n for operator in graph.operators for n in operator.outputs}
    read = {n for operator in graph.operators for n in operator.inputs if n >= 0}
    subgraph.inputs = sorted(n for n in read - made if graph.values[n].data is None)
    subgraph.outputs = sorted(made - read)
    return subgraph


def _operator(wired: Wired, codes: list[tuple[str, int]]) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex = codes.index((wired.name, wired.version))
    operator.inputs = list(wired.inputs)
    operator.outputs = list(wired.outputs)
    if wired.options:
        table = _TABLES.get(wired.name, _camel(wired.name.title().replace("_", "")) + "Options")
        options = getattr(schema, f"{table}T")()
        for name, value in wired.options.items():
            setattr(options, _attribute(name), value)
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, table)
    return operator


def _camel(title: str) -> str:
    return re.sub(r"2d\b", "2D", title)


def _attribute(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


def _tensor(model: Any, name: str, value: Value) -> Any:
    tensor = schema.TensorT()
    tensor.name = name
    tensor.shape = list(value.shape)
    tensor.type = _DTYPE_CODES[value.dtype]
    if value.data is not None:
        tensor.buffer = len(model.buffers)
        buffer = schema.BufferT()
        buffer.data = _stored(value)
        model.buffers.append(buffer)
    if value.scales:
        tensor.quantization = schema.QuantizationParametersT()
        tensor.quantization.scale = list(value.scales)
        tensor.quantization.zeroPoint = [0] * len(value.scales)
        tensor.quantization.quantizedDimension = value.axis
    return tensor


def _stored(value: Value) -> Any:
    if BITS[value.dtype] < 8 or value.dtype == "bfloat16":
        return np.zeros(-(-math.prod(value.shape) * BITS[value.dtype] // 8), np.uint8)
    data = np.asarray(value.data)
    if data.ndim == 0 and value.dtype not in ("int32", "int64", "bool"):
        spread = np.linspace(0.5, 1.5, math.prod(value.shape)) if value.shape else np.ones(1)
        data = data * spread.reshape(value.shape) * (1 if "float" in value.dtype else 20)
    filled = np.broadcast_to(data.astype(value.dtype), value.shape)
    return np.frombuffer(np.ascontiguousarray(filled).tobytes(), np.uint8)


def _signature(subgraph: Any, number: int) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = subgraph.name
    signature.subgraphIndex = number
    signature.inputs = [_entry(f"in{i}", i) for i in subgraph.inputs]
    signature.outputs = [_entry(f"out{i}", i) for i in subgraph.outputs]
    return signature


def _entry(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name = name
    entry.tensorIndex = index
    return entry
