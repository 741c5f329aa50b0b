"""Runs a graph through the TFLite Interpreter of ai-edge-litert, tflite-runtime or tensorflow.

It runs where ai-edge-litert cannot be had, at a price: no weight cache, so each signature that is used packs
the weights again, and each has input tensors of its own, so a shared input exists once per signature in use.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rpi_runtime.backends.base import (
    Array,
    BackendChoice,
    Delegated,
    SharedInputs,
    check_inputs,
    shared_dtypes,
)
from rpi_runtime.backends.old_kernels import misread_weights
from rpi_runtime.errors import BundleError, DelegateFailed
from rpi_runtime.manifest import Signature, Tensor
from rpi_runtime.native_logs import quiet

if TYPE_CHECKING:
    from rpi_runtime.backends.delegation import Delegation
    from rpi_runtime.backends.external import ExternalDelegate


class InterpreterGraph:
    """A graph opened with the Interpreter of `choice.package`. Tensors are allocated when a runner is
    made.

    `delegate` takes the nodes that it can compute, before the runtime's own XNNPACK is asked. It should have
    passed `external.check`. Raises `DelegateFailed` when it cannot prepare the graph.
    """

    weight_cache = "off: the Interpreter has none"
    copies_shared_inputs = True

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        verbose: bool,
        choice: BackendChoice,
        delegate: ExternalDelegate | None = None,
    ) -> None:
        self.choice = choice
        self._delegation: Delegation | None = None
        self._verbose = verbose
        self._runners: dict[tuple[str, MirroredInputs | None], InterpreterRunner] = {}
        with quiet(verbose):
            made_by = interpreter_class(choice.package)
            try:
                with warnings.catch_warnings():
                    # tensorflow announces that its copy of the Interpreter will move to ai-edge-litert.
                    warnings.simplefilter("ignore")
                    self._interpreter = made_by(model_path=str(path), num_threads=threads)
            except (ValueError, RuntimeError) as error:
                raise BundleError(
                    f"{path.name}: {choice.package} {choice.version} cannot load it ({error})",
                    "Run `toolkit verify` on the bundle; if it is whole, this runtime is too old for it.",
                ) from error
            self._refuse_wrong_results(path)
            if delegate is not None:
                from rpi_runtime.backends.delegation import Delegation

                self._delegation = Delegation(delegate, path)
                try:
                    self._delegation.apply(self._interpreter._interpreter)
                except DelegateFailed:
                    self.close()
                    raise
            self._indices: dict[str, dict[str, int]] = {}
            self.signatures = {name: self._describe(name) for name in self._interpreter.get_signature_list()}

    @property
    def delegated(self) -> Mapping[str, Delegated]:
        if self._delegation is None:
            return {}
        subgraph = self._interpreter._interpreter.GetSubgraphIndexFromSignature
        return {name: self._delegation.of(subgraph(name)) for name in self.signatures}

    def shared(self, shapes: Mapping[str, tuple[int, ...]]) -> MirroredInputs:
        return MirroredInputs(shapes, shared_dtypes(self.signatures))

    def runner(self, signature: str, shared: SharedInputs | None = None) -> InterpreterRunner:
        if shared is not None and not isinstance(shared, MirroredInputs):
            raise TypeError(f"these shared inputs belong to another backend: {type(shared).__name__}")
        key = (signature, shared)
        if key not in self._runners:
            self._runners[key] = self._new_runner(signature, shared)
        return self._runners[key]

    def forget(self, shared: SharedInputs) -> None:
        self._runners = {key: runner for key, runner in self._runners.items() if key[1] is not shared}

    def close(self) -> None:
        if self._interpreter is None:
            return
        for (_, shared), runner in self._runners.items():
            runner.end()
            if shared is not None:
                shared.end()
        self._runners.clear()
        native = weakref.ref(self._interpreter._interpreter)
        self._interpreter = None
        # Whoever still holds the native interpreter has it end later, and it must not outlive its delegate.
        if self._delegation is not None and native() is None:
            self._delegation.end()
        self._delegation = None

    def _new_runner(self, signature: str, shared: MirroredInputs | None) -> InterpreterRunner:
        # The calls below carry a subgraph's number, which the public Interpreter methods of 2.14 do not take;
        # its own SignatureRunner would demand every input again, the whole KV cache included, at each run.
        native = self._interpreter._interpreter
        subgraph = native.GetSubgraphIndexFromSignature(signature)
        with quiet(self._verbose):
            try:
                native.AllocateTensors(subgraph)
            except RuntimeError as error:
                if self._delegation is not None:
                    del native  # the traceback would keep it
                    raise self._delegation.failed(f"cannot prepare {signature!r}", error) from error
                raise BundleError(
                    f"{self.choice.package} {self.choice.version} cannot run {signature!r} ({error})",
                    "Install ai-edge-litert, which knows newer graphs, or convert with another recipe.",
                ) from error
        if self._delegation is not None and not self._delegation.stayed(subgraph):
            del native
            raise self._delegation.was_dropped()
        if shared is not None:
            shared.attach(native, subgraph, self._indices[signature])
        return InterpreterRunner(
            native, subgraph, self.signatures[signature], self._indices[signature], shared, self._delegation
        )

    def _refuse_wrong_results(self, path: Path) -> None:
        if self.choice.package == "ai-edge-litert":  # which counts its versions otherwise
            return
        misread = misread_weights(path, self._interpreter, self.choice.version)
        if misread:
            raise BundleError(
                f"{path.name}: {self.choice.package} {self.choice.version} miscomputes its {misread}",
                "Install ai-edge-litert (64-bit systems), or convert with a recipe that this runtime gets "
                "right: fp16; for the decoder int4-channel; for vision and vrc w8a8.",
            )

    def _describe(self, name: str) -> Signature:
        runner = self._interpreter.get_signature_runner(name)
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        self._indices[name] = {n: d["index"] for n, d in inputs.items()}
        # An output may have an input's name, so the two are kept apart.
        self._indices[name].update({_out(n): d["index"] for n, d in outputs.items()})
        return Signature(name, _tensors(inputs), _tensors(outputs))


class MirroredInputs:
    """A shared input is written into the input tensor of every signature in use; only slices are ever copied.

    A signature that joins later receives what the first one holds, once. The tensors are the interpreter's
    own, so there can be one of these per graph at a time.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]) -> None:
        self.shapes = dict(shapes)
        self._dtypes = dtypes
        self._tensors: dict[str, list[tuple[Any, int, int]]] = {name: [] for name in shapes}
        self._kept: dict[str, Array] = {}  # while no interpreter has them

    def attach(self, native: Any, subgraph: int, indices: Mapping[str, int]) -> None:
        for name, places in self._tensors.items():
            place = (native, indices[name], subgraph)
            if place in places:
                continue
            target = _view(*place)
            if places:
                target[...] = _view(*places[0])
            else:
                target[...] = self._kept.pop(name).reshape(-1) if name in self._kept else 0
            places.append(place)

    def take(self, name: str) -> Array:
        array = self.read(name)
        self._tensors[name].clear()
        self._kept.pop(name, None)
        return array

    def detach(self) -> None:
        for name, places in self._tensors.items():
            if places:
                self._kept[name] = self.read(name)
                places.clear()

    def end(self) -> None:
        """Lets the interpreter go, and what it held."""
        for places in self._tensors.values():
            places.clear()

    def write(self, name: str, index: Any, values: Array) -> None:
        if name in self._kept:
            self._kept[name][index] = values
        elif not self._tensors[name]:
            raise RuntimeError(f"no runner reads {name!r} yet, so there is nowhere to write")
        for place in self._tensors[name]:
            # A view lives for this statement only: the interpreter may not be invoked while one is held.
            _view(*place).reshape(self.shapes[name])[index] = values

    def read(self, name: str) -> Array:
        places = self._tensors[name]
        if not places:
            kept = self._kept.get(name)
            return np.zeros(self.shapes[name], self._dtypes[name]) if kept is None else kept.copy()
        return _view(*places[0]).reshape(self.shapes[name]).copy()


