"""Curves of a training as PNGs: a panel reader's stage, and a VRC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hypervl.training.vrc_training import History


def draw_stage(stage: str, history: Sequence[dict[str, float]], path: Path) -> Path:
    """Loss on the left axis, whatever lies in [0, 1] on the right one."""
    from matplotlib.figure import Figure  # takes a second, and only training has it installed

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    steps = [row["step"] for row in history]
    left.plot(steps, [row["loss"] for row in history], color="black", label="loss")
    for name in history[-1] if history else ():
        values = [row.get(name) for row in history]
        if name not in ("loss", "step", "level") and all(v is None or 0 <= v <= 1 for v in values):
            right.plot(steps, [float("nan") if v is None else v for v in values], label=name, alpha=0.8)
    left.set(xlabel="step", ylabel="loss", title=stage)
    right.set(ylabel="share right", ylim=(0, 1))
    right.legend(loc="center right", fontsize="small")
    figure.savefig(path)
    return path


def draw_vrc(history: History, path: Path, title: str) -> None:
    """Training and validation loss over epochs, and where the kept weights are."""
    from matplotlib.figure import Figure  # takes a second, and only training has it installed

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    numbers = range(1, len(history.epochs) + 1)
    axes.plot(numbers, [e.training_loss for e in history.epochs], label="training")
    axes.plot(numbers, [e.validation_loss for e in history.epochs], label="validation")
    axes.axvline(history.best + 1, color="grey", linestyle=":", label="kept")
    axes.set(xlabel="epoch", ylabel="loss", title=title)
    axes.legend()
    figure.savefig(path)
