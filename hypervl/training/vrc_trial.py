"""One eps tried: labels, a VRC trained on them, and how it routes the validation pictures."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hypervl.checkpoint import Checkpoint
from hypervl.training.answer_loss import Sides
from hypervl.training.curves import draw_vrc
from hypervl.training.loss_file import AskedPicture, LossFile
from hypervl.training.vrc_evaluation import Measured, evaluate, routed_by
from hypervl.training.vrc_labels import (
    Labelled,
    Rule,
    classes,
    label_picture,
    label_tiles,
    routed_sides,
    soft_targets,
)
from hypervl.training.vrc_report import Trial
from hypervl.training.vrc_training import Samples, TrainSettings, predict, train
from hypervl.training.vrc_views import load_views
from hypervl.vrc import VRC
from rpi_runtime.manifest import VisionSpec

OnProgress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many
Labels = dict[str, Labelled]  # by the key of a picture


@dataclass(frozen=True)
class Trials:
    """What every eps shares."""

    checkpoint: Checkpoint
    fingerprint: str
    losses: LossFile
    spec: VisionSpec
    routing: str  # "tile" or "image"
    training: Sequence[AskedPicture]
    validation: Sequence[AskedPicture]
    settings: TrainSettings
    device: torch.device
    work: Path
    on_progress: OnProgress

    def label(self, rules: Sequence[Rule]) -> list[Labels]:
        """Labels of every picture by each rule. A picture is encoded once for all rules."""
        sides = routed_sides(self.spec)
        apply = label_tiles if self.routing == "tile" else label_picture
        found: list[Labels] = [{} for _ in rules]
        pictures = (*self.training, *self.validation)
        with (self.work / "labels.jsonl").open("w", encoding="utf-8") as file:
            for done, picture in enumerate(pictures, 1):

                def measure(chosen: Sides, picture: AskedPicture = picture) -> tuple[float, ...]:
                    return self.losses.losses(picture, chosen)

                for rule, labels in zip(rules, found, strict=True):
                    labelled = apply(measure, picture.grid, sides, rule)
                    labels[picture.key] = labelled
                    line = {
                        "image": str(picture.path),
                        **dataclasses.asdict(rule),
                        **dataclasses.asdict(labelled),
                    }
                    file.write(json.dumps(line) + "\n")
                self.on_progress("labelling pictures", done, len(pictures))
        return found

    def measure_old(self) -> Measured:
        """The VRC that the checkpoint has."""
        return self._measure(
            "measuring the old VRC", routed_by(load_vrc(self.checkpoint), self.spec, self.routing)
        )

    def run(self, rule: Rule, labels: Labels) -> tuple[Trial, VRC]:
        """Trains and measures. The VRC's weights are rounded to the checkpoint's dtype, as they will be kept.

        Raises `UsageError` for too few views.
        """
        training, validation = (self._samples(p, labels, rule) for p in (self.training, self.validation))
        name = f"{rule.eps:g}-{self._digest(rule)}"
        vrc = load_vrc(self.checkpoint)
        history = train(
            vrc,
            training,
            validation,
            self.settings,
            device=self.device,
            state=self.work / f"state-{name}.pt",
            on_epoch=lambda done, of, _: self.on_progress(f"training, eps {rule.eps:g}", done, of),
        )
        _round(vrc, stored_dtype(self.checkpoint))
        curve = self.work / f"curve-{name}.png"
        draw_vrc(history, curve, f"VRC for {self.routing} routing, eps {rule.eps:g}")

        def labelled(picture: AskedPicture) -> Sides:
            sides = labels[picture.key].sides
            return sides if self.routing == "tile" else sides * len(picture.grid.tiles)

        what = f"measuring, eps {rule.eps:g}"
        count = len(self.spec.scales)
        confusion = np.zeros((count, count), np.int64)
        np.add.at(confusion, (validation.labels, predict(vrc, validation.views)), 1)
        trial = Trial(
            eps=rule.eps,
            labels=tuple(np.bincount(training.labels, minlength=count).tolist()),
            confusion=tuple(map(tuple, confusion.tolist())),
            steps=history.steps,
            epochs=len(history.epochs),
            best_epoch=history.best + 1,
            after=self._measure(what, routed_by(vrc, self.spec, self.routing)),
            ideal=self._measure(what, labelled),
            curve=curve,
        )
        return trial, vrc

    def _measure(self, what: str, choose: Callable[[AskedPicture], Sides]) -> Measured:
        return evaluate(
            self.losses, self.validation, self.spec, choose, lambda done, of: self.on_progress(what, done, of)
        )

    def views(self, pictures: Sequence[AskedPicture]) -> np.ndarray:
        """All views of `pictures` in order, [views, S, S, 3] uint8."""

        def cut(done: int, total: int) -> None:
            self.on_progress("cutting views", done, total)

        return load_views(pictures, self.routing, self.spec, self.work, cut)

    def _samples(self, pictures: Sequence[AskedPicture], labels: Labels, rule: Rule) -> Samples:
        parts = [labels[picture.key] for picture in pictures]
        wanted = [index for part in parts for index in classes(part.sides, self.spec)]
        soft = np.concatenate([soft_targets(part, self.spec, rule) for part in parts])
        return Samples(self.views(pictures), np.array(wanted, np.int64), soft)

    def _digest(self, rule: Rule) -> str:
        """Another setting is another training, and goes on from nothing of this one."""
        settings, data = dataclasses.asdict(self.settings), data_digest(self.training, self.validation)
        asked = [dataclasses.asdict(rule), settings, data, self.routing, self.fingerprint, self.device.type]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]


def data_digest(training: Sequence[AskedPicture], validation: Sequence[AskedPicture]) -> str:
    """sha256 (hex) over pictures, questions and answers, and which of them train."""
    keys = [[picture.key for picture in part] for part in (training, validation)]
    return hashlib.sha256(json.dumps(keys).encode()).hexdigest()


def load_vrc(checkpoint: Checkpoint) -> VRC:
    vrc = checkpoint.load_component("vrc")
    assert isinstance(vrc, VRC)
    return vrc


def stored_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of the checkpoint's tensors; if there are several, float32, which holds each exactly."""
    kinds = {stored.dtype for stored in checkpoint.tensors.values() if stored.dtype.is_floating_point}
    return kinds.pop() if len(kinds) == 1 else torch.float32


@torch.no_grad()
def _round(vrc: VRC, dtype: torch.dtype) -> None:
    for tensor in vrc.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))
