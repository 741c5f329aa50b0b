"""`toolkit plan`: whether a bundle fits a memory budget, and who holds what while it answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from rpi_runtime.errors import UsageError
from toolkit import report
from toolkit.commands import options as opt
from toolkit.memory_view import memory_options, picture_tokens, print_pictures, print_plan, tell_streaming


def plan(
    bundle: opt.Bundle,
    memory: Annotated[
        str | None,
        typer.Option(help="The budget, like 512MB, or auto.", show_default="auto, or what --device has"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Plan for a board: pi-zero2, pi3, pi4-2gb, pi5-8gb.", show_default="this machine"),
    ] = None,
    branch: opt.Branch = "base",
    context: Annotated[
        int | None,
        typer.Option(
            help="Tokens that a conversation may take.", show_default="the bundle's longest that fits"
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(help="Size of a picture to ask about, like 2048x1536; repeatable.", show_default=False),
    ] = None,
    images: Annotated[
        int, typer.Option(min=0, help="Number of pictures with as many tiles as there may be.")
    ] = 0,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw who holds what in each phase into this PNG.", show_default=False),
    ] = None,
    stream_weights: opt.StreamWeights = False,
    threads: Annotated[
        int | None, typer.Option(help="Threads.", show_default="the cores, at most 4, or those of --device")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="auto, compiled, interpreter, tflite-runtime or tensorflow.",
            show_default="auto, or what the CPU of --device bears",
        ),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Show how answers fit a memory budget: what is open together, and who holds what.

    Graphs are measured on this machine, once, each in a process of its own. The CPU of a board packs
    weights in its own way: the plan that is made there has the last word.
    """
    from rpi_runtime.session import Session

    sizes = [_size(text) for text in image or []]
    if device is not None:
        from toolkit.boards import board

        found = board(device)
        memory = str(found.budget) if memory is None else memory
        threads, backend = threads or found.cores, backend or found.backend
    budget = memory_options(memory or "auto", branch, stream_weights=stream_weights)
    with Session.open(
        bundle, threads=threads, backend=backend or "auto", context_tokens=context, **budget
    ) as session:
        made = session.plan
        assert made is not None
        pictures = picture_tokens(session.manifest, sizes, images)
        if picture is not None:
            from toolkit.plan_picture import draw_plan

            draw_plan(made, picture)
        if as_json:
            told = {"peak": made.peak, "head_room": made.head_room, "pictures": report.plain(pictures)}
            report.print_json({**report.plain(made), **told})
            return
        print_plan(f"{bundle}: {session.manifest.model}, {made.budget / 1e6:,.0f} MB", made)
        if pictures:
            print_pictures(pictures, made.chosen.context_tokens)
        tell_streaming(session)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.strip())
    if found is None or not int(found[1]) or not int(found[2]):
        raise UsageError(f"--image {text!r} is no size", "Write width and height in px, like 2048x1536.")
    return int(found[1]), int(found[2])
