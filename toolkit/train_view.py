"""Progress of a training on stderr: one bar per thing that is being done."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from toolkit import report

if TYPE_CHECKING:
    from hypervl.training.loop import Step


class TrainProgress:
    """A context manager; pass its `show` as `on_progress`. Draws nothing where stderr is not a terminal.

    Ctrl-C ends in a message with `stopped` as what to do next.
    """

    def __init__(self, stopped: str) -> None:
        self._stopped = stopped
        self._bar = Progress(
            TextColumn("{task.description:>21}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=report.err,
            disable=not report.err.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def show(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done, total=total)

    def show_step(self, stage: str, step: Step) -> None:
        self.show(stage, step.step, step.steps)

    def __enter__(self) -> TrainProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if kind is KeyboardInterrupt:
            report.error("stopped by Ctrl-C", self._stopped)
            raise report.Stopped from None
