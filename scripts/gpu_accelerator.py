"""What LiteRT's own GPU accelerator takes of a graph, operator by operator, on a software Vulkan.

    python scripts/gpu_accelerator.py [--driver lavapipe] [--compile] GRAPH.tflite

prints, for each subgraph, which operators the accelerator would run and which of those it does run, and its
own reasons. `gpu_child` does it, in a process of its own: a graph may kill it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gpu_child
import numpy as np
from emulation import Unavailable
from numpy.typing import NDArray
from software_vulkan import LAVAPIPE, SWIFTSHADER, environment

from rpi_runtime.errors import ResourceError
from rpi_runtime.tflite_file import read

_CHILD = Path(gpu_child.__file__).resolve()
_UNSUPPORTED = "Following operations are not supported by GPU delegate:\n"
Arrays = dict[str, NDArray[np.generic]]  # by "signature:name"


@dataclass(frozen=True)
class Delegation:
    """Of one subgraph. Numbers are those of its operators."""

    operators: int
    accepted: frozenset[int]  # of each the accelerator says that it could run it
    taken: frozenset[int]  # these do run on the GPU
    partitions: int  # into which `accepted` falls
    reasons: tuple[str, ...]  # the accelerator's own, each once


@dataclass(frozen=True)
class Run:
    """Of all signatures, each once."""

    outputs: Arrays
    open_s: float  # kernels included
    run_s: float


@dataclass(frozen=True)
class Difference:
    """Between outputs and those that they should be."""

    largest: float  # of the largest number of the output
    cosine: float

    @classmethod
    def between(cls, here: NDArray[np.generic], there: NDArray[np.generic]) -> Difference:
        a, b = here.astype(float).ravel(), there.astype(float).ravel()
        largest = float(np.abs(a - b).max() / np.abs(b).max())
        return cls(largest, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))

    @classmethod
    def worst(cls, here: Arrays, there: Arrays, signature: str = "") -> Difference:
        """Of all outputs, or those of one signature."""
        found = [
            cls.between(here[n], there[n]) for n in there if n.startswith(f"{signature}:" * bool(signature))
        ]
        return cls(max(d.largest for d in found), min(d.cosine for d in found))


class GpuAccelerator:
    """`environment` is that of a software Vulkan."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def delegations(self, graph: Path, *, compiled: bool = False) -> list[Delegation]:
        """What the accelerator takes of each subgraph, in the order of the file; `compiled` also builds the
        kernels, which may fail where accepting did not. Raises `ResourceError` when the graph does not open.
        """
        done = self._child("watch", graph, *(["compile"] if compiled else []))
        reasons = [_reasons(part) for part in done.stderr.split(gpu_child.MARK)[1:]]
        found = json.loads(done.stdout.splitlines()[-1])
        return [
            Delegation(f["operators"], frozenset(f["accepted"]), frozenset(f["taken"]), f["partitions"], why)
            for f, why in zip(found, reasons, strict=True)
        ]

    def run(self, graph: Path, inputs: Mapping[str, NDArray[np.generic]], where: str) -> Run:
        """On the "cpu", the "gpu" in float32, or there as it likes ("gpu-half"). Raises `ResourceError` when
        the graph does not run; one that took two minutes failed ("Failed to lock custom tensor buffer")."""
        with tempfile.TemporaryDirectory() as scratch:
            given, made = Path(scratch) / "inputs.npz", Path(scratch) / "outputs.npz"
            np.savez(given, **dict(inputs))  # type: ignore[arg-type]  # none is called "allow_pickle"
            done = self._child("run", graph, given, made, where)
            with np.load(made) as arrays:
                return Run(dict(arrays), **json.loads(done.stdout.splitlines()[-1]))

    def _child(self, task: str, graph: Path, *more: object) -> subprocess.CompletedProcess[str]:
        inside = {**os.environ, **self._environment}
        command = [sys.executable, str(_CHILD), task, str(graph), *map(str, more)]
        done = subprocess.run(command, env=inside, capture_output=True, text=True, errors="replace")
        if done.returncode:
            what = "run" if task == "run" else "open"
            raise ResourceError(f"{graph.name} does not {what} on the GPU: {_last_error(done)}")
        return done


def prepare(driver: str = SWIFTSHADER) -> GpuAccelerator:
    """Fetches what is missing; raises `Unavailable` where a software Vulkan cannot be had."""
    return GpuAccelerator(environment(driver))


def random_inputs(graph: Path) -> Arrays:
    """For every signature of one of our graphs, as large as they are when it is used: pictures from 0 to 1, a
    mask that hides nothing, a full KV cache."""
    chosen = np.random.default_rng(0)
    found: Arrays = {}
    for signature in read(graph).signatures:
        for t in signature.inputs:
            values: NDArray[np.generic] = chosen.standard_normal(t.shape)
            if t.name == "images":
                values = chosen.random(t.shape)
            elif t.name == "mask":
                values = np.zeros(t.shape)
            elif t.name.endswith("_scale"):  # of numbers of 8 bits, which are then 1 on average
                values = chosen.uniform(0.01, 0.02, t.shape)
            elif t.dtype == "int8":
                values = chosen.integers(-127, 128, t.shape)
            found[f"{signature.name}:{t.name}"] = values.astype(t.dtype)
    return found


def _last_error(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith(("ERROR", "F0000", "└"))]
    return lines[-1] if lines else f"it ended with {done.returncode}"


def _reasons(log: str) -> tuple[str, ...]:
    _, _, told = log.partition(_UNSUPPORTED)
    lines = told.splitlines()
    end = next((i for i, line in enumerate(lines) if line.endswith("operations will run on the CPU.")), 0)
    return tuple(line for line in lines[:end] if line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("graph", type=Path)
    parser.add_argument("--driver", choices=(SWIFTSHADER, LAVAPIPE), default=SWIFTSHADER)
    parser.add_argument("--compile", action="store_true", help="also build the kernels")
    given = parser.parse_args()
    try:
        found = prepare(given.driver).delegations(given.graph, compiled=given.compile)
    except (Unavailable, ResourceError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    for number, seen in enumerate(found):
        print(f"subgraph {number}: {seen.operators} operators, {seen.partitions} partitions")
        print("  accepted:", *sorted(seen.accepted))
        print("  taken:", *sorted(seen.taken))
        print(*(f"  {reason}" for reason in seen.reasons), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
