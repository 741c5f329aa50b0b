"""The child process of `external.check`: does step by step what is asked, and notes each step before it, so
that the last note tells what a crash ended.

    python -m rpi_runtime.backends.external_trial NOTES REQUEST
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rpi_runtime.backends.base import BackendChoice
from rpi_runtime.backends.external import ExternalDelegate, load_library, make, told
from rpi_runtime.backends.interpreter import InterpreterGraph, interpreter_class
from rpi_runtime.errors import EdgeError


def main(notes: Path, request: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is told, and leaves no file behind
    delegate = ExternalDelegate(Path(request["path"]), tuple((k, v) for k, v in request["options"]))
    choice = BackendChoice(*request["choice"])
    with notes.open("w", buffering=1) as file:

        def note(**what: object) -> None:
            file.write(json.dumps(what) + "\n")

        try:
            interpreter_class(choice.package)
            note(stage="it was being loaded")
            library = load_library(delegate)
            note(stage="it was being made")
            made = make(delegate, library)
            note(stage="it was being destroyed")
            made.destroy()
            if request["graph"]:
                _run(Path(request["graph"]), delegate, choice, note)
            note(done=True)
        except EdgeError as error:
            note(**told(error))


def _run(path: Path, delegate: ExternalDelegate, choice: BackendChoice, note: Any) -> None:
    note(stage=f"it prepared {path.name}")
    graph = InterpreterGraph(path, threads=1, verbose=True, choice=choice, delegate=delegate)
    for name, signature in graph.signatures.items():
        note(stage=f"it ran {name!r} of {path.name}")
        graph.runner(name).run({t.name: np.zeros(t.shape, t.dtype) for t in signature.inputs})
    note(stage=f"it gave {path.name} back")
    graph.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
