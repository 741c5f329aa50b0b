"""What `toolkit package` shows: what is being done, and at the end what takes how much."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from toolkit import report

if TYPE_CHECKING:
    from field.package.package import Package


class PackingProgress:
    """A context manager: a live line on a terminal; elsewhere only what takes a network is told."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TaskProgressColumn())
        self._live = Progress(*columns, TimeElapsedColumn(), console=report.err, transient=True)
        self._task = self._live.add_task("looking at what is there", total=None)

    def __enter__(self) -> PackingProgress:
        if report.err.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def tell(self, line: str) -> None:
        if report.err.is_terminal:
            self._live.update(self._task, description=line)
        elif line.startswith("fetching"):
            report.note(line)

    def count(self, line: str, total_bytes: int) -> None:
        self._live.update(self._task, description=line, total=total_bytes, completed=0)

    def advance(self, count_bytes: int) -> None:
        self._live.advance(self._task, count_bytes)


def print_package(package: Package, output: Path, needs: str) -> None:
    runtime, bundle = package.runtime, package.bundle
    parts = sorted(package.bytes_by_part.items(), key=lambda part: -part[1])
    rows = [(name, report.megabytes(size)) for name, size in parts]
    rows.append(("all of it, installed", report.megabytes(package.bytes)))
    rows.append((f"{output.name}", report.megabytes(output.stat().st_size)))
    report.table(f"{output}, for {runtime.platform.name}", ("part", "size"), rows, right=("size",))
    report.pairs(
        "",
        [
            ("needs", needs),
            ("runtime", runtime.id),
            ("bundle", f"{bundle.name} ({bundle.id})" if bundle else "none"),
            ("GPU library", "in it" if runtime.gpu else "left out: no graph of the bundle is for a GPU"),
        ],
    )
    for line in runtime.platform.loses:
        report.out.print(f"- {line}", markup=False)
