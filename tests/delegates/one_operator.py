"""Graphs of single operators, for asking a delegate about each: one subgraph per operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from rpi_runtime.tflite_names import BITS, CUSTOM, OPERATORS

_DTYPES = {name.lower(): code for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
# Operators whose options are not named after them.
_OPTIONS = {
    "depthwiseconv2d": "DepthwiseConv2DOptions",
    **dict.fromkeys(("averagepool2d", "maxpool2d", "l2pool2d"), "Pool2DOptions"),
    **dict.fromkeys(
        ("mean", "sum", "reducemax", "reducemin", "reduceprod", "reduceany", "reduceall"), "ReducerOptions"
    ),
    "l2normalization": "L2NormOptions",
    **dict.fromkeys(("maximum", "minimum"), "MaximumMinimumOptions"),
}
_ONES = ("strideW", "strideH", "strideD", "dilationWFactor", "dilationHFactor", "dilationDFactor")
_ONES += ("filterWidth", "filterHeight", "depthMultiplier", "blockSize", "numSplits", "num")


@dataclass(frozen=True)
class Value:
    """A tensor; with `numbers` (or zeros, where `is_constant`) a constant."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    numbers: tuple[float, ...] | None = None
    is_constant: bool = False
    scales: int = 0  # of its quantisation
    scale: tuple[float, ...] = ()  # all of them; () for 0.1 each
    zero_point: int = 0
    axis: int = 0  # of the scales
    block: int = 0

    def data(self) -> bytes | None:
        if self.numbers is not None:
            return np.array(self.numbers, self.dtype).tobytes()
        bits = BITS[self.dtype] * int(np.prod(self.shape))
        return bytes(max(1, bits // 8)) if self.is_constant else None


@dataclass(frozen=True)
class Case:
    operator: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        told = ["-" if v is None else f"{v.dtype}{list(v.shape)}{'=' * v.is_constant}" for v in self.inputs]
        return f"{self.operator}({', '.join(told)}) {self.options or ''}"


def graph(cases: Sequence[Case]) -> bytes:
    """A .tflite file with one subgraph for each case."""
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    model.operatorCodes, model.subgraphs = [], []
    for case in cases:
        model.subgraphs.append(_subgraph(model, case))
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _subgraph(model: Any, case: Case) -> Any:
    code = schema.OperatorCodeT()
    known = case.operator in OPERATORS
    code.builtinCode = OPERATORS.index(case.operator) if known else CUSTOM
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.customCode = None if known else case.operator
    code.version = 1
    model.operatorCodes.append(code)
    subgraph = schema.SubGraphT()
    subgraph.name, subgraph.tensors = f"subgraph_{len(model.subgraphs)}", []
    operator = schema.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs = [_tensor(model, subgraph, v, f"in{i}") for i, v in enumerate(case.inputs)]
    operator.outputs = [_tensor(model, subgraph, v, f"out{i}") for i, v in enumerate(case.outputs)]
    operator.builtinOptionsType, operator.builtinOptions = _options(case) if known else (0, None)
    subgraph.operators = [operator]
    given = zip(operator.inputs, case.inputs, strict=True)
    subgraph.inputs = [i for i, value in given if value is not None and value.data() is None]
    subgraph.outputs = operator.outputs
    return subgraph


def _tensor(model: Any, subgraph: Any, value: Value | None, name: str) -> int:
    if value is None:
        return -1
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type = name, list(value.shape), _DTYPES[value.dtype]
    tensor.buffer = _buffer(model, value.data())
    quantization = schema.QuantizationParametersT()
    if value.scales:
        scales = value.scale or (0.1,) * value.scales
        quantization.scale = np.array(scales, np.float32)
        quantization.zeroPoint = np.full(value.scales, value.zero_point, np.int64)
        quantization.quantizedDimension = value.axis
        tensor.quantization = quantization
    subgraph.tensors.append(tensor)
    at = len(subgraph.tensors) - 1
    if value.block:
        blocks = Value((value.shape[0], value.shape[1] // value.block), "float16", is_constant=True)
        details = schema.BlockwiseQuantizationT()
        details.scales = _tensor(model, subgraph, blocks, f"{name}_scales")
        details.zeroPoints, details.blockSize = -1, value.block
        quantization.details, quantization.detailsType = (
            details,
            schema.QuantizationDetails.BlockwiseQuantization,
        )
        tensor.quantization = quantization
    return at


def _buffer(model: Any, data: bytes | None) -> int:
    if data is None:
        return 0
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def _options(case: Case) -> tuple[int, Any]:
    plain = case.operator.replace("_", "").lower()
    wanted = _OPTIONS.get(plain, f"{plain}options").lower()
    kinds = {name.lower(): (name, code) for name, code in vars(schema.BuiltinOptions).items()}
    if wanted not in kinds:
        return 0, None
    name, code = kinds[wanted]
    options = getattr(schema, f"{name}T")()
    for field_name in _ONES:
        if hasattr(options, field_name):
            setattr(options, field_name, 1)
    for field_name, value in case.options.items():
        setattr(options, field_name, value)
    return code, options
