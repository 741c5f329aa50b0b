"""Writes a lowered module as a .tflite file: a small flatbuffer, and the weights behind it, one at a time.

The converter's own writer builds the file in memory, twice while its buffer grows: with the module's weights
that is three times their size, until at 2 GB it begins to do what is done here for every file. The large
constants leave the module first, and an operator without inputs stands in for each; the flatbuffer is then
some kilobytes. Its `Buffer` tables say by offset and size where in the file each weight lies
(`Buffer.offset` of the TFLite schema).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from litert_converter import converter_api_ext
from litert_converter.mlir import ir
from torch import Tensor

from converters.cache_order import order_casts

_STAND_IN = "a weight behind the flatbuffer"
_ALIGNMENT_BYTES = 64  # kernels that read a weight where it is mapped want at least 16


@dataclass
class Constants:
    """Where a module's constants come from, as far as it is known."""

    tensors: dict[ir.Attribute, Tensor] = field(default_factory=dict)
    release: Callable[[], None] = lambda: None  # gives back the memory of those that were read

    def clear(self) -> None:
        vars(self).update(vars(Constants()))


def write_graph(module: ir.Operation, constants: Constants, path: Path) -> None:
    """Writes `module`, all in TFLite operators, to `path`; it loses its large constants.

    Known `constants` are written from where they lie, the others are copied.
    """
    weights = _take_out(module)
    content = converter_api_ext.export_flatbuffer_to_bytes(module)
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    behind: dict[int, Any] = _take_small_ones(model)
    behind.update(zip(_put_buffers(model, len(weights)), weights, strict=True))
    order_casts(model)
    head = flatbuffer_utils.convert_object_to_bytearray(model)
    tables = schema.Model.GetRootAs(head)
    with path.open("wb") as file:
        file.write(head)
        for buffer, value in behind.items():
            file.write(bytes(-file.tell() % _ALIGNMENT_BYTES))
            values = _values(value, constants.tensors) if isinstance(value, ir.Attribute) else value
            flatbuffer_utils.update_packed_buffer(tables.Buffers(buffer), file.tell(), values.nbytes)
            file.write(values.reshape(-1).view("u1").data)
            constants.release()
        file.seek(0)
        file.write(head)


def _values(constant: ir.Attribute, tensors: Mapping[ir.Attribute, Tensor]) -> np.ndarray:
    tensor = tensors.get(constant)
    if tensor is not None and tensor.is_contiguous():
        return tensor.numpy()
    copied: np.ndarray = converter_api_ext.dense_resource_elements_attr_to_numpy(constant)
    return copied


def _take_out(module: ir.Operation) -> list[ir.Attribute]:
    """The distinct large constants; stand-ins with their numbers take their places in `module`."""
    constants = []

    def look(operation: ir.Operation) -> ir.WalkResult:
        if "value" in operation.attributes and _is_large(operation.attributes["value"]):
            constants.append(operation)
        return ir.WalkResult.ADVANCE

    module.walk(look)
    numbers: dict[ir.Attribute, int] = {}
    for constant in constants:
        number = numbers.setdefault(constant.attributes["value"], len(numbers))
        with module.context, constant.location, ir.InsertionPoint(constant):
            stand_in = ir.Operation.create(
                "tfl.custom",
                results=[constant.results[0].type],
                attributes={
                    "custom_code": ir.StringAttr.get(_STAND_IN),
                    "custom_option": ir.Attribute.parse(f'#tfl<const_bytes : "0x{number:08X}">'),
                },
            )
        constant.results[0].replace_all_uses_with(stand_in.results[0])
        constant.erase()
    return list(numbers)


def _is_large(value: ir.Attribute) -> bool:
    # The bindings have no class to ask for; small constants do, and would print all their numbers.
    return not isinstance(value, ir.DenseElementsAttr) and str(value).startswith("dense_resource<")


def _take_small_ones(model: Any) -> dict[int, np.ndarray]:
    """The constants that came with `model` (schema.ModelT), by buffer: Python's flatbuffers would not align
    them."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    taken = {}
    for index in sorted(used):
        buffer = model.buffers[index]
        if buffer.data is not None and len(buffer.data):
            taken[index] = np.frombuffer(buffer.data, np.uint8)
            buffer.data = None
            buffer.offset = buffer.size = 1  # room for the real ones
    return taken


def _put_buffers(model: Any, count: int) -> range:
    """Has the stand-ins in `model` (schema.ModelT) replaced by references to new buffers; their indices."""
    code = next((i for i, c in enumerate(model.operatorCodes) if c.customCode == _STAND_IN.encode()), None)
    buffers = range(len(model.buffers), len(model.buffers) + count)
    for _ in buffers:
        buffer = schema.BufferT()
        buffer.offset = buffer.size = 1  # room for the real ones
        model.buffers.append(buffer)
    if code is None:
        return buffers
    for graph in model.subgraphs:
        for operator in graph.operators:
            if operator.opcodeIndex == code:
                number = int.from_bytes(bytes(operator.customOptions), "big")
                graph.tensors[operator.outputs[0]].buffer = buffers[number]
        graph.operators = [o for o in graph.operators if o.opcodeIndex != code]
        for operator in graph.operators:
            operator.opcodeIndex -= operator.opcodeIndex > code
    del model.operatorCodes[code]
    return buffers
