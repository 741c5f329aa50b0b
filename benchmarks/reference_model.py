"""The reference model's figures, all of them: what it reads, what routing saves, what recipes cost.

Makes test panels that training never saw, converts the checkpoint with three recipes, asks every arm the same
questions through `toolkit eval`, and sets what came out beside what is asked of it. Stopped, it goes on.

    python -m benchmarks.reference_model CHECKPOINT -o FOLDER [--questions 2000] [--image-router CHECKPOINT]

`--image-router` is the same checkpoint with a VRC from `toolkit train vrc --for image`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.command import toolkit

RECIPES = {"fp32": "fp32", "int8": "int8", "int4": "vision=int8,decoder=int4,vrc=int8"}
# A scale is rounded up to a side: these are 384, 256 and 128 px of `nano`.
FULL, FIXED = "fixed:1", ("fixed:1", "fixed:0.66", "fixed:0.33")


@dataclass(frozen=True)
class Arm:
    """A row of `report.json`."""

    accuracy: float
    low: float
    high: float
    tokens: float  # visual tokens per picture
    saved: float
    agreement: float  # with the first arm of its report
    first_token_ms: float
    peak_mb: float


@dataclass(frozen=True)
class Figure:
    what: str
    measured: float
    must: float
    unit: str = "%"

    @property
    def met(self) -> bool:
        return self.measured >= self.must


class Bench:
    def __init__(
        self, checkpoint: Path, folder: Path, questions: int, image_router: Path | None = None
    ) -> None:
        self.checkpoint, self.folder, self.image_router = checkpoint, folder, image_router
        self.data = folder / "panels"
        folder.mkdir(parents=True, exist_ok=True)
        if not self.data.exists():
            toolkit("data", "make", self.data, "--split", "test", "--questions", questions)

    def bundle(self, checkpoint: Path, recipe: str) -> Path:
        bundle = self.folder / f"{checkpoint.name}-{recipe}"
        if not bundle.exists():
            toolkit("convert", checkpoint, "-o", bundle, "--recipe", RECIPES[recipe])
        return bundle

    def ask(self, models: list[Path], routes: list[str], branches: list[str]) -> dict[str, Arm]:
        """Arms by "<model> <routing> <branch>". One folder for all: no arm is asked twice."""
        answers = self.folder / "answers"
        options: list[object] = ["--data", self.data, "-o", answers]
        for flag, values in (("--route", routes), ("--branch", branches)):
            options += [part for value in values for part in (flag, value)]
        toolkit("eval", *models, *options)
        report = json.loads((answers / "report.json").read_text())
        return {f"{a['model']} {a['routing']} {a['branch']}": _arm(a) for a in report["arms"]}

    def measure(self) -> tuple[dict[str, Arm], list[Figure]]:
        name = self.checkpoint.name
        fp32, int8, int4 = (self.bundle(self.checkpoint, recipe) for recipe in RECIPES)
        reference = self.ask([self.checkpoint], [FULL], ["large", "base"])
        routed = self.ask([fp32], [*FIXED, "tile"], ["base"])
        recipes = self.ask([fp32, int8, int4], ["tile"], ["base"])
        same = self.ask([self.checkpoint, fp32], ["tile"], ["base"])
        arms = {**same, **recipes, **routed, **reference}
        large, base = arms[f"{name} {FULL} large"], arms[f"{name} {FULL} base"]
        full, tile = arms[f"{fp32.name} {FULL} base"], arms[f"{fp32.name} tile base"]
        fixed = [arms[f"{fp32.name} {route} base"] for route in FIXED]
        figures = [
            Figure("exact match, large branch, full resolution, fp32", 100 * large.accuracy, 92),
            Figure("base branch, of the large branch's accuracy", 100 * base.accuracy / large.accuracy, 96),
            Figure("tile routing: accuracy kept", 100 * tile.accuracy / full.accuracy, 98.7),
            Figure("tile routing: visual tokens removed", 100 * tile.saved, 30),
            Figure("tile routing above fixed scales, same tokens", 100 * _above(tile, fixed), 0, "points"),
        ]
        if self.image_router is not None:
            other = self.bundle(self.image_router, "fp32")
            image = self.ask([other], ["image"], ["base"])
            arms |= image
            (one,) = image.values()
            figures.append(
                Figure(
                    "tile routing above image, same tokens", 100 * _above(tile, [*fixed, one]), 0, "points"
                )
            )
        figures += [
            Figure(
                f"{recipe} bundle against fp32", 100 * (arms[key].accuracy - tile.accuracy), must, "points"
            )
            for recipe, key, must in (
                ("int8", f"{int8.name} tile base", -1.0),
                ("int4 decoder, int8 vision", f"{int4.name} tile base", -3.0),
            )
        ]
        agreement = same[f"{fp32.name} tile base"].agreement
        figures.append(Figure("same answers, device and PyTorch, fp32", 100 * agreement, 99.5))
        return arms, figures


def _arm(row: dict[str, Any]) -> Arm:
    exact, cost = row["scores"]["exact"], row["cost"]
    return Arm(
        exact["value"],
        exact["low"],
        exact["high"],
        cost["visual_tokens_per_picture"],
        cost["saved"],
        row["agreement"],
        cost["first_token"]["median_ms"],
        cost["peak_resident_bytes"] / 1e6,
    )


def _above(arm: Arm, others: list[Arm]) -> float:
    """How far `arm` lies above the line through `others` at its number of tokens."""
    line = sorted((other.tokens, other.accuracy) for other in others)
    tokens, accuracies = zip(*line, strict=True)
    return arm.accuracy - float(np.interp(arm.tokens, tokens, accuracies))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--image-router", type=Path)
    given = parser.parse_args()
    arms, figures = Bench(given.checkpoint, given.output, given.questions, given.image_router).measure()
    table = Table("arm", "exact", "95 %", "tokens", "saved", "first token", "peak")
    for name, arm in arms.items():
        table.add_row(
            name,
            f"{arm.accuracy:.1%}",
            f"{arm.low:.1%} to {arm.high:.1%}",
            f"{arm.tokens:.0f}",
            f"{arm.saved:.0%}",
            f"{arm.first_token_ms:.0f} ms",
            f"{arm.peak_mb:.0f} MB",
        )
    asked = Table("figure", "measured", "asked", "")
    for figure in figures:
        asked.add_row(
            figure.what,
            f"{figure.measured:.1f} {figure.unit}",
            f"{figure.must:g} {figure.unit}",
            "met" if figure.met else "missed",
        )
    console = Console()
    console.print(table)
    console.print(asked)


if __name__ == "__main__":
    main()
