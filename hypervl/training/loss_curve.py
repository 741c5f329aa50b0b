"""A training's losses, drawn into a PNG."""

from __future__ import annotations

from pathlib import Path

from hypervl.training.vrc_training import History


def draw_curve(history: History, path: Path, title: str) -> None:
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
