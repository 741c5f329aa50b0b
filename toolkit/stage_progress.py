"""Shows stages as they run: a live line on a terminal, and one line per finished stage anywhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.status import Status
from rich.text import Text

from toolkit import report

if TYPE_CHECKING:
    from converters.stages import StageEvent, StageResult


class StageProgress:
    """A context manager; pass its `show` as the callback of `convert` or `verify`."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._status: Status | None = None
        self._place = ""
        self.stage = ""  # the one that runs now, for the message when it is stopped

    def __enter__(self) -> StageProgress:
        if report.err.is_terminal:
            self._status = report.err.status("")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, event: StageEvent) -> None:
        from converters import stages

        match event:
            case stages.StageStarted(name, number, count):
                self.stage = name
                self._place = f"{number}/{count}" if count > 1 else ""
                self._live("")
            case stages.StageProgress(_, seconds, peak_bytes):
                self._live(f"{seconds:.0f} s, {report.megabytes(peak_bytes)}")
            case stages.StageLog(text):
                if self._verbose:
                    report.err.print(Text(text.rstrip("\n"), style="dim"), soft_wrap=True)
            case stages.StageFinished(number, count, result):
                self.stage = ""
                place = f"{number}/{count}" if count > 1 else ""
                report.err.print(Text(f"{place:>6} {_line(result)}"), soft_wrap=True)

    def _live(self, numbers: str) -> None:
        if self._status is not None:
            self._status.update(Text(f"{self._place} {self.stage}  {numbers}".strip()))


def _line(result: StageResult) -> str:
    if result.resumed:
        return f"{result.name:<22} kept from an earlier run"
    written = f"  {report.megabytes(result.output_bytes):>10} written" if result.output_bytes else ""
    return (
        f"{result.name:<22} {result.seconds:>7.1f} s  {report.megabytes(result.peak_bytes):>10} peak{written}"
    )
