"""Runs graphs on TFLite's NNAPI delegate and on the CPU, in a Python with tflite-runtime; prints JSON.

nnapi_guest.py pictures DELEGATE INPUTS.npz OUT.npz GRAPH [SAMPLE.npz]
nnapi_guest.py operators DELEGATE GRAPH.tflite ...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tflite_runtime.interpreter import Interpreter, OpResolverType, load_delegate

from rpi_runtime import samples
from rpi_runtime.backends.external import ExternalDelegate
from rpi_runtime.backends.select import open_graph


def pictures(library: str, inputs: str, out: str, graph: str, sample: str = "") -> dict[str, Any]:
    """Each signature for its input, through our run time with the delegate and by TFLite's reference kernels;
    and how close the delegate comes to what PyTorch made of the sample."""
    found, given = {}, np.load(inputs)
    plain = Interpreter(model_path=graph, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    opened = open_graph(Path(graph), threads=1, delegate=ExternalDelegate(Path(library)))
    for name in opened.signatures:
        (found[f"{name} reference"],) = plain.get_signature_runner(name)(images=given[name]).values()
        (found[f"{name} nnapi"],) = opened.runner(name).run({"images": given[name]}).values()
    np.savez(out, **found)
    told: dict[str, Any] = {
        "delegated": {
            name: [len(has.nodes), has.total_nodes, has.partitions] for name, has in opened.delegated.items()
        }
    }
    if sample:
        told["closeness"] = samples.closeness(opened, samples.load(Path(sample)), None)
    opened.close()
    return told


def operators(library: str, *graphs: str) -> dict[str, Any]:
    """Of each graph with one operator: whether the delegate has it, and the numbers that it and the CPU
    make."""
    return {Path(graph).stem: _operator(library, graph) for graph in graphs}


def _operator(library: str, graph: str) -> dict[str, Any]:
    results = {}
    for name, delegates in {"reference": [], "nnapi": [load_delegate(library)]}.items():
        kernels = OpResolverType.BUILTIN_REF
        interpreter = Interpreter(
            model_path=graph, experimental_delegates=delegates, experimental_op_resolver_type=kernels
        )
        interpreter.allocate_tensors()
        random = np.random.default_rng(0)
        for tensor in interpreter.get_input_details():
            numbers = random.uniform(0.1, 4, tensor["shape"])
            if tensor["dtype"] == np.int8:
                numbers = random.integers(-128, 128, tensor["shape"])
            interpreter.set_tensor(tensor["index"], numbers.astype(tensor["dtype"]))
        interpreter.invoke()
        (output,) = interpreter.get_output_details()
        results[name] = interpreter.get_tensor(output["index"]).ravel().tolist()
        taken = "DELEGATE" in {op["op_name"] for op in interpreter._get_ops_details()}
    return {**results, "taken": taken}


if __name__ == "__main__":
    print(json.dumps({"pictures": pictures, "operators": operators}[sys.argv[1]](*sys.argv[2:])))
