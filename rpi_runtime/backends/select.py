"""Chooses the runtime for a graph by what is installed and what the CPU can do, and opens the graph with
it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from delegates.cpu import cpu_features, gpu_library_loads_here
from rpi_runtime.backends.base import Accelerator, BackendChoice, Graph
from rpi_runtime.backends.litert_package import hide_gpu_library
from rpi_runtime.backends.weight_cache import cache_key, lease
from rpi_runtime.errors import BundleError, ResourceError, UsageError, nearest
from rpi_runtime.kernel import drop_mapped, give_back
from rpi_runtime.native_logs import quiet

if TYPE_CHECKING:
    from rpi_runtime.backends.external import ExternalDelegate

AUTO = "auto"
COMPILED = "compiled"
INTERPRETER = "interpreter"
# Packages that bring an Interpreter, best first, with the module that shows they are installed.
_INTERPRETERS = {
    "ai-edge-litert": "ai_edge_litert",
    "tflite-runtime": "tflite_runtime",
    "tensorflow": "tensorflow",
}
BACKENDS = (AUTO, COMPILED, INTERPRETER, "tflite-runtime", "tensorflow")

_log = logging.getLogger(__name__)
_said: set[str] = set()  # reasons for going without a weight cache

_MAX_DEFAULT_THREADS = 4  # a Pi's cores; the small cores of a phone slow the others down


def open_graph(
    path: Path,
    *,
    backend: str = AUTO,
    threads: int | None = None,
    weight_cache: Path | None = None,
    verbose: bool = False,
    sha256: str = "",
    delegate: ExternalDelegate | None = None,
    accelerator: Accelerator | None = None,
) -> Graph:
    """Opens the graph at `path` with the backend that fits (`choose`), and with `delegate` or on
    `accelerator` for what those can compute. A delegate is tried in a process of its own when it is first
    met.

    `weight_cache` is the folder for packed weights, None for none. `sha256` is the graph's, to spare
    hashing it. Raises `ResourceError` when no runtime fits or the delegate does not work here
    (`DelegateFailed`: with this graph), `BundleError` when the runtime cannot load the file.
    """
    if not path.is_file():
        raise BundleError(f"{path} is not a file", "Copy the bundle again, or convert the checkpoint again.")
    choice = choose(COMPILED if accelerator else backend, external=delegate is not None)
    if delegate is not None:
        from rpi_runtime.backends.external import check_once  # it brings subprocess and tempfile

        check_once(delegate, choice)
    count = threads or default_threads()
    graph = _open(path, choice, count, weight_cache, verbose, sha256, delegate, accelerator)
    drop_mapped(path)  # weights are packed now: it holds little that is read again
    return graph


def _open(
    path: Path,
    choice: BackendChoice,
    count: int,
    weight_cache: Path | None,
    verbose: bool,
    sha256: str,
    delegate: ExternalDelegate | None,
    accelerator: Accelerator | None,
) -> Graph:
    if choice.name == INTERPRETER:
        from rpi_runtime.backends.interpreter import InterpreterGraph

        return InterpreterGraph(path, threads=count, verbose=verbose, choice=choice, delegate=delegate)
    from rpi_runtime.backends.compiled import CompiledGraph

    opened = partial(
        CompiledGraph, path, threads=count, verbose=verbose, choice=choice, accelerator=accelerator
    )
    if weight_cache is None or (accelerator is not None and accelerator.alone):
        return opened(cache_file=None)
    key = cache_key(sha256 or _sha256(path), choice.version, cpu_features())
    with lease(
        weight_cache,
        key,
        graph_bytes=path.stat().st_size,
        graph=str(path.resolve()),
        runtime=f"{choice.package} {choice.version}",
    ) as lent:
        graph = opened(cache_file=lent.file)
        if lent.state == "built":
            # Its memory keeps what packing wrote, beside the file: 160 MB of a decoder of 0.6 B.
            graph.close()
            give_back()
            graph = opened(cache_file=lent.file)
    graph.weight_cache = lent.state
    if lent.state.startswith("off") and lent.state not in _said:
        _said.add(lent.state)
        _log.warning("%s runs without a weight cache (%s)", path.name, lent.state.removeprefix("off: "))
    return graph


def load_runtime(choice: BackendChoice) -> None:
    """Loads what graphs share, which opening the first one would."""
    if choice.name == COMPILED:
        from rpi_runtime.backends.compiled import environment

        with quiet():
            environment()


def choose(backend: str = AUTO, *, external: bool = False) -> BackendChoice:
    """The runtime that `backend` means here, with the reason.

    "auto" is CompiledModel where it runs, else an Interpreter; "interpreter" is that of the first installed
    package; a package's name is its Interpreter. `external` is for a graph with an external delegate, which
    only an Interpreter takes. Raises `UsageError` for an unknown name and `ResourceError` when the choice is
    not installed or does not run on this machine.
    """
    if backend not in BACKENDS:
        raise nearest(backend, BACKENDS, "backend")
    if external and backend == COMPILED:
        raise UsageError(
            "backend 'compiled' takes no external delegate", "Use --backend interpreter, or auto."
        )
    if external and backend == AUTO:
        return _interpreter(tuple(_INTERPRETERS), "CompiledModel takes no external delegate")
    if backend in (AUTO, COMPILED):
        version = _version("ai-edge-litert")
        runs, why = _compiled_runs() if version else (False, "ai-edge-litert is not installed")
        if runs:
            why = "asked for" if backend == COMPILED else f"{why}, ai-edge-litert is installed"
            return BackendChoice(COMPILED, "ai-edge-litert", version, why)
        if backend == COMPILED:
            raise ResourceError(f"backend 'compiled' does not run here: {why}", "Use --backend interpreter.")
        return _interpreter(tuple(_INTERPRETERS), why)
    if backend == INTERPRETER:
        return _interpreter(tuple(_INTERPRETERS), "asked for")
    return _interpreter((backend,), "asked for")


def _compiled_runs() -> tuple[bool, str]:
    """Whether CompiledModel may be created here, and why; hides the GPU library where it may not be
    loaded."""
    verdict = gpu_library_loads_here(cpu_features())
    if verdict.loads:
        return True, verdict.reason
    hindrance = hide_gpu_library()
    if hindrance:
        return False, f"{verdict.reason}, as the GPU library needs, and it cannot be left out: {hindrance}"
    return True, f"{verdict.reason}, so LiteRT runs without its GPU library"


def default_threads() -> int:
    """The cores this process may use, at most 4."""
    try:
        return min(_MAX_DEFAULT_THREADS, len(os.sched_getaffinity(0)))
    except AttributeError:  # not on macOS
        return min(_MAX_DEFAULT_THREADS, os.cpu_count() or 1)


def _interpreter(packages: tuple[str, ...], reason: str) -> BackendChoice:
    unusable = []
    for package in packages:
        version = _version(package)
        if not version:
            continue
        if package == "tflite-runtime" and int(np.__version__.split(".")[0]) >= 2:
            unusable.append(
                ResourceError(
                    f"tflite-runtime {version} was built for NumPy 1, and this is NumPy {np.__version__}",
                    "Install a NumPy that it can use: pip install 'numpy<2'.",
                )
            )
            continue
        return BackendChoice(INTERPRETER, package, version, reason)
    if unusable:
        raise unusable[0]
    if len(packages) == 1:
        raise ResourceError(
            f"{packages[0]} is not installed",
            f"Install it (pip install {packages[0]}), or use --backend auto.",
        )
    raise ResourceError(
        f"no TFLite runtime is installed ({', '.join(packages)})",
        "Install one: pip install ai-edge-litert, or tflite-runtime 'numpy<2' on a 32-bit system.",
    )


def _version(package: str) -> str:
    """The installed version, "" when it is not installed. Imports nothing."""
    module = _INTERPRETERS[package]
    if importlib.util.find_spec(module) is None:
        return ""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # tensorflow also comes as tensorflow-cpu; on a board without pip a package may be unpacked by hand.
        names = importlib.metadata.packages_distributions().get(module, ())
        return importlib.metadata.version(names[0]) if names else "unknown"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
