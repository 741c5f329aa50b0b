"""Curves of a training as PNGs: a panel reader's stage, and a VRC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hypervl.training.vrc_training import History

# All and the parts of it, as the stages call them; what else they tell are shares.
_LOSSES = ("loss", "answers", "pointing", "facts", "dense", "kl", "features")


def draw_stage(stage: str, history: Sequence[dict[str, float]], path: Path) -> Path:
    """Losses on the left axis, shares of right answers on the right one."""
    from matplotlib.figure import Figure  # takes a second, and only training has it installed

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    steps = [row["step"] for row in history]
    marker = "o" if len(history) == 1 else None  # one point makes no line
    for name in history[-1] if history else ():
        if name in ("step", "level"):
            continue
        values = [row.get(name, float("nan")) for row in history]
        if name in _LOSSES:
            whole = name == "loss"
            left.plot(
                steps,
                values,
                label=name,
                marker=marker,
                color="black" if whole else None,
                linestyle="-" if whole else ":",
            )
        else:
            right.plot(steps, values, label=name, alpha=0.8, marker=marker)
    left.set(xlabel="step", ylabel="loss", title=stage)
    right.set(ylabel="share right", ylim=(0, 1))
    left.legend(loc="upper left", fontsize="small")
    right.legend(loc="upper right", fontsize="small")
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
