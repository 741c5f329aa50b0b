"""What every backend offers: a graph with named signatures, runners for them, and inputs that stay in
place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rpi_runtime.manifest import Signature

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class BackendChoice:
    """Which runtime runs a graph, and why that one."""

    name: str  # "compiled" or "interpreter"
    package: str  # "ai-edge-litert", "tflite-runtime", "tensorflow"
    version: str
    reason: str


@dataclass(frozen=True)
class Accelerator:
    """One of LiteRT's, for what of a graph it takes."""

    name: str  # "gpu" or "npu"
    float32: bool = False  # GPU: computes in it, and not in float16
    alone: bool = True  # a graph that it does not take whole is refused; else the CPU runs the rest

    def __str__(self) -> str:
        return f"{self.name} in float32" if self.float32 else self.name


@dataclass(frozen=True)
class Delegated:
    """What of a signature runs on an external delegate, as the runtime tells it."""

    nodes: tuple[int, ...]  # their numbers, which are places in the graph's list of operators
    total_nodes: int  # of the signature
    partitions: int  # into which the nodes fall; each is entered and left at every run


@dataclass(frozen=True)
class DelegateUse:
    """What a graph really runs on."""

    component: str
    delegate: str  # "cpu", "gpu", "gpu in float32", the name of an external library
    is_whole: bool  # the CPU runs nothing of it
    delegated: str = ""  # of how many operators, where the runtime tells that: "12 of 40"
    passed_over: tuple[str, ...] = ()  # what was tried before or failed later, and why, a line each


class SharedInputs(Protocol):
    """Inputs that the host owns and several signatures read: the KV cache.

    Each is a flat input of the graph; the host addresses it in the shape it gave to `Graph.shared`.
    The whole array is never copied by a run.
    """

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def write(self, name: str, index: Any, values: Array) -> None:
        """`array[index] = values`, where `array` has the shape of `name`."""

    def read(self, name: str) -> Array:
        """A copy of the whole array, in its shape."""

    def take(self, name: str) -> Array:
        """The whole array, in its shape, which this gives up: its memory goes with the array."""

    def detach(self) -> None:
        """Keeps what they hold when the graph is closed. A runner of the same graph, opened again, takes
        them."""


def shared_dtypes(signatures: Mapping[str, Signature]) -> dict[str, str]:
    """Input -> dtype, of all signatures: those that share an input agree."""
    return {t.name: t.dtype for signature in signatures.values() for t in signature.inputs}


class Runner(Protocol):
    """Runs one signature. Not safe for two threads at a time."""

    signature: Signature

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Takes every input that is not shared, in the signature's shapes and dtypes; returns new arrays.

        Raises ValueError for an input that is missing, unknown or wrongly shaped.
        """


class Graph(Protocol):
    """An opened .tflite file. Not safe for two threads at a time."""

    @property
    def choice(self) -> BackendChoice: ...

    @property
    def weight_cache(self) -> str:
        """What became of it, readable: "reused", "built", "off: why"."""

    @property
    def signatures(self) -> dict[str, Signature]: ...

    @property
    def copies_shared_inputs(self) -> bool:
        """Each signature in use holds the shared inputs again."""

    @property
    def delegated(self) -> Mapping[str, Delegated]:
        """By signature; empty without an external delegate."""

    def shared(self, shapes: Mapping[str, tuple[int, ...]]) -> SharedInputs:
        """Zeroed shared inputs, name -> the shape in which the host writes them."""

    def runner(self, signature: str, shared: SharedInputs | None = None) -> Runner:
        """The runner of `signature` whose inputs named in `shared` are bound to it; made once."""

    def forget(self, shared: SharedInputs) -> None:
        """Drops the runners that read `shared`, which must not be used after it."""

    def close(self) -> None:
        """Gives back the native memory. Runners of this graph must not be used after it, nor shared inputs
        that were not detached before."""


def check_inputs(signature: Signature, bound: frozenset[str], inputs: Mapping[str, Array]) -> None:
    """Raises ValueError unless `inputs` are exactly the inputs of `signature` that are not `bound`."""
    expected = {t.name: t for t in signature.inputs if t.name not in bound}
    if inputs.keys() != expected.keys():
        missing, unknown = sorted(expected.keys() - inputs.keys()), sorted(inputs.keys() - expected.keys())
        raise ValueError(f"signature {signature.name!r}: inputs missing {missing}, unknown {unknown}")
    for name, tensor in expected.items():
        value = inputs[name]
        if value.shape != tensor.shape or value.dtype != tensor.dtype:
            raise ValueError(
                f"signature {signature.name!r}: input {name!r} is {value.dtype} {list(value.shape)}, "
                f"the graph wants {tensor.dtype} {list(tensor.shape)}"
            )
