"""The training loop of every stage: steps, checkpoints, exact resume, a record and a curve.

A stage is a `Task`: what it trains, where its batches come from, and its loss. The state that a run leaves in
its folder holds everything that the next step depends on, so that a run that was stopped and goes on gives
the same numbers as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from hypervl.training.feed import Feed, Source
from hypervl.training.optimizers import make_optimizers
from hypervl.training.together import Loss, Together, threads
from rpi_runtime.errors import EdgeError

_SAVE_SECONDS = 120.0
_LOG_STEPS = 20
_CLIP = 1.0  # of the gradient's norm


@dataclass(frozen=True)
class Schedule:
    steps: int
    rate: float  # the highest learning rate; warmed up to it, then down along a cosine to `floor` of it
    matrix_rate: float = 0.0  # the same, of matrices under Muon; 0 leaves all to AdamW
    warmup: int = 100
    floor: float = 0.05
    weight_decay: float = 0.02
    batches: int = 1  # per step

    def share_at(self, step: int) -> float:
        """Of the highest rates, at `step`."""
        warm = min(1.0, (step + 1) / self.warmup)
        share = min(1.0, step / self.steps)
        return warm * (self.floor + (1 - self.floor) * (0.5 + 0.5 * math.cos(math.pi * share)))


@dataclass(frozen=True)
class Curriculum:
    """The level rises when the smoothed `metric` passes the next of `thresholds`."""

    metric: str = ""
    thresholds: tuple[float, ...] = ()
    settle_steps: int = 50  # at a level, after which the smoothed metric speaks for it


Prepare = Callable[[ProcessPoolExecutor | None, Callable[[int, int], None]], None]  # told done, of how many


@dataclass(frozen=True)
class Task:
    """`loss` takes `modules`, or copies of them, and a batch, and hangs on nothing else."""

    name: str
    modules: dict[str, nn.Module]  # what is trained and saved
    source: Source
    loss: Loss
    schedule: Schedule
    curriculum: Curriculum = field(default_factory=Curriculum)
    first_level: int = 0
    frozen: tuple[str, ...] = ()  # of `modules`: saved, and not trained
    classifiers: tuple[str, ...] = ()  # of `modules`: give class scores, and are not for Muon
    rest_norms: bool = False  # BatchNorm keeps its statistics: what is learned is what will be run
    prepare: Prepare | None = None  # makes what must be there before the first step

    def parts(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """What is trained: networks, and classifiers."""
        trained = {name: module for name, module in self.modules.items() if name not in self.frozen}
        classifiers = [module for name, module in trained.items() if name in self.classifiers]
        return [module for name, module in trained.items() if name not in self.classifiers], classifiers


@dataclass
class _Progress:
    step: int = 0
    batches: int = 0
    seconds: float = 0.0
    levels: list[tuple[int, int]] = field(default_factory=list)
    smooth: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """What a listener hears now and then."""

    step: int
    steps: int
    level: int
    metrics: dict[str, float]  # smoothed
    seconds: float  # of training so far, over all runs


@dataclass(frozen=True)
class Outcome:
    history: tuple[dict[str, float], ...]  # "step", "level", and the smoothed metrics
    seconds: float


def train(
    task: Task,
    folder: Path,
    pool: ProcessPoolExecutor | None = None,
    device: torch.device | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
    until: int | None = None,
) -> Outcome:
    """Runs `task` to its end, or to step `until`, from where `folder` says that it stopped."""
    device = device or torch.device("cpu")
    folder.mkdir(parents=True, exist_ok=True)
    state_file = folder / f"{task.name}.state.pt"
    trained = [p for name, m in task.modules.items() if name not in task.frozen for p in m.parameters()]
    for name, module in task.modules.items():
        module.to(device).train(name not in task.frozen).requires_grad_(name not in task.frozen)
    if task.rest_norms:
        for norm in (m for module in task.modules.values() for m in module.modules()):
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
    schedule = task.schedule
    progress = _Progress(levels=[(0, task.first_level)])
    with threads(schedule.batches, device) as crew:
        optimizers = make_optimizers(
            *task.parts(), schedule.rate, schedule.matrix_rate, schedule.weight_decay, crew.map
        )
        if state_file.is_file():
            progress = _load(state_file, task, optimizers, device)
        feed = Feed(task.source, pool, progress.batches, progress.levels)
        together = Together(task.modules, schedule.batches, device, crew)
        last = schedule.steps if until is None else min(until, schedule.steps)
        saved = started = time.monotonic()
        before = progress.seconds
        while progress.step < last:
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = group["highest_lr"] * schedule.share_at(progress.step)
            batches = [feed.take() for _ in range(schedule.batches)]
            loss, metrics = together.gradient(task.loss, batches)
            if not bool(torch.isfinite(loss)):
                raise EdgeError(
                    f"{task.name}: the loss is {float(loss)} at step {progress.step}",
                    f"The training diverged. {folder} holds its last good state; start another seed "
                    "elsewhere.",
                )
            nn.utils.clip_grad_norm_(trained, _CLIP)
            for optimizer in optimizers:
                optimizer.step()
            progress.step += 1
            progress.batches += schedule.batches
            progress.seconds = before + time.monotonic() - started
            _smooth(progress.smooth, [{"loss": loss}, *metrics])
            _raise_level(task, progress, feed)
            if progress.step % _LOG_STEPS == 0 or progress.step == last:
                progress.history.append({"step": progress.step, "level": feed.level, **progress.smooth})
                on_step(Step(progress.step, schedule.steps, feed.level, progress.smooth, progress.seconds))
            if time.monotonic() - saved > _SAVE_SECONDS:
                _save(state_file, task, optimizers, progress)
                saved = time.monotonic()
    _save(state_file, task, optimizers, progress)
    return Outcome(tuple(progress.history), progress.seconds)


def _smooth(smooth: dict[str, float], values: Sequence[dict[str, Tensor]]) -> None:
    """Exponential means over about 50 batches."""
    for name, value in (pair for one in values for pair in one.items()):
        now = float(value.detach())
        if math.isnan(now):  # a share of nothing; a loss that is no number never comes here
            continue
        smooth[name] = now if name not in smooth else 0.98 * smooth[name] + 0.02 * now


def _raise_level(task: Task, progress: _Progress, feed: Feed) -> None:
    passed, thresholds = feed.level - task.first_level, task.curriculum.thresholds
    since = feed.levels[-1][0]
    if progress.batches <= since:  # batches of the easier level are still coming
        progress.smooth.pop(task.curriculum.metric, None)
    if progress.batches < since + task.curriculum.settle_steps * task.schedule.batches:
        return
    if passed < len(thresholds) and progress.smooth.get(task.curriculum.metric, 0.0) >= thresholds[passed]:
        feed.raise_level()


def _save(file: Path, task: Task, optimizers: list[torch.optim.Optimizer], progress: _Progress) -> None:
    partial = file.with_suffix(".partial")
    torch.save(
        {
            "modules": {name: module.state_dict() for name, module in task.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "progress": vars(progress),
        },
        partial,
    )
    partial.replace(file)
    history = file.with_name(f"{task.name}.history.json")
    history.write_text(json.dumps(progress.history))


def _load(file: Path, task: Task, optimizers: list[torch.optim.Optimizer], device: torch.device) -> _Progress:
    state = torch.load(file, map_location=device, weights_only=True)
    for name, module in task.modules.items():
        module.load_state_dict(state["modules"][name])
    for optimizer, its in zip(optimizers, state["optimizers"], strict=True):
        highest = [group["highest_lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict(its)
        for group, rate in zip(optimizer.param_groups, highest, strict=True):
            group["highest_lr"] = rate  # the schedule says it, not the run before
    return _Progress(**state["progress"])
