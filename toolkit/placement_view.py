"""Placements as tables: one line per signature, then what falls back and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

from toolkit import report

if TYPE_CHECKING:
    from delegates.placement import Placement
    from toolkit.placements import Alike, Placements


def show(found: Placements) -> None:
    from toolkit.placements import alike, faulty

    if found.warning:
        report.warning(found.warning)
    for graph, placements in found.graphs().items():
        _table(f"{graph} on {found.title}", placements)
        total = sum(placement.multiply_adds for placement in placements)
        fallbacks, wrong = alike(placements), faulty(placements)
        where = found.elsewhere
        report.out.print(f"What falls back to {where}:" if fallbacks else f"Nothing falls back to {where}.")
        for group in fallbacks:
            _explain(group, total)
        if wrong:
            report.out.print(Text("Taken, and known to be computed wrongly:", style="bold red"))
        for group in wrong:
            _explain(group, total)
        report.out.print()
    report.out.print(Text(f"Rules: {found.rules}", style="dim"))


def _table(title: str, placements: Sequence[Placement]) -> None:
    report.table(
        title,
        ("signature", "operators", "partitions", "multiply-adds", "boundary"),
        [
            (
                placement.subgraph or "(all)",
                f"{placement.delegated_operators:,} of {len(placement.operators):,}",
                f"{placement.delegated_partitions}",
                _share(placement.delegated_multiply_adds, placement.multiply_adds),
                report.megabytes(placement.boundary_bytes),
            )
            for placement in placements
        ],
        right=("operators", "partitions", "multiply-adds", "boundary"),
    )


def _explain(group: Alike, total: int) -> None:
    share = f", {_share(group.multiply_adds, total)} of the multiply-adds" if group.multiply_adds else ""
    what = "that the delegate takes, in more partitions than it keeps" if group.is_left_over else group.name
    mark = " " if group.is_left_over else " x "
    head = Text.assemble((f"{group.count:,}{mark}{report.printable(what)}", "bold"), share)
    report.out.print(Padding(head, (0, 0, 0, 2)))
    if group.is_left_over:
        report.out.print(Padding(Text(report.printable(group.name)), (0, 0, 0, 4)))
        report.out.print(Padding(Text("-> Mend what falls back around them.", style="green"), (0, 0, 0, 4)))
    for reason in group.reasons:
        report.out.print(Padding(Text(report.printable(reason)), (0, 0, 0, 4)))
    for fix in group.fixes:
        report.out.print(Padding(Text(f"-> {fix}", style="green"), (0, 0, 0, 4)))


def _share(part: int, whole: int) -> str:
    """In percent; what is not all is never rounded up to it."""
    if not whole:
        return "none"
    percent = 100 * part / whole
    return f"{percent:.1f} %" if part in (0, whole) or 0.05 <= percent < 99.95 else f"{percent:.3f} %"
