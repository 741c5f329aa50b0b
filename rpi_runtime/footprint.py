"""What each graph of a bundle takes in memory, as the kernel counts it: measured, each in its own process.

    python -m rpi_runtime.footprint BUNDLE [--backend auto] [--threads N]

A graph is opened twice, in two processes: with an empty weight cache, which packs its weights, and with the
one that the first left. Each signature then runs twice, the smallest first. What is resident grows when a
graph is opened (its operators, and the pages of its weights that packing touches), and when a signature first
runs (its arena, and the pages of packed weights that it reads); the second run should add nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from delegates.cpu import cpu_features
from rpi_runtime.backends.base import BackendChoice, Graph, SharedInputs
from rpi_runtime.backends.select import choose, default_threads, load_runtime, open_graph
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import EdgeError, ResourceError
from rpi_runtime.images import open_image
from rpi_runtime.kernel import Memory, give_back, map_large_blocks, memory, reset_peak
from rpi_runtime.kv_cache import KVCache
from rpi_runtime.manifest import DECODER, FOOTPRINT_FILE, Manifest, Signature, VisionSpec, to_json
from rpi_runtime.tiling import cut, plan_grid


@dataclass(frozen=True)
class Taken:
    """Resident bytes more than before. Mapped ones are a file's, and the kernel can drop them."""

    anonymous: int
    mapped: int

    @property
    def total(self) -> int:
        return self.anonymous + self.mapped

    def __add__(self, other: Taken) -> Taken:
        return Taken(self.anonymous + other.anonymous, self.mapped + other.mapped)


@dataclass(frozen=True)
class SignatureFootprint:
    name: str
    first: Taken  # by its first run
    again: Taken  # by its second


@dataclass(frozen=True)
class GraphFootprint:
    """Of one graph, with its weight cache cold or warm."""

    component: str
    weight_cache: str  # "built", "reused", "off: why"
    opened: Taken  # all beside the runtime, which was loaded before
    opening: int  # bytes above what was there before, at most, while it opened
    peak: int  # the same while its signatures ran
    signatures: tuple[SignatureFootprint, ...]
    left: Taken  # after it was closed, by the runtime that was loaded before
    reserved: int  # bytes that may be written and were not, as stacks of threads

    @property
    def in_use(self) -> Taken:
        """After every signature has run."""
        total = self.opened
        for signature in self.signatures:
            total += signature.first + signature.again
        return total

    def needed(self, unused: Collection[str] = ()) -> int:
        """Bytes that it takes at most when the signatures `unused` never run, without what it leaves
        behind."""
        never = sum(one.first.anonymous for one in self.signatures if one.name in unused)
        return max(self.opening, max(self.peak, self.in_use.total) - never) - self.left.total

    @property
    def weights(self) -> int:
        """Of these the ones that are mapped: the kernel can drop them, and reads them again."""
        return max(0, max(self.opened.mapped, self.in_use.mapped) - self.left.mapped)


@dataclass(frozen=True)
class Footprint:
    runtime: Taken  # of this process: Python with the runtime, before any graph
    left: Taken  # by all graphs and a picture, one after another, when they are closed
    cold: tuple[GraphFootprint, ...]
    warm: tuple[GraphFootprint, ...]
    backend: str
    version: str
    threads: int
    machine: str  # "x86_64", "aarch64"

    @property
    def libraries(self) -> int:
        """Bytes of their own code and state, which stay when graphs and pictures are closed."""
        return self.left.total

    def graphs(self, unused: Collection[str] = ()) -> dict[str, int]:
        """Component -> bytes that its graph takes at most, whatever became of its weight cache, when the
        signatures `unused` never run."""
        return self._most(lambda graph: graph.needed(unused))

    def signatures(self, component: str) -> list[str]:
        """Names of its signatures, first those whose first run takes least."""
        graph = next(graph for graph in self.warm if graph.component == component)
        return [one.name for one in sorted(graph.signatures, key=lambda one: one.first.anonymous)]

    def weights(self) -> dict[str, int]:
        """Component -> bytes of mapped weights that each of its runs reads."""
        return {graph.component: graph.weights for graph in self.warm}

    def reserved(self) -> dict[str, int]:
        return self._most(lambda graph: graph.reserved)

    def _most(self, bytes_of: Callable[[GraphFootprint], int]) -> dict[str, int]:
        found: dict[str, int] = {}
        for graph in (*self.cold, *self.warm):
            found[graph.component] = max(found.get(graph.component, 0), bytes_of(graph))
        return found


