"""`toolkit field-report`: the page of a field test again, from its raw data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit import report


def field_report(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="Folder that field-test wrote.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The page.", show_default="report.html in RESULTS"),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(help="Results of an earlier field test, or their report.html.", show_default=False),
    ] = None,
) -> None:
    """Make the HTML report of a field test again, alone or beside an earlier one.

    It reads the records of RESULTS and asks no device. The page holds everything in one file.
    """
    from field.report import write_report

    target = output or results / "report.html"
    write_report(results, target, compare)
    report.note(f"Report: {target}")