class InterpreterRunner:
    """One signature, that is one subgraph of the interpreter."""

    def __init__(
        self,
        native: Any,
        subgraph: int,
        signature: Signature,
        indices: Mapping[str, int],
        shared: MirroredInputs | None,
        delegation: Delegation | None,
    ) -> None:
        self.signature = signature
        self._native = native
        self._subgraph = subgraph
        self._indices = indices
        self._bound = frozenset(shared.shapes) if shared else frozenset()
        self._delegation = delegation

    def end(self) -> None:
        """Lets the interpreter go, even where a traceback holds this."""
        self._native = None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises `DelegateFailed` when a graph with an external delegate does not run to its end."""
        check_inputs(self.signature, self._bound, inputs)
        for name, value in inputs.items():
            self._native.SetTensor(self._indices[name], value, self._subgraph)
        try:
            self._native.Invoke(self._subgraph)
        except RuntimeError as error:
            if self._delegation is None:
                raise
            raise self._delegation.failed(f"failed in {self.signature.name!r}", error) from error
        return {
            t.name: self._native.GetTensor(self._indices[_out(t.name)], self._subgraph)
            for t in self.signature.outputs
        }


def _view(native: Any, index: int, subgraph: int) -> Array:
    view: Array = native.tensor(native, index, subgraph)
    return view


def _out(name: str) -> str:
    return f"output {name}"


def _tensors(details: Mapping[str, Mapping[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name, tuple(int(n) for n in d["shape"]), np.dtype(d["dtype"]).name)
        for name, d in details.items()
    )


def interpreter_class(package: str) -> Any:
    if package == "ai-edge-litert":
        from ai_edge_litert.interpreter import Interpreter
    elif package == "tflite-runtime":
        from tflite_runtime.interpreter import Interpreter
    else:
        from tensorflow.lite.python.interpreter import Interpreter
    return Interpreter
