"""The process that answers, for one variant: the runner survives what kills it.

    python -m field.worker BUNDLE

A request and its reply are a line of JSON each:

    {"open": {variant}}                                 -> {"opened": true}
    {"ask": text, "image": path or null, "max_new_tokens": n} -> {"answer": text, "report": {...}}

An `EdgeError` is the reply {"error": message, "remedy": text}. Lines {"note": text} may come before a reply.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rpi_runtime.errors import EdgeError

if TYPE_CHECKING:
    from rpi_runtime.session import Session

Reply = Callable[[dict[str, Any]], None]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the runner ends us
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # native libraries print, too

    def reply(content: dict[str, Any]) -> None:
        replies.write(json.dumps(content, ensure_ascii=False).encode() + b"\n")
        replies.flush()

    session: Session | None = None
    for request in iter(_requests().get, None):
        try:
            if "open" in request:
                session = _open(sys.argv[1], request["open"], reply)
                variant = request["open"]
                reply({"opened": True})
            else:
                assert session is not None
                reply(_answer(session, variant, request))
        except EdgeError as error:
            reply({"error": error.message, "remedy": error.remedy})
    replies.flush()
    os._exit(0)  # some drivers crash at the end of a process


def _requests() -> queue.SimpleQueue[Any]:
    """As they come; without a runner there is nobody to answer, and the process ends in its midst."""
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            found.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return found


def _open(bundle: str, variant: dict[str, Any], reply: Reply) -> Session:
    # NumPy's BLAS takes 32 MB for each core when it is imported, and nothing here multiplies with it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from rpi_runtime.encoder import BRANCHES
    from rpi_runtime.memory_plan import parse_budget
    from rpi_runtime.session import Session

    budget: dict[str, Any] = {}
    if variant["memory"] is not None:
        one = variant["branch"] in BRANCHES
        budget = {
            "memory_budget": parse_budget(variant["memory"]),
            "branches": (variant["branch"],) if one else tuple(BRANCHES),
        }
    return Session.open(
        bundle,
        threads=variant["threads"],
        delegate=variant["delegate"],
        on_trial=lambda what: reply({"note": f"trying {what}"}),
        on_measure=lambda: reply({"note": "measuring what the graphs take"}),
        **budget,
    )


def _answer(session: Session, variant: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    session.forget()  # what was seen before would make some answers faster than others
    generation = session.generate(
        request["ask"],
        [request["image"]] if request["image"] else [],
        routing=variant["route"],
        branch=variant["branch"],
        max_new_tokens=request["max_new_tokens"],
    )
    for _ in generation:
        pass
    return {"answer": generation.text, "report": asdict(generation.report)}


if __name__ == "__main__":
    main()
