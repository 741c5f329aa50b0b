"""Graphs that TFLite 2.14 loads without a word and computes wrongly.

Its FULLY_CONNECTED for float32 activations and integer weights knows one scale per tensor (int8) or per row
(int4). Weights with other scales are multiplied by 0: every answer of a dynamic int8 or block-wise int4 graph
is nothing but zeros. Measured with tflite-runtime 2.14.0; float16, int4 per channel and static int8 are
right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rpi_runtime import tflite_file

LAST_OLD = (2, 14)

# (weights, number of scales as 2.14 reads them) that it multiplies correctly; it reads no scales of blocks.
_RIGHT = {"int8": lambda scales: scales == 1, "int4": lambda scales: scales >= 1}


def has_old_kernels(version: str) -> bool:
    """Whether this version of tflite-runtime or tensorflow has these kernels."""
    numbers = version.split(".")[:2]
    return all(n.isdigit() for n in numbers) and tuple(map(int, numbers)) <= LAST_OLD


def misread_weights(path: Path, interpreter: Any) -> str:
    """What this Interpreter of 2.14 would multiply wrongly in the graph at `path`, readable; "" for nothing.

    Looks at the first signature's subgraph: the others have the same weights.
    """
    subgraph = tflite_file.read(path).subgraphs[0]
    for operator in subgraph.operators:
        if operator.name != "FULLY_CONNECTED" or len(operator.inputs) < 2:
            continue
        activations, weights = (subgraph.tensors[i] for i in operator.inputs[:2])
        if activations.dtype != "float32" or weights.dtype not in _RIGHT:
            continue
        details = interpreter._get_tensor_details(operator.inputs[1], 0)
        scales = len(details["quantization_parameters"]["scales"])
        if not _RIGHT[weights.dtype](scales):
            kind = "in blocks" if scales == 0 else f"with {scales} scales"
            return f"{weights.dtype} weights {kind}"
    return ""
