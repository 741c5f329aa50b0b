"""Runs a graph through LiteRT's CompiledModel: shared inputs are bound in place, packed weights are
mapped.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from rpi_runtime.backends.base import (
    Accelerator,
    Array,
    BackendChoice,
    Delegated,
    SharedInputs,
    check_inputs,
    shared_dtypes,
)
from rpi_runtime.backends.litert_package import gpu_library
from rpi_runtime.errors import BundleError, DelegateFailed, ResourceError
from rpi_runtime.kernel import drop_code
from rpi_runtime.manifest import Signature, Tensor
from rpi_runtime.native_logs import quiet, silent_exit

# What LiteRT asks of host memory that it is to use in place; anything else it silently copies.
_ALIGNMENT_BYTES = 64


class CompiledGraph:
    """A graph opened with CompiledModel, on the CPU or on `accelerator`.

    `cache_file` is where XNNPACK keeps its packed weights; None packs them into anonymous memory, once
    for every signature. The file must be absent or whole: see `weight_cache`. Raises `DelegateFailed` when
    the accelerator cannot have the graph.
    """

    weight_cache = "off"
    copies_shared_inputs = False

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        cache_file: Path | None,
        verbose: bool,
        choice: BackendChoice,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.choice = choice
        self._name = path.name
        self._verbose = verbose
        self._accelerator = accelerator
        self._runners: dict[tuple[str, BoundArrays | None], CompiledRunner] = {}
        with quiet(verbose, also_stdout=accelerator is not None):
            options = _options(accelerator, threads, cache_file)
            with _told(f"{path.name}: LiteRT {choice.version}", accelerator):
                self._model = _litert().CompiledModel.from_file(
                    str(path), environment=environment(), options=options
                )
                self.signatures = {
                    name: Signature(
                        name,
                        _tensors(self._model.get_input_tensor_details(name), names["inputs"]),
                        _tensors(self._model.get_output_tensor_details(name), names["outputs"]),
                    )
                    for name, names in self._model.get_signature_list().items()
                }

    @property
    def delegated(self) -> Mapping[str, Delegated]:
        return {}  # CompiledModel takes none

    def shared(self, shapes: Mapping[str, tuple[int, ...]]) -> BoundArrays:
        return BoundArrays(shapes, shared_dtypes(self.signatures))

    def runner(self, signature: str, shared: SharedInputs | None = None) -> CompiledRunner:
        if shared is not None and not isinstance(shared, BoundArrays):
            raise TypeError(f"these shared inputs belong to another backend: {type(shared).__name__}")
        key = (signature, shared)
        if key not in self._runners:
            with _told(f"{self._name}: LiteRT {self.choice.version}", self._accelerator):
                self._runners[key] = CompiledRunner(
                    self._model, self.signatures[signature], shared, self._verbose, self._accelerator
                )
        return self._runners[key]

    def forget(self, shared: SharedInputs) -> None:
        self._runners = {key: runner for key, runner in self._runners.items() if key[1] is not shared}

    def close(self) -> None:
        self._runners.clear()
        self._model.close()


class BoundArrays:
    """One aligned array per name, which every signature reads where it lies."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> None:
        self.shapes = dict(shapes)
        self._arrays = {name: _aligned_zeros(shape, dtypes[name]) for name, shape in shapes.items()}
        create = _litert().TensorBuffer.create_from_host_memory
        # Flat, because LiteRT makes one-dimensional buffers of host memory and refuses them for other ranks.
        self.buffers = {name: create(array.reshape(-1)) for name, array in self._arrays.items()}

    def write(self, name: str, index: Any, values: Array) -> None:
        self._arrays[name][index] = values

    def read(self, name: str) -> Array:
        return self._arrays[name].copy()

    def take(self, name: str) -> Array:
        del self.buffers[name]
        return self._arrays.pop(name)

    def detach(self) -> None:
        """The memory is the host's."""

    def address(self, name: str) -> int:
        """Where the array lies: the same for as long as this object lives."""
        return int(self._arrays[name].ctypes.data)