def known(
    bundle: Bundle,
    choice: BackendChoice,
    threads: int,
    folder: Path | None,
    on_measure: Callable[[], None] = lambda: None,
) -> Footprint:
    """What was measured before on such a machine, kept in `folder` or in the bundle, or is measured now:
    `on_measure` hears of that before."""
    key = _key(bundle, choice, threads)
    kept = folder / f"{key}.footprint" if folder else None
    for file in (kept, bundle.folder / FOOTPRINT_FILE):
        stored_key, stored = _stored(file) if file else ("", None)
        if stored_key == key and stored is not None:
            return stored
    on_measure()
    found = measure(bundle, choice.name, threads)
    if kept is not None:
        # A full disk, or a folder of somebody else: it is measured again next time.
        with contextlib.suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            _keep(found, key, kept)
    return found


def measure_into(bundle: Bundle) -> Footprint:
    """Measures with what `Session.open` would choose here, and keeps that in the bundle."""
    choice, threads = choose(), default_threads()
    found = measure(bundle, choice.name, threads)
    _keep(found, _key(bundle, choice, threads), bundle.folder / FOOTPRINT_FILE)
    return found


def stored_in(folder: Path) -> Footprint | None:
    """What the bundle in `folder` says about its memory, on whatever machine that was measured."""
    return _stored(folder / FOOTPRINT_FILE)[1]


def _key(bundle: Bundle, choice: BackendChoice, threads: int) -> str:
    cpu = cpu_features()
    told = [to_json(bundle.manifest), choice.package, choice.version, choice.name, threads, cpu.machine]
    return hashlib.sha256(json.dumps([*told, sorted(cpu.names)]).encode()).hexdigest()[:32]


def _stored(file: Path) -> tuple[str, Footprint | None]:
    """Key and figures; one that is cut, or of another version of ours, counts as none."""
    try:
        stored = json.loads(file.read_text())
        return stored["key"], _footprint(stored["footprint"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "", None


def _keep(found: Footprint, key: str, file: Path) -> None:
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps({"key": key, "footprint": dataclasses.asdict(found)}, indent=1) + "\n")
    partial.replace(file)


def _footprint(stored: dict[str, Any]) -> Footprint:
    graphs = {name: tuple(_graph_footprint(one) for one in stored[name]) for name in ("cold", "warm")}
    taken = {name: Taken(**stored[name]) for name in ("runtime", "left")}
    return Footprint(**{**stored, **graphs, **taken})


def measure(bundle: Bundle, backend: str = "auto", threads: int | None = None) -> Footprint:
    """Measures every graph of `bundle`. Raises `ResourceError` where the kernel keeps no such accounts, and
    what opening a graph raises."""
    count = threads or default_threads()
    cold: list[GraphFootprint] = []
    warm: list[GraphFootprint] = []
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="footprint-") as cache:
        for component in bundle.manifest.components:
            for graphs in (cold, warm):
                found = _in_a_process(bundle.folder, (component.name,), backend, count, cache)
                graphs.append(_graph_footprint(found["graph"]))
        names = [component.name for component in bundle.manifest.components]
        left = _in_a_process(bundle.folder, names, backend, count, cache)["left"]
    runtime = Taken(**found["runtime"]) if found else Taken(0, 0)
    choice = found.get("choice", {})
    return Footprint(
        runtime,
        Taken(**left),
        tuple(cold),
        tuple(warm),
        choice.get("name", ""),
        choice.get("version", ""),
        count,
        cpu_features().machine,
    )


def _in_a_process(
    folder: Path, components: Sequence[str], backend: str, threads: int, cache: str
) -> dict[str, Any]:
    command = [sys.executable, "-m", "rpi_runtime.footprint", str(folder), "--cache", cache]
    command += ["--backend", backend, "--threads", str(threads), "--components", *components]
    root = str(Path(__file__).resolve().parent.parent)
    theirs = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": root + (os.pathsep + theirs if theirs else "")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        what = " and ".join(components)
        raise ResourceError(f"measuring {what} failed: {last}", "Run `toolkit verify` on the bundle.")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _graph_footprint(found: dict[str, Any]) -> GraphFootprint:
    taken = {name: Taken(**found[name]) for name in ("opened", "left")}
    signatures = tuple(
        SignatureFootprint(s["name"], Taken(**s["first"]), Taken(**s["again"])) for s in found["signatures"]
    )
    return GraphFootprint(**{**found, **taken, "signatures": signatures})


