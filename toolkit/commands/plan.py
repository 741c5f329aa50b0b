"""`toolkit plan`: whether a bundle fits a memory budget, and who holds what while it answers."""

from __future__ import annotations

from typing import Annotated

import typer

from toolkit import report
from toolkit.commands import options as opt
from toolkit.memory_view import memory_options, print_plan


def plan(
    bundle: opt.Bundle,
    memory: Annotated[str, typer.Option(help="The budget, like 512MB, or auto.")] = "auto",
    branch: opt.Branch = "base",
    threads: opt.Threads = None,
    backend: opt.Backend = "auto",
    as_json: opt.Json = False,
) -> None:
    """Show how answers fit a memory budget: what is open together, and who holds what.

    Graphs are measured on this machine, once, each in a process of its own.
    """
    from rpi_runtime.session import Session

    with Session.open(bundle, threads=threads, backend=backend, **memory_options(memory, branch)) as session:
        found = session.plan
        assert found is not None
        if as_json:
            report.print_json({**report.plain(found), "peak": found.peak, "head_room": found.head_room})
        else:
            print_plan(f"{bundle}: {session.manifest.model}, {found.budget / 1e6:,.0f} MB", found)
