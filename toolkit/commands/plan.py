"""`toolkit plan`: whether a bundle fits a memory budget, and who holds what while it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit import report
from toolkit.commands import options as opt
from toolkit.memory_view import memory_options, print_plan


def plan(
    bundle: opt.Bundle,
    memory: Annotated[str, typer.Option(help="The budget, like 512MB, or auto.")] = "auto",
    branch: opt.Branch = "base",
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens that a conversation may take.", show_default="the bundle's longest that fits"
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw who holds what in each phase into this PNG.", show_default=False),
    ] = None,
    threads: opt.Threads = None,
    backend: opt.Backend = "auto",
    as_json: opt.Json = False,
) -> None:
    """Show how answers fit a memory budget: what is open together, and who holds what.

    Graphs are measured on this machine, once, each in a process of its own.
    """
    from rpi_runtime.session import Session

    budget = memory_options(memory, branch)
    with Session.open(bundle, threads=threads, backend=backend, context_tokens=context, **budget) as session:
        found = session.plan
        assert found is not None
        if picture is not None:
            from toolkit.plan_picture import draw_plan

            draw_plan(found, picture)
        if as_json:
            report.print_json({**report.plain(found), "peak": found.peak, "head_room": found.head_room})
        else:
            print_plan(f"{bundle}: {session.manifest.model}, {found.budget / 1e6:,.0f} MB", found)
