"""Graphs of a few operators, written with TFLite's own schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from rpi_runtime.backends.base import Array


@dataclass(frozen=True)
class Op:
    name: str  # "ADD"; one that the schema does not have becomes a custom operator
    inputs: tuple[str, ...]
    output: str
    activation: str = "NONE"  # of ADD and MUL


@dataclass(frozen=True)
class Small:
    """One signature with float32 tensors; the last operator's output is its output."""

    signature: str
    shapes: Mapping[str, tuple[int, ...]]  # of its inputs and of what the operators make
    operators: tuple[Op, ...]
    inputs: tuple[str, ...]
    constants: Mapping[str, Array] = field(default_factory=dict)


def write(path: Path, signatures: Sequence[Small]) -> Path:
    model = schema.ModelT()
    model.version = 3
    model.buffers, model.operatorCodes = [schema.BufferT()], []
    model.subgraphs, model.signatureDefs = [], []
    for number, small in enumerate(signatures):
        subgraph = schema.SubGraphT()
        subgraph.name = small.signature
        tensors = {**small.shapes, **{name: value.shape for name, value in small.constants.items()}}
        index = {name: place for place, name in enumerate(tensors)}
        subgraph.tensors = [_tensor(model, n, shape, small.constants.get(n)) for n, shape in tensors.items()]
        subgraph.operators = [_operator(model, op, index) for op in small.operators]
        subgraph.inputs = [index[name] for name in small.inputs]
        output = small.operators[-1].output
        subgraph.outputs = [index[output]]
        model.subgraphs.append(subgraph)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = small.signature, number
        signature.inputs = [_named(name, index[name]) for name in small.inputs]
        signature.outputs = [_named(output, index[output])]
        model.signatureDefs.append(signature)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _tensor(model: Any, name: str, shape: tuple[int, ...], constant: Array | None) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), schema.TensorType.FLOAT32, 0
    if constant is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(constant.astype(np.float32).tobytes(), np.uint8)
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1
    return tensor


def _operator(model: Any, op: Op, index: Mapping[str, int]) -> Any:
    code = schema.OperatorCodeT()
    code.version = 1
    code.builtinCode = getattr(schema.BuiltinOperator, op.name, schema.BuiltinOperator.CUSTOM)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    if code.builtinCode == schema.BuiltinOperator.CUSTOM:
        code.customCode = op.name
    model.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(model.operatorCodes) - 1
    operator.inputs, operator.outputs = [index[name] for name in op.inputs], [index[op.output]]
    if op.name in ("ADD", "MUL"):
        options = f"{op.name.capitalize()}Options"
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
        operator.builtinOptions = getattr(schema, f"{options}T")()
        operator.builtinOptions.fusedActivationFunction = getattr(
            schema.ActivationFunctionType, op.activation
        )
    return operator


def _named(name: str, index: int) -> Any:
    named = schema.TensorMapT()
    named.name, named.tensorIndex = name, index
    return named
