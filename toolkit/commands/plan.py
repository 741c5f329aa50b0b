"""`toolkit plan`: whether a bundle fits a memory budget, and who holds what while it answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from rpi_runtime.errors import CheckFailed, UsageError
from toolkit import report
from toolkit.commands import options as opt
from toolkit.memory_view import memory_options, picture_costs, print_pictures, print_plan, tell_streaming


def plan(
    bundle: opt.Bundle,
    memory: Annotated[
        str | None,
        typer.Option(help="The budget, like 512MB, or auto.", show_default="auto, or what --device has"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Plan for a board: pi-zero2, pi3, pi4-1gb to pi4-8gb, pi5-1gb to pi5-16gb; or plan on one: "
            "ssh://user@host[:port], adb://[serial].",
            show_default="this machine",
        ),
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
        typer.Option(
            help="A picture to ask about: a JPEG's size, like 2048x1536, or a file, whose header is read; "
            "repeatable.",
            show_default=False,
        ),
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
    backend: opt.Backend = "auto",
    as_json: opt.Json = False,
) -> None:
    """Show how answers fit a memory budget: what is open together, and who holds what.

    Exits with 1 when a picture that is asked about does not fit. Graphs are measured on this machine, once,
    each in a process of its own. The CPU of a board packs weights in its own way: the plan that is made
    there has the last word.
    """
    from rpi_runtime.session import Session

    if picture is not None:
        from toolkit.drawing import check_png

        check_png("--picture", picture)
    asked = [_asked(text) for text in image or []]
    if device is not None:
        from toolkit.boards import board

        found = board(device)
        memory = str(found.budget) if memory is None else memory
        threads = threads or found.cores
    budget = memory_options("auto" if memory is None else memory, branch, stream_weights=stream_weights)
    with Session.open(bundle, threads=threads, backend=backend, context_tokens=context, **budget) as session:
        made = session.plan
        assert made is not None
        pictures = picture_costs(session.manifest, made, asked, images)
        if picture is not None:
            from toolkit.plan_picture import draw_plan

            draw_plan(made, picture)
        too_large = [cost for cost in pictures if not cost.fits]
        if as_json:
            told = {"peak": made.peak, "head_room": made.head_room, "pictures": report.plain(pictures)}
            report.print_json({**report.plain(made), **told})
        else:
            print_plan(f"{bundle}: {session.manifest.model} under {made.budget / 1e6:,.0f} MB", made)
            if pictures:
                print_pictures(pictures, made.chosen.context_tokens)
            tell_streaming(session)
        if too_large:
            enough = made.budget_for(max(cost.spooling for cost in too_large))
            raise CheckFailed(
                f"{', '.join(cost.name for cost in too_large)}: too large for a memory budget of "
                f"{made.budget / 1e6:,.0f} MB",
                f"Give {enough} or more, or scale down first.",
            )


def _asked(text: str) -> tuple[int, int] | Path:
    """Width and height in px, or a file."""
    from rpi_runtime.image_header import MAX_SOURCE_PIXELS

    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.strip())
    if found is None and Path(text).exists():
        return Path(text)
    if found is None or not int(found[1]) or not int(found[2]):
        raise UsageError(
            f"--image {text!r} is no size, and no file either",
            "Write width and height in px, like 2048x1536, or name a picture.",
        )
    width, height = int(found[1]), int(found[2])
    if width * height > MAX_SOURCE_PIXELS:
        raise UsageError(
            f"--image {text!r} has {width * height / 1e6:,.0f} megapixels, and at most "
            f"{MAX_SOURCE_PIXELS / 1e6:,.0f} are opened",
            "Scale such a picture down first.",
        )
    return width, height
