"""`toolkit delegates`: what of a graph runs on a delegate, what falls back to the CPU, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rpi_runtime.errors import CheckFailed
from toolkit import report
from toolkit.commands import options as opt


def delegates(
    path: Annotated[Path, typer.Argument(help="Bundle folder or .tflite file.", show_default=False)],
    target: Annotated[
        str,
        typer.Option(help="cpu, gpu, nnapi or nnapi:<feature level>, npu:<vendor>.", show_default=False),
    ],
    nnapi_level: Annotated[
        int | None, typer.Option(help="Feature level of NNAPI: 27 is Android 8.1.", show_default="30")
    ] = None,
    component: Annotated[
        str, typer.Option(help="One graph of the bundle: vrc, vision_base, vision_large or decoder.")
    ] = "",
    max_partitions: Annotated[
        int | None,
        typer.Option(min=1, help="Partitions that the delegate keeps, the largest.", show_default="its own"),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave with 1 on a fallback, on what is known to be computed wrongly (faults), on more than "
            "N partitions (partitions:N); repeatable.",
            show_default=False,
        ),
    ] = None,
    max_fallback_macs: Annotated[
        str,
        typer.Option(
            help="Leave with 1 when more of the multiply-adds fall back, like 5%.", metavar="<share>"
        ),
    ] = "",
    html: Annotated[
        Path | None, typer.Option(help="Write a page with the graphs drawn.", show_default=False)
    ] = None,
    device: opt.Device = None,
    as_json: opt.Json = False,
) -> None:
    """Show what of each graph runs on a delegate, what falls back to the CPU, why, and what would help.

    Reads the graphs' structure only: the delegate need not be on this machine. Any .tflite file will do.
    """
    from rpi_runtime.targets import parse_target
    from toolkit.placements import alike, faulty, misses, parse_demands, placements_of

    demands = parse_demands(fail_on or [], max_fallback_macs)
    asked = parse_target(target, nnapi_level)
    if html is not None:
        from field.whole_page import check_page
        from toolkit.placement_page import write_page

        check_page(html, "--html")
    found = placements_of(path, asked, component, max_partitions)
    if html is not None:
        write_page(html, found)
    if as_json:
        graphs = found.graphs().items()
        report.print_json(
            {
                **report.plain(found),
                "fallbacks": {graph: alike(placements) for graph, placements in graphs},
                "faults": {graph: faulty(placements) for graph, placements in graphs},
            }
        )
    else:
        from toolkit.placement_view import show

        show(found)
    if html is not None:
        report.note(f"Graphs drawn in {html}.")
    missed = list(misses(found, demands))
    if missed:
        raise CheckFailed(
            f"not good enough for {found.title}:\n  " + "\n  ".join(missed),
            "Convert for this delegate (toolkit convert --delegate), or allow more.",
        )
