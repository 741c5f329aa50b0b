"""A delegate tried with one graph of a bundle, in a process of its own: does it open, does it compute the
stored sample as PyTorch did, and what does it leave to the CPU? A driver may crash or hang; then that is the
answer.

    python -m rpi_runtime.delegate_trial NOTES REQUEST
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rpi_runtime import samples
from rpi_runtime.backends.base import Accelerator, Graph
from rpi_runtime.backends.external import ExternalDelegate
from rpi_runtime.backends.select import open_graph
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import EdgeError

TIMEOUT_S = 300  # a phone's driver compiles for a minute


@dataclass(frozen=True)
class Way:
    """One way to run a graph."""

    delegate: str  # which of the component's graphs: "gpu", "nnapi:30", "cpu"
    accelerator: Accelerator | None = None
    external: ExternalDelegate | None = None
    only_whole: bool = False  # another graph of the component is better than this one in parts

    def __str__(self) -> str:
        if self.external is not None:
            graph = f" with the graph for {self.delegate}" if self.only_whole else ""
            return f"{self.external.name}{graph}"
        return str(self.accelerator or self.delegate)


@dataclass(frozen=True)
class Verdict:
    """What a trial found. `refusal` is "" where the delegate may be trusted."""

    refusal: str = ""
    cosine: float = 0.0  # to PyTorch, of the sample
    is_whole: bool = False  # the CPU runs nothing of it
    delegated: str = ""  # of how many operators, where the runtime tells that


def try_out(
    bundle: Bundle,
    component: str,
    way: Way,
    *,
    threads: int,
    backend: str = "auto",
    timeout_s: float = TIMEOUT_S,
) -> Verdict:
    """Never raises for a delegate that does not work: that is a verdict."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        request = {
            "bundle": str(bundle.folder.resolve()),
            "component": component,
            "delegate": way.delegate,
            "accelerator": asdict(way.accelerator) if way.accelerator else None,
            "external": str(way.external) if way.external else "",
            "threads": threads,
            "backend": backend,
        }
        command = [sys.executable, "-m", __name__, str(notes), json.dumps(request)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
        said = Path(folder) / "said"
        with said.open("wb") as output:
            try:
                ended = subprocess.run(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    timeout=timeout_s,
                ).returncode
            except subprocess.TimeoutExpired:
                ended = None
        return _judged(_read(notes), ended, said.read_text(errors="replace"), timeout_s)


def _judged(notes: dict[str, Any], ended: int | None, said: str, timeout_s: float) -> Verdict:
    if "verdict" in notes:
        found = Verdict(**notes["verdict"])
        # The runtime's exception names places in its source; what was wrong it only logs.
        reason = re.search(r"Could not load shared library \S+: (.+)", said) or re.search(
            r"^(?:ERROR: |E\d{4} .*?)\[?\S+:\d+\] (.+)", said, re.MULTILINE
        )
        if found.refusal and not found.cosine and reason:
            found = replace(found, refusal=f"{found.refusal}: {reason[1].strip()}")
        return found
    while_ = f"while {notes.get('stage', 'its trial began')}"
    if ended is None:
        return Verdict(f"it did not come back within {timeout_s:g} s, {while_}")
    if ended < 0:
        try:
            name = signal.Signals(-ended).name
        except ValueError:  # real-time signals have no names
            name = f"signal {-ended}"
        return Verdict(f"it crashed ({name}) {while_}")
    return Verdict(f"it ended its process with status {ended} {while_}")


def _read(notes: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in notes.read_text().splitlines() if notes.exists() else ():
        found.update(json.loads(line))
    return found


# In the process of the trial.


def _main(notes: Path, request: dict[str, Any]) -> None:
    accelerator = Accelerator(**request["accelerator"]) if request["accelerator"] else None
    external = ExternalDelegate.parse(request["external"]) if request["external"] else None
    way = Way(request["delegate"], accelerator, external)
    with notes.open("w", buffering=1) as file:

        def note(**what: object) -> None:
            file.write(json.dumps(what) + "\n")

        try:
            bundle = Bundle.open(request["bundle"])
            note(verdict=asdict(_tried(bundle, request["component"], way, request, note)))
        except EdgeError as error:
            note(verdict=asdict(Verdict(error.message)))
    # Some drivers crash at the end of a process, when nothing depends on them any more.
    os._exit(0)


def _tried(bundle: Bundle, name: str, way: Way, request: dict[str, Any], note: Any) -> Verdict:
    component = bundle.manifest.component(name)
    assert component is not None
    least = next(graph.least_cosine for graph in component.graphs if graph.delegate == way.delegate)
    sample = samples.load(bundle.file(component.sample))
    note(stage=f"it opened {name}")
    graph = open_way(bundle.path(name, way.delegate), way, request["threads"], request["backend"])
    note(stage=f"it ran the sample of {name}")
    cosine = samples.closeness(graph, sample, bundle.manifest.decoder)
    taken, total = _counts(graph)
    refusal = ""
    if cosine < least:
        refusal = f"wrong numbers: its sample has a cosine of {cosine:.4f} to PyTorch, asked is {least:g}"
    elif way.external is not None and not taken:
        refusal = "it takes no operator of this graph"
    is_whole = taken == total if way.external else bool(way.accelerator and way.accelerator.alone)
    return Verdict(refusal, cosine, is_whole, f"{taken} of {total}" if total else "")


def _counts(graph: Graph) -> tuple[int, int]:
    """Operators on an external delegate, and all; 0 of 0 where the runtime does not tell."""
    found = graph.delegated.values()
    return sum(len(one.nodes) for one in found), sum(one.total_nodes for one in found)


def open_way(
    path: Path,
    way: Way,
    threads: int,
    backend: str,
    weight_cache: Path | None = None,
    verbose: bool = False,
    sha256: str = "",
) -> Graph:
    """Raises `DelegateFailed` and what `open_graph` raises."""
    return open_graph(
        path,
        backend=backend,
        threads=threads,
        weight_cache=weight_cache,
        verbose=verbose,
        sha256=sha256,
        delegate=way.external,
        accelerator=way.accelerator,
    )


if __name__ == "__main__":
    _main(Path(sys.argv[1]), json.loads(sys.argv[2]))
