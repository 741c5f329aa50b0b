"""Graphs that older TFLite kernels load without a word and compute wrongly.

FULLY_CONNECTED with float32 activations and integer weights: int8 weights with a scale per channel come out
as zeros up to 2.15, int4 weights with a scale per block as zeros up to 2.15 and as noise up to 2.19.
Measured with tflite-runtime 2.14.0 and tensorflow 2.15.1, 2.16.2, 2.17.1, 2.18.1, 2.19.1 and 2.21.0.
float16, int4 per channel and static int8 are right in all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rpi_runtime import tflite_file

# The first release of TFLite that computes them rightly.
_CHANNELS_SINCE = (2, 16)
_BLOCKS_SINCE = (2, 21)


def misread_weights(path: Path, interpreter: Any, version: str) -> str:
    """What an Interpreter of TFLite `version` would multiply wrongly in the graph at `path`, readable; "" for
    nothing.

    Looks at the first signature's subgraph: the others have the same weights.
    """
    numbers = version.split(".")[:2]
    release = tuple(int(n) for n in numbers if n.isdigit())
    if len(release) < 2 or release >= max(_CHANNELS_SINCE, _BLOCKS_SINCE):
        return ""
    subgraph = tflite_file.read(path).subgraphs[0]
    for operator in subgraph.operators:
        if operator.name != "FULLY_CONNECTED" or len(operator.inputs) < 2:
            continue
        activations, weights = (subgraph.tensors[i] for i in operator.inputs[:2])
        if activations.dtype != "float32":
            continue
        # These releases do not know scales of blocks, and report none.
        scales = len(
            interpreter._get_tensor_details(operator.inputs[1], 0)["quantization_parameters"]["scales"]
        )
        if weights.dtype == "int4" and scales == 0 and release < _BLOCKS_SINCE:
            return "int4 weights in blocks"
        if weights.dtype == "int8" and scales > 1 and release < _CHANNELS_SINCE:
            return f"int8 weights with {scales} scales"
    return ""
