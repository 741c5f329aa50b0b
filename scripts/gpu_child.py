"""The child process of `gpu_accelerator`: it opens a graph on the GPU, watched, or runs it.

    gpu_child.py watch GRAPH [compile]
    gpu_child.py run GRAPH INPUTS.npz OUTPUTS.npz cpu | gpu | gpu-half

The accelerator decides in two calls into TFLite: it asks how the operators it accepts would be partitioned,
then replaces those of the largest part. `watch` puts itself between, through the table of functions that
`libLiteRtWebGpuAccelerator.so` exports (layouts as of ai-edge-litert 2.3.0), and prints what it saw as JSON.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MARK = "=== subgraph\n"  # in the log, before each subgraph
CPU, GPU, GPU_HALF = "cpu", "gpu", "gpu-half"

_P = ctypes.c_void_p


class _Accelerator(ctypes.Structure):
    """LiteRtAcceleratorDefV1, as far as `create_delegate`."""

    _fields_ = (
        ("version", ctypes.c_int),
        *((n, _P) for n in ("get_name", "get_version", "get_hardware_support", "is_responsible")),
        ("create_delegate", _P),
    )


class _Wrapper(ctypes.Structure):
    """LiteRtDelegateWrapper."""

    _fields_ = (("destroy", _P), ("delegate", _P))


class _Delegate(ctypes.Structure):
    """TfLiteDelegate, as far as `prepare`."""

    _fields_ = (("data", _P), ("prepare", _P))


class _Context(ctypes.Structure):
    """TfLiteContext, as far as `preview_partitions`."""

    _fields_ = (
        ("tensors_size", ctypes.c_size_t),
        *((n, _P) for n in ("get_execution_plan", "tensors", "impl", "resize", "report", "add", "get_node")),
        ("replace_nodes", _P),
        ("recommended_threads", ctypes.c_int),
        *((n, _P) for n in ("get_external", "set_external")),
        ("allow_half", ctypes.c_bool),
        *((n, _P) for n in ("profiler", "persistent", "for_eval", "request_scratch", "get_scratch")),
        *((n, _P) for n in ("resize_explicit", "preview_partitions")),
    )


class _Registration(ctypes.Structure):
    """TfLiteRegistration: only handed on, by value."""

    _fields_ = (("words", ctypes.c_uint64 * 12),)


_CREATE = ctypes.CFUNCTYPE(ctypes.c_int, _P, _P, _P, _P, ctypes.POINTER(ctypes.POINTER(_Wrapper)))
_PREPARE = ctypes.CFUNCTYPE(ctypes.c_int, _P, _P)
_PLAN = ctypes.CFUNCTYPE(ctypes.c_int, _P, _P)
_PREVIEW = ctypes.CFUNCTYPE(ctypes.c_int, _P, _P, _P, ctypes.POINTER(ctypes.c_int))
_REPLACE = ctypes.CFUNCTYPE(ctypes.c_int, _P, _Registration, _P, _P)


def _numbers(address: int) -> list[int]:
    """A TfLiteIntArray."""
    count = ctypes.c_int.from_address(address).value
    return list((ctypes.c_int * count).from_address(address + ctypes.sizeof(ctypes.c_int)))


class _Watch:
    """Puts itself between the accelerator and TFLite. Without `compiled` no kernel is built."""

    def __init__(self, library: Path, compiled: bool) -> None:
        self.found: list[dict[str, Any]] = []
        self._compiled = compiled
        self._kept: list[Any] = []  # what native code points to
        self._library = ctypes.CDLL(str(library))
        table = _Accelerator.in_dll(self._library, "LiteRtAcceleratorImpl")
        _make_writable(ctypes.addressof(table), ctypes.sizeof(table))
        self._create = _CREATE(table.create_delegate)
        table.create_delegate = self._native(_CREATE, self._created)

    def _native(self, kind: Any, function: Callable[..., int]) -> int | None:
        made = kind(function)
        self._kept.append(made)
        return ctypes.cast(made, _P).value

    def _created(self, runtime: int, environment: int, accelerator: int, options: int, wrapper: Any) -> int:
        status: int = self._create(runtime, environment, accelerator, options, wrapper)
        if status == 0:
            delegate = _Delegate.from_address(wrapper[0].contents.delegate)
            real = _PREPARE(delegate.prepare)
            delegate.prepare = self._native(_PREPARE, lambda c, d: self._prepared(real, c, d))
        return status

    def _prepared(self, real: Any, address: int, delegate: int) -> int:
        context = _Context.from_address(address)
        plan = _P()
        _PLAN(context.get_execution_plan)(address, ctypes.addressof(plan))
        assert plan.value is not None
        seen = {"operators": len(_numbers(plan.value)), "accepted": [], "taken": [], "partitions": 0}
        self.found.append(seen)
        sys.stderr.write(MARK)
        sys.stderr.flush()
        preview, replace = _PREVIEW(context.preview_partitions), _REPLACE(context.replace_nodes)

        def previewed(context: int, nodes: int, partitions: int, count: Any) -> int:
            status: int = preview(context, nodes, partitions, count)
            seen.update(accepted=_numbers(nodes), partitions=count[0])
            return status

        def replaced(context: int, registration: _Registration, nodes: int, delegate: int) -> int:
            seen["taken"] = _numbers(nodes)
            if not self._compiled:
                registration.words[:3] = (0, 0, 0)  # init, free, prepare: the operators go, no kernel comes
            status: int = replace(context, registration, nodes, delegate)
            return status

        context.preview_partitions = self._native(_PREVIEW, previewed)
        context.replace_nodes = self._native(_REPLACE, replaced)
        status: int = real(address, delegate)
        return status


def _make_writable(address: int, size: int) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    start = address // page * page
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    if protect(_P(start), ctypes.c_size_t(address + size - start), 3):  # PROT_READ | PROT_WRITE
        raise OSError(ctypes.get_errno(), "mprotect")


def watch(graph: Path, compiled: bool) -> int:
    import ai_edge_litert

    library = Path(ai_edge_litert.__file__).parent / "libLiteRtWebGpuAccelerator.so"
    watch = _Watch(library, compiled)
    try:
        model = _opened(graph, GPU)
    except RuntimeError as error:
        print(f"ERROR: {str(error).splitlines()[-1]}", file=sys.stderr)
        return 1
    del model
    print(json.dumps(watch.found))
    return 0


def run(graph: Path, inputs: Path, outputs: Path, where: str) -> int:
    """Arrays are called "signature:name". Prints how long it took as JSON."""
    given = np.load(inputs)
    start = time.perf_counter()
    model = _opened(graph, where)
    opened = time.perf_counter()
    made = {}
    for signature, names in model.get_signature_list().items():
        buffers = {n: model.create_input_buffer_by_name(signature, n) for n in names["inputs"]}
        for name, buffer in buffers.items():
            buffer.write(np.ascontiguousarray(given[f"{signature}:{name}"]))
        results = {n: model.create_output_buffer_by_name(signature, n) for n in names["outputs"]}
        model.run_by_name(signature, buffers, results)
        details = model.get_output_tensor_details(signature)
        for name, buffer in results.items():
            shape = tuple(details[name]["shape"])
            values = buffer.read(math.prod(shape), np.dtype(str(details[name]["dtype"])))
            made[f"{signature}:{name}"] = values.reshape(shape)
    ran = time.perf_counter()
    np.savez(outputs, **made)
    print(json.dumps({"open_s": opened - start, "run_s": ran - opened}))
    return 0


def _opened(graph: Path, where: str) -> Any:
    from ai_edge_litert.compiled_model import CompiledModel, GpuOptions, HardwareAccelerator, Options

    on_cpu = HardwareAccelerator.CPU
    if where == CPU:
        return CompiledModel.from_file(str(graph), options=Options(on_cpu))
    options = GpuOptions(enforce_f32=where == GPU)
    return CompiledModel.from_file(
        str(graph), options=Options(HardwareAccelerator.GPU | on_cpu, gpu_options=options)
    )


def main(arguments: list[str]) -> int:
    task, graph, *more = arguments
    if task == "watch":
        return watch(Path(graph), "compile" in more)
    inputs, outputs, where = more
    return run(Path(graph), Path(inputs), Path(outputs), where)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # what is left would call into functions that Python no longer has
