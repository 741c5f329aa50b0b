"""What XNNPACK takes of a graph: asked of the runtime itself, which has it built in."""

from __future__ import annotations

import os

from rpi_runtime import tflite_file
from rpi_runtime.backends.execution_plan import ExecutionPlans, places
from rpi_runtime.backends.interpreter import interpreter_class
from rpi_runtime.backends.select import choose
from rpi_runtime.errors import BundleError, ResourceError
from rpi_runtime.native_logs import quiet

_PACKAGE = "ai-edge-litert"  # tflite-runtime applies XNNPACK to the first subgraph alone


def taken(path: str | os.PathLike[str]) -> tuple[str, list[frozenset[int]]]:
    """The runtime that was asked, and of each subgraph the numbers of the operators that XNNPACK runs; the
    runtime's own kernels run the others. Weights are packed, as at any start.

    Raises `ResourceError` where ai-edge-litert is not installed, `BundleError` for a graph that it does not
    open.
    """
    choice = choose("interpreter")
    if choice.package != _PACKAGE:
        raise ResourceError(
            f"{choice.package} cannot be asked what XNNPACK takes", f"Install {_PACKAGE} on a 64-bit system."
        )
    totals = [len(subgraph.operators) for subgraph in tflite_file.read(path).subgraphs]
    with quiet():
        try:
            interpreter = interpreter_class(_PACKAGE)(model_path=os.fspath(path), num_threads=1)
            native = interpreter._interpreter
            plans = ExecutionPlans(native)
            before = plans.read()
            signatures = interpreter.get_signature_list()
            for name in signatures:
                native.AllocateTensors(native.GetSubgraphIndexFromSignature(name))
            if not signatures:
                native.AllocateTensors()
        except (RuntimeError, ValueError) as error:
            raise BundleError(
                f"{os.fspath(path)}: {_PACKAGE} {choice.version} cannot open it ({error})",
                "Has it operators of its own?",
            ) from None
        after = plans.read()
    found = [frozenset[int]() for _ in totals]
    for number, place in places(before, totals).items():
        found[number] = frozenset(before[place]) - frozenset(after[place])
    return f"{_PACKAGE} {choice.version}", found
