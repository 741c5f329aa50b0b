"""A delegate tried with one graph of a bundle, in a process of its own: does it open, does it compute the
stored sample as PyTorch did, and what does it leave to the CPU? A driver may crash or hang; then that is the
answer.

    python -m rpi_runtime.delegate_trial NOTES REQUEST
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rpi_runtime import samples
from rpi_runtime.backends import trial
from rpi_runtime.backends.base import Accelerator, Graph
from rpi_runtime.backends.external import ExternalDelegate, trust
from rpi_runtime.backends.select import choose, open_graph
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
    request = {
        "bundle": str(bundle.folder.resolve()),
        "component": component,
        "delegate": way.delegate,
        "accelerator": asdict(way.accelerator) if way.accelerator else None,
        "external": str(way.external) if way.external else "",
        "threads": threads,
        "backend": backend,
    }
    ended = trial.run(__name__, request, timeout_s)
    if "verdict" not in ended.notes:
        stage = ended.notes.get("stage", "its trial began")
        return Verdict(f"it {ended.failure(f'while {stage}')}")
    found = Verdict(**ended.notes["verdict"])
    # The runtime's exception names places in its source; what was wrong it only logs.
    said = ended.said.decode(errors="replace")
    reason = re.search(r"Could not load shared library \S+: (.+)", said) or re.search(
        r"^(?:ERROR: |E\d{4} .*?)\[?\S+:\d+\] (.+)", said, re.MULTILINE
    )
    if found.refusal and not found.cosine and reason:
        found = replace(found, refusal=f"{found.refusal}: {reason[1].strip()}")
    return found


# In the process of the trial.


def _main(notes: Path, request: dict[str, Any]) -> None:
    accelerator = Accelerator(**request["accelerator"]) if request["accelerator"] else None
    external = ExternalDelegate.parse(request["external"]) if request["external"] else None
    if external is not None:  # whoever asks for a trial has checked it
        trust(external, choose(request["backend"], external=True))
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
    graph = open_graph(
        bundle.path(name, way.delegate),
        backend=request["backend"],
        threads=request["threads"],
        delegate=way.external,
        accelerator=way.accelerator,
    )
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


if __name__ == "__main__":
    _main(Path(sys.argv[1]), json.loads(sys.argv[2]))
