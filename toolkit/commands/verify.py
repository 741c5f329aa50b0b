"""`toolkit verify`: is a bundle still what convert made?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rpi_runtime.errors import CheckFailed
from toolkit import report
from toolkit.commands import options as opt
from toolkit.stage_progress import StageProgress

if TYPE_CHECKING:
    from converters.verify import VerifyReport


def verify(
    bundle: opt.Bundle,
    against: Annotated[
        Path | None,
        typer.Option(help="Checkpoint: compare every graph with PyTorch again.", show_default=False),
    ] = None,
    verbose: opt.Verbose = False,
    as_json: opt.Json = False,
) -> None:
    """Check every byte of a bundle, its graphs' structure, and how close they are to PyTorch.

    Leaves with 0 when all is well, 1 when something was found, 3 when it could not check.
    """
    from converters import verify as verifying

    with StageProgress(verbose=verbose) as progress:
        result = verifying.verify(bundle, against, progress.show)
    if as_json:
        report.print_json({**report.plain(result), "passed": result.passed})
    else:
        _print(result)
    if result.problems:
        raise CheckFailed(
            f"{bundle} is not in order:\n  " + "\n  ".join(result.problems),
            "Convert the checkpoint again, or copy the bundle again.",
        )


def _print(result: VerifyReport) -> None:
    repeated = result.against is not None
    columns = ("component", "signature", "recipe", "recorded", *(("now",) if repeated else ()), "asked")
    rows = []
    for row in result.parity:
        now = f"{row.repeated.cosine:.6f}" if row.repeated else "-"
        recorded = f"{row.recorded.cosine:.6f}" + ("" if row.recorded.passed else " !")
        rows.append(
            (
                row.component if row.delegate == "cpu" else f"{row.component} for {row.delegate}",
                row.recorded.signature,
                row.recipe,
                recorded,
                *((now,) if repeated else ()),
                row.recorded.threshold,
            )
        )
    report.table(
        f"{result.bundle}: {result.model}, {result.files} files, {report.megabytes(result.bytes)}; cosine",
        columns,
        rows,
        right=("recorded", "now"),
    )