# In the process that is measured.


class _Account:
    """What this process takes more since it was last asked."""

    def __init__(self) -> None:
        if not memory().resident_bytes or not reset_peak():
            raise ResourceError(
                "this system does not tell what a process holds (/proc/self/status)",
                "Measure on Linux.",
            )
        self.start = self._last = memory()

    def taken(self) -> Taken:
        more, self._last = _since(self._last), memory()
        return more

    def peak(self) -> int:
        """Above what was there at the start, since the start or the last call."""
        found = memory().peak_resident_bytes - self.start.resident_bytes
        reset_peak()
        return found

    @property
    def reserved(self) -> int:
        now = memory()
        written = now.anonymous_bytes - self.start.anonymous_bytes
        return max(0, now.data_bytes - self.start.data_bytes - written)


def _measure_here(
    bundle: Bundle, components: Sequence[str], backend: str, threads: int, cache: Path
) -> dict[str, Any]:
    """The last of `components`, opened when the others were closed, and what all and a picture leave."""
    map_large_blocks()
    start = memory()
    load_runtime(choose(backend))  # which for a moment takes more than a small graph does
    for component in components:
        found, choice = _measure_graph(bundle, component, backend, threads, cache)
    if bundle.manifest.vision:
        _cut_a_picture(bundle.manifest.vision)
    runtime = Taken(start.anonymous_bytes, start.mapped_bytes)
    return {
        "graph": dataclasses.asdict(found),
        "left": dataclasses.asdict(_since(start)),
        "runtime": dataclasses.asdict(runtime),
        "choice": dataclasses.asdict(choice),
    }


def _measure_graph(
    bundle: Bundle, component: str, backend: str, threads: int, cache: Path
) -> tuple[GraphFootprint, BackendChoice]:
    account = _Account()
    graph = open_graph(bundle.path(component), backend=backend, threads=threads, weight_cache=cache)
    opened, opening = account.taken(), account.peak()
    choice, state = graph.choice, graph.weight_cache
    signatures = tuple(_run_all(graph, bundle.manifest, component, account))
    peak, reserved = account.peak(), account.reserved
    graph.close()
    give_back()
    left = _since(account.start)
    return GraphFootprint(component, state, opened, opening, peak, signatures, left, reserved), choice


def _cut_a_picture(spec: VisionSpec) -> None:
    written = io.BytesIO()
    Image.new("RGB", (64, 64)).save(written, "JPEG")
    picture = open_image(written.getvalue())
    grid = plan_grid(*picture.size, spec)
    picture.decode(*grid.content_px)
    cut(picture, grid.tiles[0], spec.tile_side)
    give_back()


def _since(before: Memory) -> Taken:
    now = memory()
    return Taken(now.anonymous_bytes - before.anonymous_bytes, now.mapped_bytes - before.mapped_bytes)


def _run_all(
    graph: Graph, manifest: Manifest, component: str, account: _Account
) -> Iterator[SignatureFootprint]:
    caches: dict[str, SharedInputs] = {}  # by signature
    spec = manifest.decoder
    if component == DECODER and spec is not None:
        for slots in spec.contexts:
            zeros = KVCache(graph, spec, slots).shared  # whose pages are not there yet
            caches |= dict.fromkeys(spec.signatures((slots,), spec.prefill_tokens), zeros)
    # What they share grows with the largest: in this order each one's share is what it takes more.
    for name, signature in sorted(graph.signatures.items(), key=lambda item: _input_bytes(item[1])):
        shared = caches.get(name)
        runner = graph.runner(name, shared)
        inputs = _zeros(signature, shared)
        account.taken()  # the inputs are the host's
        times = []
        for _ in range(2):
            runner.run(inputs)
            times.append(account.taken())
        yield SignatureFootprint(name, *times)


def _input_bytes(signature: Signature) -> int:
    return sum(math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in signature.inputs)


def _zeros(signature: Signature, shared: SharedInputs | None) -> dict[str, np.ndarray]:
    bound = shared.shapes if shared else {}
    return {t.name: np.zeros(t.shape, t.dtype) for t in signature.inputs if t.name not in bound}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--components", nargs="+", help="these, one after another, in this process")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--cache", type=Path)
    given = parser.parse_args(arguments)
    try:
        bundle = Bundle.open(given.bundle)
        if given.components:
            found = _measure_here(bundle, given.components, given.backend, given.threads, given.cache)
        else:
            found = dataclasses.asdict(measure(bundle, given.backend, given.threads))
    except EdgeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
