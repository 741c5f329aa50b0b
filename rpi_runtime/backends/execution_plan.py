"""What an Interpreter runs, node by node: a graph's own nodes, and those that delegates put in their place.

The Python packages show only the nodes of the first subgraph, and of a delegate's not whose it is. So a
delegate of our own that takes nothing is applied first: the runtime shows it each subgraph through TFLite's
C interface (`TfLiteContext` of core/c/common.h, the same from TFLite 2.14 to ai-edge-litert 2.3), and what is
seen there may be read again at any time.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

_OK = 0  # kTfLiteOk
_ERROR = 1  # kTfLiteError
_ALLOW_DYNAMIC_TENSORS = 1  # without it the runtime would prepare the whole graph for us

_GetExecutionPlan = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p))
_Prepare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Context(ctypes.Structure):
    """The beginning of TfLiteContext."""

    _fields_ = (("tensors_size", ctypes.c_size_t), ("get_execution_plan", _GetExecutionPlan))


class _Delegate(ctypes.Structure):
    """TfLiteDelegate."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("prepare", _Prepare),
        ("copy_from_buffer_handle", ctypes.c_void_p),
        ("copy_to_buffer_handle", ctypes.c_void_p),
        ("free_buffer_handle", ctypes.c_void_p),
        ("flags", ctypes.c_int64),
        ("opaque_delegate_builder", ctypes.c_void_p),
    )


class ExecutionPlans:
    """Those of `native`, an Interpreter to which nothing was applied; they must not be read after its end."""

    def __init__(self, native: Any) -> None:
        with _LOCK:
            _seen.clear()
            native.ModifyGraphWithDelegate(ctypes.addressof(_OBSERVER))
            self._contexts = tuple(_seen)

    def read(self) -> tuple[tuple[int, ...], ...]:
        """Of each subgraph the numbers of the nodes that run now, in their order. Those of a delegate are
        higher than those of the graph's own. Subgraphs that delegates are not shown are left out."""
        return tuple(_plan(context, ask) for context, ask in self._contexts)


def places(plans: Sequence[Sequence[int]], operators: Sequence[int]) -> dict[int, int]:
    """Subgraph -> where its plan is among `plans`, which were read before any delegate, by the number of
    `operators` of each subgraph. Some that only other subgraphs call are not shown."""
    subgraphs = iter(enumerate(operators))
    found: dict[int, int] = {}
    for place, plan in enumerate(plans):
        subgraph = next((number for number, total in subgraphs if total == len(plan)), None)
        if subgraph is not None:
            found[subgraph] = place
    return found


def _plan(context: int, ask: Any) -> tuple[int, ...]:
    found = ctypes.c_void_p()
    if ask(context, ctypes.byref(found)) != _OK or found.value is None:
        raise RuntimeError("the runtime does not tell its execution plan")
    count = ctypes.c_int.from_address(found.value).value  # TfLiteIntArray: the length, then the numbers
    return tuple((ctypes.c_int * count).from_address(found.value + ctypes.sizeof(ctypes.c_int)))


_LOCK = threading.Lock()
_seen: list[tuple[int, Any]] = []  # of the Interpreter that is being looked at: context, function to ask it


@_Prepare
def _look(context: int, delegate: int) -> int:
    try:
        # The function is kept by its address: outside of this call the context has another in its place.
        held = ctypes.cast(_Context.from_address(context).get_execution_plan, ctypes.c_void_p)
        _seen.append((context, _GetExecutionPlan(held.value or 0)))
    except Exception:  # it may not leave a function that C calls
        return _ERROR
    return _OK


# One for the process, never freed: every Interpreter that was looked at keeps its address.
_OBSERVER = _Delegate(prepare=_look, flags=_ALLOW_DYNAMIC_TENSORS)
