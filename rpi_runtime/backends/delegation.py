"""An external delegate applied to an opened graph: which nodes it has, and how it failed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rpi_runtime import tflite_file
from rpi_runtime.backends.base import Delegated
from rpi_runtime.backends.execution_plan import ExecutionPlans, places
from rpi_runtime.backends.external import ExternalDelegate, load
from rpi_runtime.errors import DelegateFailed

_ALWAYS = "Restored original execution plan"
_RUNTIME_SAYS = re.compile(rf"\n|(?=Node number \d+ \(|{_ALWAYS})")


class Delegation:
    """Loads `delegate` for one graph, which `apply` gives it."""

    def __init__(self, delegate: ExternalDelegate, path: Path) -> None:
        self.delegate = delegate
        self._graph = path.name
        self._totals = [len(subgraph.operators) for subgraph in tflite_file.read(path).subgraphs]
        self._loaded = load(delegate)
        self._plans: ExecutionPlans | None = None
        self._place: dict[int, int] = {}  # subgraph -> where its plan is among `_plans`
        self._taken: list[frozenset[int]] = []  # of each plan, the nodes that the delegate put into it
        self._left: list[frozenset[int]] = []  # and those that they replace

    def apply(self, native: Any) -> None:
        """`native` is an Interpreter to which nothing was applied. Raises `DelegateFailed`."""
        self._plans = ExecutionPlans(native)
        before = self._plans.read()
        failure: DelegateFailed | None = None
        try:
            native.ModifyGraphWithDelegate(self._loaded.pointer)
        except RuntimeError as error:
            failure = self.failed(f"cannot prepare {self._graph}", error)
        if failure is not None:
            del native  # the traceback would keep it, and so the delegate
            raise failure
        after = self._plans.read()
        self._taken = [frozenset(new) - frozenset(old) for old, new in zip(before, after, strict=True)]
        self._left = [frozenset(old) - frozenset(new) for old, new in zip(before, after, strict=True)]
        self._place = places(before, self._totals)

    def of(self, subgraph: int) -> Delegated:
        """What it has of this subgraph now: the runtime may take everything back."""
        place = self._place.get(subgraph)
        if place is None or self._plans is None:
            return Delegated((), self._totals[subgraph], 0)
        partitions = self._taken[place] & frozenset(self._plans.read()[place])
        nodes = tuple(sorted(self._left[place])) if partitions else ()
        return Delegated(nodes, self._totals[subgraph], len(partitions))

    def stayed(self, subgraph: int) -> bool:
        """False where the runtime took the nodes back, which it only logs.

        It prepares all kernels anew when XNNPACK takes what remains, and does without any delegate when one
        of them fails then.
        """
        place = self._place.get(subgraph)
        return place is None or not self._taken[place] or self.of(subgraph).partitions > 0

    def was_dropped(self) -> DelegateFailed:
        return DelegateFailed(
            f"{self.delegate.name} cannot prepare {self._graph} a second time, as XNNPACK asks of it, and "
            "the runtime went on without it",
            "Run without it: on the CPU.",
        )

    def failed(self, what: str, error: Exception) -> DelegateFailed:
        # The runtime joins the delegate's message and its own without a space.
        parts = _RUNTIME_SAYS.split(str(error))
        reason = "; ".join(part.strip() for part in parts if part.strip() and _ALWAYS not in part)
        return DelegateFailed(f"{self.delegate.name} {what} ({reason})", "Run without it: on the CPU.")

    def end(self) -> None:
        """No Interpreter may use it any more."""
        self._plans = None
        self._loaded.destroy()
