"""What `toolkit eval` shows: a bar while it asks, and tables of at most 80 columns when it has."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from toolkit import report

if TYPE_CHECKING:
    from vqa.evaluate import Arm
    from vqa.intervals import Share
    from vqa.summary import ArmSummary, Scores, Spread


class AnswersBar:
    """Draws on stderr how many answers there are and how long the rest will take; nothing off a terminal."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=report.err,
            transient=True,
            disable=not report.err.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)

    def __call__(self, arm: Arm, done: int, total: int) -> None:
        self._bar.update(self._task, description=arm.label, completed=done, total=total)

    def __enter__(self) -> AnswersBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def print_tables(arms: Sequence[ArmSummary], *, by_type: bool) -> None:
    """Answers and costs, a row per arm; then types and text sizes of the first arm, or, `by_type`, of all."""
    names = [_name(arm, arms) for arm in arms]
    _print_answers(arms, names)
    _print_costs(arms, names)
    for arm, name in list(zip(arms, names, strict=True))[: None if by_type else 1]:
        _print_scores(f"{name}: % per question type", "type", arm.by_type)
        if arm.by_text_px:
            _print_scores(f"{name}: % per height of what must be read", "px", arm.by_text_px)


def _print_answers(arms: Sequence[ArmSummary], names: Sequence[str]) -> None:
    several = len(arms) > 1
    columns = ("exact", "95 %", "numeric", *(("kept", "same") if several else ()), "tokens", "saved")
    rows = []
    for arm, name in zip(arms, names, strict=True):
        kept = "-" if arm.kept is None else _percent(arm.kept)
        rows.append(
            (
                name,
                _percent(arm.scores.exact.value),
                _interval(arm.scores.exact),
                _percent(arm.scores.numeric.value),
                *((kept, _percent(arm.agreement)) if several else ()),
                f"{arm.cost.visual_tokens_per_picture:.1f}",
                _percent(arm.cost.saved),
            )
        )
    asked, pictures = arms[0].scores.exact.asked, arms[0].cost.pictures
    title = f"questions: {asked:,}, pictures: {pictures:,}; in %, tokens per picture"
    report.table(title, ("arm", *columns), rows, right=columns)


def _print_costs(arms: Sequence[ArmSummary], names: Sequence[str]) -> None:
    columns = ("first token", "whole answer", "next question", "peak memory")
    rows = [
        (
            name,
            _spread(arm.cost.first_token),
            _spread(arm.cost.answer),
            _spread(arm.cost.answer_again),
            report.megabytes(arm.cost.peak_resident_bytes) if arm.cost.peak_resident_bytes else "-",
        )
        for arm, name in zip(arms, names, strict=True)
    ]
    report.table("ms, median / p90", ("arm", *columns), rows, right=columns)


def _print_scores(title: str, group: str, scores: Sequence[Scores]) -> None:
    columns = ("questions", "exact", "95 %", "numeric")
    rows = [
        (
            s.group,
            f"{s.exact.asked:,}",
            _percent(s.exact.value),
            _interval(s.exact),
            _percent(s.numeric.value),
        )
        for s in scores
    ]
    report.table(title, (group, *columns), rows, right=columns)


def _name(arm: ArmSummary, arms: Sequence[ArmSummary]) -> str:
    """Without the model where there is but one."""
    return arm.label if len({a.model for a in arms}) > 1 else f"{arm.routing} {arm.branch}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _interval(share: Share) -> str:
    return f"{100 * share.low:.1f}-{100 * share.high:.1f}"


def _spread(spread: Spread) -> str:
    return f"{spread.median_ms:.0f} / {spread.p90_ms:.0f}" if spread.p90_ms else "-"
