"""Writes small .tflite files, to ask a real delegate about them: operators alone, or a few wired together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from rpi_runtime.tflite_names import BITS, CUSTOM, DTYPES, OPERATORS

_DTYPE_CODES = {name: code for code, (name, _) in enumerate(DTYPES)}
_TABLES = {
    name.lower(): (name, code) for name, code in vars(schema.BuiltinOptions).items() if isinstance(code, int)
}
# Options whose table is not called like the operator.
_TABLE_OF = {
    **dict.fromkeys(("averagepool2d", "maxpool2d", "l2pool2d"), "pool2doptions"),
    **dict.fromkeys(("maximum", "minimum"), "maximumminimumoptions"),
    "l2normalization": "l2normoptions",
    **dict.fromkeys(
        ("mean", "sum", "reducemax", "reducemin", "reduceprod", "reduceany", "reduceall"), "reduceroptions"
    ),
}
# Where a table has them and nobody gave them, 1: no delegate expects a 0.
_ONES = ("strideW", "strideH", "strideD", "dilationWFactor", "dilationHFactor", "dilationDFactor")
_ONES += ("filterWidth", "filterHeight", "depthMultiplier", "blockSize", "numSplits", "num")


@dataclass(frozen=True)
class Value:
    """A tensor: constant where it has `data`, quantised where it has `scales` or a `block`. One number as
    `data` of floats or quantised numbers stands for many around it, which all differ as far as they can."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    data: Any = None
    scales: tuple[float, ...] = ()
    axis: int = 0  # of the scales
    block: int = 0  # inputs that share a scale, of weights
    zero_point: int = 0  # of all scales

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}{'' if self.data is None else '='}"


@dataclass(frozen=True)
class Single:
    """An operator with its tensors; each input is a tensor of its own, None is one left out. A name that
    TFLite does not know is that of a custom operator."""

    name: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    version: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    same_input: bool = False  # all inputs are the first tensor

    def __str__(self) -> str:
        told = ", ".join("-" if value is None else str(value) for value in self.inputs)
        return f"{self.name} {self.version}({told}) {self.options or ''}"


@dataclass(frozen=True)
class Wired:
    """An operator between values of a `Graph`, by their names; "" is one left out."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    version: int = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Its inputs are the values that nothing makes, its outputs those that nothing reads."""

    values: Mapping[str, Value]
    operators: tuple[Wired, ...]
    signature: str = ""  # "": "graph_" and its number in the file


def graph_of(single: Single) -> Graph:
    values: dict[str, Value] = {}

    def name(value: Value | None) -> str:
        if value is None:
            return ""
        values[f"t{len(values)}"] = value
        return f"t{len(values) - 1}"

    inputs = tuple("t0" if single.same_input and at else name(v) for at, v in enumerate(single.inputs))
    outputs = tuple(name(value) for value in single.outputs)
    return Graph(values, (Wired(single.name, inputs, outputs, single.version, single.options),))


def write(graphs: Sequence[Graph | Single]) -> bytes:
    """A .tflite file with a subgraph, and a signature, for each."""
    wired = [graph_of(graph) if isinstance(graph, Single) else graph for graph in graphs]
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    codes = sorted({(operator.name, operator.version) for graph in wired for operator in graph.operators})
    model.operatorCodes = [_code(name, version) for name, version in codes]
    model.subgraphs, model.signatureDefs = [], []
    for number, graph in enumerate(wired):
        name = graph.signature or f"graph_{number}"
        model.subgraphs.append(_subgraph(model, graph, codes, name))
        model.signatureDefs.append(_signature(model.subgraphs[-1], number))
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _code(name: str, version: int) -> Any:
    code = schema.OperatorCodeT()
    code.builtinCode = OPERATORS.index(name) if name in OPERATORS else CUSTOM
    code.customCode = None if name in OPERATORS else name
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = version
    return code


def _subgraph(model: Any, graph: Graph, codes: list[tuple[str, int]], name: str) -> Any:
    subgraph = schema.SubGraphT()
    subgraph.name = name
    index = {value: number for number, value in enumerate(graph.values)}
    subgraph.tensors = [_tensor(model, *named) for named in graph.values.items()]
    for value, tensor in zip(graph.values.values(), tuple(subgraph.tensors), strict=True):
        if value.block:
            subgraph.tensors.append(_block_scales(model, value, tensor, len(subgraph.tensors)))
    subgraph.operators = [_operator(operator, codes, index) for operator in graph.operators]
    made = {n for operator in subgraph.operators for n in operator.outputs}
    read = {n for operator in subgraph.operators for n in operator.inputs if n >= 0}
    constant = {index[n] for n, value in graph.values.items() if value.data is not None}
    subgraph.inputs = sorted(read - made - constant)
    subgraph.outputs = sorted(made - read)
    return subgraph


def _operator(wired: Wired, codes: list[tuple[str, int]], index: Mapping[str, int]) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex = codes.index((wired.name, wired.version))
    operator.inputs = [index[name] if name else -1 for name in wired.inputs]
    operator.outputs = [index[name] for name in wired.outputs]
    plain = wired.name.replace("_", "").lower()
    table = _TABLE_OF.get(plain, f"{plain}options")
    if wired.name in OPERATORS and table in _TABLES:
        name, operator.builtinOptionsType = _TABLES[table]
        operator.builtinOptions = getattr(schema, f"{name}T")()
        given = {_attribute(option): value for option, value in wired.options.items()}
        ones = {option: 1 for option in _ONES if hasattr(operator.builtinOptions, option)}
        for option, value in {**ones, **given}.items():
            setattr(operator.builtinOptions, option, value)
    return operator


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
        tensor.quantization.zeroPoint = [value.zero_point] * len(value.scales)
        tensor.quantization.quantizedDimension = value.axis
    return tensor


def _block_scales(model: Any, value: Value, tensor: Any, number: int) -> Any:
    """The tensor `number` with the scales of the blocks of `tensor`, which is told of them."""
    details = schema.BlockwiseQuantizationT()
    details.scales, details.zeroPoints, details.blockSize = number, -1, value.block
    tensor.quantization = tensor.quantization or schema.QuantizationParametersT()
    tensor.quantization.details = details
    tensor.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
    blocks = Value((value.shape[0], value.shape[1] // value.block), "float16", 0)
    return _tensor(model, f"{tensor.name}_scales", blocks)


def _stored(value: Value) -> Any:
    if BITS[value.dtype] < 8 or value.dtype == "bfloat16":
        return np.zeros(-(-math.prod(value.shape) * BITS[value.dtype] // 8), np.uint8)
    data = np.asarray(value.data)
    if data.ndim == 1 and data.size == math.prod(value.shape):  # in the order of the tensor
        data = data.reshape(value.shape)
    if data.ndim == 0 and value.dtype not in ("int32", "int64", "bool"):
        spread = np.linspace(0.5, 1.5, math.prod(value.shape)) if value.shape else np.ones(1)
        data = data * spread.reshape(value.shape) * (1 if "float" in value.dtype else 20)
    filled = np.broadcast_to(data.astype(value.dtype), value.shape)
    return np.frombuffer(np.ascontiguousarray(filled).tobytes(), np.uint8)


def _signature(subgraph: Any, number: int) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey = subgraph.name
    signature.subgraphIndex = number
    signature.inputs = [_entry(subgraph, i) for i in subgraph.inputs]
    signature.outputs = [_entry(subgraph, i) for i in subgraph.outputs]
    return signature


def _entry(subgraph: Any, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name = subgraph.tensors[index].name
    entry.tensorIndex = index
    return entry
