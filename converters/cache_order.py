"""Has a decoder turn its KV cache into float32 one layer after another.

Operators that a delegate does not take, and that depend on nothing but inputs, all run before the first that
it takes: so TFLite divides a graph. The casts of an 8-bit cache are of this kind, as is what gives it its
shape, which copies it. All layers would be there at once, in each signature (0.6 B parameters, 1,024 tokens:
4 x 235 MB of float32 and 4 x 59 MB of int8). Control edges in the file's metadata say that a layer's wait for
the attention before. TFLite keeps to them when it divides the graph, and its arena then has room for one
layer.

The format is that of `SerializeModelControlDependencies` in TensorFlow's
lite/experimental/remat/metadata_util.cc.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from rpi_runtime import tflite_file

METADATA = tflite_file.CONTROL_EDGES
_STALE = "stale_control_dependencies"  # as long, and unknown to the runtime
_VERSION = 1
# ai-edge-quantizer puts larger buffers behind the graph, and the runtime looks for metadata only inside it.
_MOST_BYTES = 1023
_SMALL = {"int8": schema.TensorType.INT8, "float16": schema.TensorType.FLOAT16}

# Inputs and outputs of an operator, and whether it is a cast of what is smaller than float32.
_Operator = tuple[Sequence[int], Sequence[int], bool]
Edges = list[tuple[int, int]]  # (operator, one that runs later)


def order_casts(model: Any) -> None:
    """Puts the edges into `model` (schema.ModelT), in place of those that it has."""
    edges = _edges([_operators_of(model, graph) for graph in model.subgraphs])
    model.metadata = [entry for entry in model.metadata or [] if entry.name != METADATA.encode()]
    if any(edges):
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = list(serialised(edges))
        model.buffers.append(buffer)
        entry.name, entry.buffer = METADATA.encode(), len(model.buffers) - 1
        model.metadata.append(entry)


def drop_stale_order(path: Path, made_from: Path) -> None:
    """Has the runtime ignore the edges of the graph at `path`, in place, where they are those of other
    operators than it has: of the graph that it was made from."""
    before = tflite_file.read(made_from)
    if METADATA not in before.metadata or _edges_of_file(tflite_file.read(path)) == _edges_of_file(before):
        return
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        at = data.find(METADATA.encode() + b"\0")
        if at >= 0:
            data[at : at + len(METADATA)] = _STALE.encode()


def _edges_of_file(file: tflite_file.TfliteFile) -> list[Edges]:
    return _edges(
        [
            [
                (op.inputs, op.outputs, op.name == "CAST" and graph.tensors[op.inputs[0]].dtype in _SMALL)
                for op in graph.operators
            ]
            for graph in file.subgraphs
        ]
    )


def _operators_of(model: Any, graph: Any) -> list[_Operator]:
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    found: list[_Operator] = []
    for op in graph.operators:
        is_cast = codes[op.opcodeIndex] == schema.BuiltinOperator.CAST
        found.append((op.inputs, op.outputs, is_cast and graph.tensors[op.inputs[0]].type in _SMALL.values()))
    return found


def _edges(graphs: Sequence[Sequence[_Operator]]) -> list[Edges]:
    """One layer at a time, or as few as the size of the metadata allows."""
    for layers in count(1):
        edges = [_edges_of_graph(operators, layers) for operators in graphs]
        if len(serialised(edges)) <= _MOST_BYTES:
            break
    return edges


def _edges_of_graph(operators: Sequence[_Operator], layers: int) -> Edges:
    """The casts of some layers' keys and values wait for the last that reads those before, from the operator
    that makes their input on."""
    casts = [index for index, (_, _, is_cast) in enumerate(operators) if is_cast]
    maker = {output: index for index, (_, outputs, _) in enumerate(operators) for output in outputs}
    edges: Edges = []
    for before, group in pairwise(casts[i : i + 2 * layers] for i in range(0, len(casts), 2 * layers)):
        made = {output for cast in before for output in operators[cast][1]}
        last = max(index for index, (inputs, _, _) in enumerate(operators) if made & set(inputs))
        edges += [(last, maker.get(operators[cast][0][0], cast)) for cast in group]
    return edges


def serialised(edges: Iterable[Edges]) -> bytes:
    """`edges` of each subgraph as the runtime parses them."""
    graphs = list(edges)
    out = _varint(_VERSION) + _varint(len(graphs))
    for graph in graphs:
        out += _varint(len(graph)) + b"".join(_varint(2 * a) + _varint(2 * b) for a, b in graph)
    return out


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])