class CompiledRunner:
    """One signature with its own input and output buffers, made once."""

    def __init__(
        self,
        model: Any,
        signature: Signature,
        shared: BoundArrays | None,
        verbose: bool,
        accelerator: Accelerator | None,
    ) -> None:
        self.signature = signature
        self._accelerator = accelerator
        self._model = model
        self._bound = frozenset(shared.shapes) if shared else frozenset()
        self._shared = shared  # the native buffers point into its arrays
        self._inputs = {
            t.name: shared.buffers[t.name]
            if shared and t.name in self._bound
            else model.create_input_buffer_by_name(signature.name, t.name)
            for t in signature.inputs
        }
        self._outputs = {
            t.name: model.create_output_buffer_by_name(signature.name, t.name) for t in signature.outputs
        }
        self._verbose = verbose
        self._first = True

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(self.signature, self._bound, inputs)
        with _told(f"{self.signature.name}: LiteRT", self._accelerator):
            if self._first and not self._verbose:
                # The first buffer written makes the runtime's own environment, with all its lines.
                with quiet(also_stdout=self._accelerator is not None):
                    self._run(inputs)
                silent_exit()
            else:
                self._run(inputs)
            self._first = False
            return {
                t.name: self._outputs[t.name].read(math.prod(t.shape), np.dtype(t.dtype)).reshape(t.shape)
                for t in self.signature.outputs
            }

    def _run(self, inputs: Mapping[str, Array]) -> None:
        for name, value in inputs.items():
            self._inputs[name].write(value)
        self._model.run_by_name(self.signature.name, self._inputs, self._outputs)


def _options(accelerator: Accelerator | None, threads: int, cache_file: Path | None) -> Any:
    litert = _litert()
    cache = str(cache_file) if cache_file else ""
    cpu = litert.CpuOptions(num_threads=threads, xnnpack_weight_cache_path=cache)
    kinds = litert.HardwareAccelerator
    if accelerator is None:
        return litert.Options(kinds.CPU, cpu_options=cpu)
    kind = kinds.GPU if accelerator.name == "gpu" else kinds.NPU
    if accelerator.name == "npu":
        _load_openvino()
    gpu = litert.GpuOptions(enforce_f32=accelerator.float32) if accelerator.name == "gpu" else None
    return litert.Options(kind if accelerator.alone else kind | kinds.CPU, cpu_options=cpu, gpu_options=gpu)


@cache
def _load_openvino() -> None:
    """Where it is installed: its dispatch library is linked with libraries that the loader does not find."""
    spec = importlib.util.find_spec("openvino")
    if spec is not None and spec.origin is not None:
        for name in ("libopenvino", "libopenvino_tensorflow_lite_frontend"):
            for library in (Path(spec.origin).parent / "libs").glob(f"{name}.so.*"):
                with suppress(OSError):  # then LiteRT says what it lacks
                    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


@contextmanager
def _told(who: str, accelerator: Accelerator | None) -> Iterator[None]:
    """LiteRT's errors in our words: it says RuntimeError, whatever went wrong."""
    try:
        yield
    except RuntimeError as error:
        said = [re.sub(r"^ERROR: \[[^]]*\] ?", "", line.strip(" └")) for line in str(error).splitlines()]
        reason = next(filter(None, reversed(said)), "")  # the rest are places in its source
        if accelerator is not None:
            why = f" ({reason})" if reason else ""
            raise DelegateFailed(
                f"{who} cannot run it on the {accelerator.name}{why}", "Run it on the CPU."
            ) from error
        if "llocat" in reason:  # "Failed to allocate tensors", "... to allocate aligned memory"
            raise ResourceError(
                f"{who} ran out of memory ({reason})",
                "Close other programs, raise the limits of this process (ulimit -a), or plan for what there "
                "is: --memory auto.",
            ) from error
        raise BundleError(
            f"{who} cannot run it ({reason})",
            "Run `toolkit verify` on the bundle; convert it again if it is whole.",
        ) from error


def _aligned_zeros(shape: tuple[int, ...], dtype: str) -> Array:
    """Zeroed memory that LiteRT uses in place; untouched pages cost nothing.

    64 bytes more lie behind it, because XNNPACK's kernels may read a vector past the end (XNN_EXTRA_BYTES).
    """
    count = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(count + 2 * _ALIGNMENT_BYTES, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT_BYTES
    return raw[start : start + count].view(dtype).reshape(shape)


def _tensors(details: Mapping[str, Mapping[str, Any]], names: list[str]) -> tuple[Tensor, ...]:
    return tuple(Tensor(n, tuple(details[n]["shape"]), str(details[n]["dtype"])) for n in names)


@cache
def _litert() -> Any:
    """The names used here, imported when the first graph is opened: the import loads 50 MB of native code."""
    from ai_edge_litert import compiled_model as m

    options = ("Options", "CpuOptions", "GpuOptions", "HardwareAccelerator")
    names = ("CompiledModel", "Environment", "TensorBuffer", *options)
    return SimpleNamespace(**{name: getattr(m, name) for name in names})


@cache
def environment() -> Any:
    """One LiteRT environment for the process: making one loads the accelerator libraries again.

    It is never destroyed: that would log, in the middle of Python's own end.
    """
    made = _litert().Environment.create()
    # Loading it touches 4 to 11 MB, of which the CPU needs nothing.
    drop_code(gpu_library())
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made.capsule))
    return made
