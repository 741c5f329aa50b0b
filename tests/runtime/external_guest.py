"""What a Python with some TFLite package makes of external delegates: does what it is asked, and prints JSON.

It runs where neither pytest nor the other tests' packages are: beside tflite-runtime, and emulated.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rpi_runtime.backends.base import Graph
from rpi_runtime.backends.external import ExternalDelegate, check
from rpi_runtime.backends.interpreter import InterpreterGraph
from rpi_runtime.backends.select import choose, open_graph
from rpi_runtime.errors import EdgeError


def tried(case: dict[str, Any], graph: Path) -> list[str]:
    """Kind and text of the error that the case ends in, [] for none."""
    delegate = ExternalDelegate(Path(case["file"]), tuple(case["options"].items()))
    os.environ.update(case["environment"])
    opened: Graph | None = None
    try:
        if case["how"] == "check":
            choice = choose(external=True)
            check(delegate, choice, graph if case["with_graph"] else None, timeout_s=case["timeout_s"])
            return []
        choice = choose(external=True)
        opened = InterpreterGraph(graph, threads=1, verbose=False, choice=choice, delegate=delegate)
        outputs(opened)
        return []
    except EdgeError as error:
        if opened is not None:
            opened.close()  # while the traceback holds its runner
        return [type(error).__name__, error.message, error.remedy]
    finally:
        for name in case["environment"]:
            del os.environ[name]


def outputs(graph: Graph) -> dict[str, np.ndarray]:
    """Of each signature, for random inputs."""
    found = {}
    for name, signature in graph.signatures.items():
        random = np.random.default_rng(0)
        inputs = {
            t.name: random.standard_normal(t.shape).astype(np.float32)
            for t in sorted(signature.inputs, key=lambda t: t.name)
        }
        made = graph.runner(name).run(inputs)
        found[name] = np.concatenate([made[t.name].ravel() for t in signature.outputs])
    return found


def placed(library: str, options: dict[str, str], path: Path, log: Path, run: bool) -> dict[str, Any]:
    """What runs where, told by us, by the delegate and by the runtime, and how far the numbers are from the
    CPU's."""
    log.write_text("")
    delegate = ExternalDelegate(Path(library), tuple({**options, "log": str(log)}.items()))
    graph: Any = open_graph(path, delegate=delegate, threads=1)
    told = {
        "package": graph.choice.package,
        "reason": graph.choice.reason,
        "subgraphs": {
            n: graph._interpreter._interpreter.GetSubgraphIndexFromSignature(n) for n in graph.signatures
        },
        "delegated": {n: [d.nodes, d.total_nodes, d.partitions] for n, d in graph.delegated.items()},
        "names": [op["op_name"] for op in graph._interpreter._get_ops_details()],
        "differences": {},
    }
    if run:
        found = outputs(graph)
        plain = open_graph(path, backend="interpreter", threads=1)
        expected = outputs(plain)
        plain.close()
        told["differences"] = {n: float(np.abs(found[n] - expected[n]).max()) for n in expected}
        told["largest"] = {n: float(np.abs(expected[n]).max()) for n in expected}
    else:
        for name in graph.signatures:
            graph.runner(name)
    told["delegated_at_the_end"] = {
        n: [d.nodes, d.total_nodes, d.partitions] for n, d in graph.delegated.items()
    }
    told["names_at_the_end"] = [op["op_name"] for op in graph._interpreter._get_ops_details()]
    graph.close()
    mine = os.getpid()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    # The trial's own come before.
    start = next(i for i, e in enumerate(events) if e["event"] == "created" and e["process"] == mine)
    told["log"] = events[start:]
    return told


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    sys.executable = request.get("python") or sys.executable
    answers: dict[str, Any] = {"cases": {}, "placed": {}}
    for name, case in request.get("cases", {}).items():
        start = time.monotonic()
        answers["cases"][name] = tried(case, Path(request["graph"]))
        print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr)
    for name, asked in request.get("placed", {}).items():
        answers["placed"][name] = placed(
            asked["library"], asked["options"], Path(asked["graph"]), Path(request["log"]), asked["run"]
        )
    Path(request["answer"]).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
