"""An answer on the terminal: a progress line until the first word, the words, then what they cost."""

from __future__ import annotations

import sys
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from toolkit import report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rpi_runtime import generation
    from rpi_runtime.backends.base import DelegateUse
    from rpi_runtime.memory_plan import MemoryPlan
    from rpi_runtime.run_report import ImageReport, RunReport

_PHASES = {"route": "routing tiles", "encode": "encoding tiles", "prefill": "reading the prompt"}


class ProgressLine:
    """Draws a session's progress on stderr, and nothing where stderr is not a terminal."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description:>18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=report.err,
            transient=True,
            disable=not report.err.is_terminal,
        )
        self._tasks: dict[tuple[str, int], int] = {}

    def __call__(self, step: generation.Progress) -> None:
        key = (step.phase, step.image)
        if not self._tasks:
            self._bar.start()
        if key not in self._tasks:
            self._tasks[key] = self._bar.add_task(_PHASES.get(step.phase, step.phase), total=step.total)
        self._bar.update(self._tasks[key], completed=step.done)  # type: ignore[arg-type]

    def clear(self) -> None:
        """Takes the line away, so that the answer can be written."""
        self._bar.stop()
        for task in self._tasks.values():
            self._bar.remove_task(task)  # type: ignore[arg-type]
        self._tasks.clear()

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()


def stream(answer: generation.Generation, progress: ProgressLine, *, quiet: bool = False) -> bool:
    """Writes the answer as it comes, unless `quiet`. Ctrl-C ends it there; returns whether that happened."""
    stopped = False
    try:
        for piece in answer:
            progress.clear()
            if not quiet:
                sys.stdout.write(report.printable(piece))
                sys.stdout.flush()
    except KeyboardInterrupt:
        answer.close()
        stopped = True
    progress.clear()
    if not quiet and (answer.text or not stopped):
        sys.stdout.write("\n")
        sys.stdout.flush()
    return stopped


def tell_trial(what: str) -> None:
    report.note(f"trying {what}, once on this machine")


def summary(result: RunReport, plan: MemoryPlan | None = None) -> None:
    """The table below an answer: tiles, tokens, milliseconds per phase, speed and memory."""
    times, memory, backend = result.times, result.memory, result.backend
    rows: list[tuple[str, str]] = []
    for image in result.images:
        rows += _image_rows(image)
    prompt = f"{result.prompt_tokens}, {result.visual_tokens} visual"
    if result.reused_tokens:
        prompt += f"; {result.reused_tokens} reused from the turns before"
    rows += [
        ("prompt tokens", f"{prompt} (context {result.context_tokens})"),
        ("new tokens", f"{result.new_tokens}, ended by: {_WHY[result.stop_reason]}"),
        ("load graphs", f"{times.load_ms:.0f} ms"),
    ]
    if result.images:
        rows += [
            ("open image", f"{times.open_image_ms:.0f} ms"),
            ("route tiles", f"{times.route_ms:.0f} ms"),
            ("encode tiles", f"{times.encode_ms:.0f} ms"),
        ]
    rows += [
        ("prefill", _with_rate(times.prefill_ms, result.prefill_tokens_per_s)),
        ("decode", _with_rate(times.decode_ms, result.decode_tokens_per_s)),
        ("first token after", f"{times.first_token_ms:.0f} ms"),
        (
            "resident memory",
            f"{report.megabytes(memory.peak_resident_bytes)} peak; now "
            f"{report.megabytes(memory.anonymous_bytes)} anonymous, "
            f"{report.megabytes(memory.mapped_bytes)} mapped",
        ),
        *([("memory budget", _budget(plan))] if plan else []),
        ("backend", f"{backend.package} {backend.version} {backend.name}, {result.threads} threads"),
        *_delegate_rows(result.delegates),
    ]
    report.out.print()
    report.pairs("", rows)


_WHY = {
    "ended": "the model",
    "stop": "a stop string",
    "length": "the token limit",
    "context": "a full context",
    "cancelled": "Ctrl-C",
}


def _delegate_rows(uses: Sequence[DelegateUse]) -> list[tuple[str, str]]:
    """What each graph runs on, and what was passed over."""
    if not uses:
        return []
    parts = []
    for use in uses:
        part = "" if use.is_whole else f" ({use.delegated or 'part of it'}, the rest on the CPU)"
        parts.append(f"{use.component} {use.delegate}{part}")
    failed = [(f"{use.component} not on", reason) for use in uses for reason in use.passed_over]
    return [("runs on", ", ".join(parts)), *failed]


def _image_rows(image: ImageReport) -> list[tuple[str, str]]:
    count = f"{image.columns} x {image.rows}" + (" + thumbnail" if image.thumbnail else "")
    sides = Counter(image.sides_px)
    chosen = ", ".join(f"{n} at {side} px" for side, n in sorted(sides.items(), reverse=True))
    saved = 1 - image.visual_tokens / image.tokens_unrouted
    return [
        ("image", f"{image.name}, {image.width_px} x {image.height_px} px"),
        ("tiles", f"{image.tiles} ({count}), branch {image.branch}"),
        ("tile sides chosen", chosen),
        ("visual tokens", f"{image.visual_tokens} of {image.tokens_unrouted} unrouted ({saved:.0%} saved)"),
    ]


def _budget(plan: MemoryPlan) -> str:
    return (
        f"{report.megabytes(plan.budget)}; planned {report.megabytes(plan.peak)} at most, graphs "
        f"{plan.chosen.way}"
    )


def _with_rate(ms: float, per_second: float) -> str:
    return f"{ms:.0f} ms" + (f", {per_second:.1f} tokens/s" if per_second else "")
