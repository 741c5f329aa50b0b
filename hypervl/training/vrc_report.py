"""What a training of the VRC did and what came of it, as data; one JSON file holds all of it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypervl.training.vrc_evaluation import Measured


@dataclass(frozen=True)
class Trial:
    """One eps: its labels, the VRC trained on them, and how that routes the validation pictures."""

    eps: float
    labels: tuple[int, ...]  # training views labelled with each scale
    confusion: tuple[tuple[int, ...], ...]  # validation views by [label][prediction], scales in order
    steps: int
    epochs: int
    best_epoch: int  # from 1; its weights were kept
    after: Measured
    ideal: Measured  # by the labels themselves: what a VRC without mistakes would do
    curve: Path  # PNG

    @property
    def accuracy(self) -> float:
        right = sum(row[i] for i, row in enumerate(self.confusion))
        return right / sum(map(sum, self.confusion))


@dataclass(frozen=True)
class QuestionTrial:
    """Both routers against labels of single questions, and as they route each validation question."""

    accuracy: float  # share of views and questions with the right scale
    accuracy_plain: float  # of the VRC, which gives all questions the same
    with_question: Measured
    plain: Measured
    ideal: Measured  # by the labels of each question


@dataclass(frozen=True)
class VRCReport:
    output: Path
    work: Path
    checkpoint_sha256: str  # of the checkpoint that was trained
    data_sha256: str
    pictures: int  # to train on
    pictures_validation: int
    routing: str
    branch: str
    floor: float
    tolerance: float
    settings: dict[str, Any]  # of the training, with the seed
    device: str
    versions: dict[str, str]
    scales: tuple[float, ...]
    before: Measured  # by the VRC that the checkpoint had
    chosen: Trial
    tried: tuple[Trial, ...]
    question: QuestionTrial | None  # the experiment of `question_vrc`, when asked for

    def write(self, path: Path) -> None:
        content = json.dumps(dataclasses.asdict(self), indent=2, default=str)
        scratch = path.with_suffix(".partial")
        scratch.write_text(content + "\n", encoding="utf-8")
        scratch.replace(path)
