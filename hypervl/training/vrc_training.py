"""Trains a Visual Resolution Compressor on labelled views, until validation no longer improves.

Loss of a view: cross-entropy of its label, and the KL divergence from the soft label to the prediction; the
paper names both. The device takes the most likely scale and asks nothing else, so that the price of a mistake
must be in the training: a view whose label is the full side weighs `caution` times as much as one whose label
is the smallest, those between in geometric steps. Above 1 doubtful views get more pixels than they may need
(tokens), below 1 fewer (accuracy).

Light augmentation: brightness, contrast and tint as of another camera, and a shifted, slightly scaled cut. No
mirror and no turn: text does not read backwards.

BatchNorm trains on each batch's own statistics. What evaluation uses is not their moving average, which
EfficientNet's momentum would take thousands of steps to fill, but the mean over batches of the training views
with the weights as they are.

Everything random follows from the seed and the number of the epoch, so that a run that was stopped repeats
the epoch it was in, and ends with the same bits (on a CPU).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypervl.vrc import VRC
from rpi_runtime.errors import UsageError

FEWEST_VIEWS = 8  # to train on; BatchNorm needs several per batch
_SETTLE_BATCHES = 32


@dataclass(frozen=True)
class TrainSettings:
    epochs: int = 30
    seed: int = 0
    caution: float = 2.0
    batch_views: int = 64
    learning_rate: float = 3e-3  # at its highest; warmed up over the first epoch, then a cosine to zero
    weight_decay: float = 0.01
    patience_epochs: int = 8  # without a better validation loss


@dataclass(frozen=True)
class Samples:
    views: np.ndarray  # [N, S, S, 3] uint8
    labels: np.ndarray  # [N] int64, class of the scale
    soft: np.ndarray  # [N, scales] float32

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Epoch:
    training_loss: float
    validation_loss: float
    validation_accuracy: float


@dataclass
class History:
    epochs: list[Epoch] = field(default_factory=list)
    steps: int = 0
    best: int = -1  # index of the epoch whose weights are kept

    @property
    def ended_early(self) -> int:
        """Epochs since the best one."""
        return len(self.epochs) - 1 - self.best


def train(
    vrc: VRC,
    training: Samples,
    validation: Samples,
    settings: TrainSettings,
    *,
    device: torch.device,
    state: Path | None = None,
    on_epoch: Callable[[int, int, Epoch], None] = lambda done, epochs, epoch: None,
) -> History:
    """Trains `vrc` in place; it ends on the CPU, in evaluation mode, with the weights of the best epoch.

    `state` is a file to go on from, written after every epoch. Raises `UsageError` for too few views.
    """
    check_views(len(training), len(validation))
    vrc.to(device).train()
    optimizer = _optimizer(vrc, settings)
    history, best = History(), copy.deepcopy(vrc.state_dict())
    if state is not None and state.is_file():
        history, best = _restore(state, vrc, optimizer)
    weights = _class_weights(training.labels, validation.labels, settings.caution).to(device)
    while len(history.epochs) < settings.epochs and history.ended_early < settings.patience_epochs:
        number = len(history.epochs)
        loss, steps = _one_epoch(vrc, optimizer, training, weights, settings, number, device)
        _settle_batch_norm(vrc, training, settings, device)
        epoch = Epoch(loss, *_validate(vrc, validation, weights, settings, device))
        history.epochs.append(epoch)
        history.steps += steps
        if history.best < 0 or epoch.validation_loss < history.epochs[history.best].validation_loss:
            history.best, best = number, copy.deepcopy(vrc.state_dict())
        if state is not None:
            _save(state, vrc, optimizer, history, best)
        on_epoch(number + 1, settings.epochs, epoch)
    vrc.load_state_dict(best)
    vrc.to("cpu").eval()
    return history


@torch.no_grad()
def check_views(training: int, validation: int) -> None:
    """Raises `UsageError` when there are too few to learn from."""
    if training < FEWEST_VIEWS or not validation:
        raise UsageError(
            f"{training} views to train on and {validation} to validate with are too few: a view is a tile",
            f"Give more pictures: {FEWEST_VIEWS} views to train on, and some to validate with.",
        )


def predict(vrc: VRC, views: np.ndarray, batch_views: int = 256) -> np.ndarray:
    """The most likely class of each view, [N] int64; `vrc` in evaluation mode, on its own device."""
    device = next(vrc.parameters()).device
    batches = range(0, len(views), batch_views)
    found = [vrc(_pictures(views[i : i + batch_views], device)).argmax(dim=1) for i in batches]
    return torch.cat(found).cpu().numpy()


def _one_epoch(
    vrc: VRC,
    optimizer: torch.optim.Optimizer,
    training: Samples,
    weights: Tensor,
    settings: TrainSettings,
    number: int,
    device: torch.device,
) -> tuple[float, int]:
    """Mean loss and number of steps."""
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
    batches = _batches(len(training), settings.batch_views, generator)
    total = 0.0
    vrc.train()
    for step, rows in enumerate(batches):
        rate = _learning_rate(number * len(batches) + step, len(batches), settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        views = augmented(_pictures(training.views[rows], device), generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = vrc(views)
        loss = _loss(logits.float(), training, rows, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(vrc.parameters(), 1.0)
        optimizer.step()
        total += loss.item() * len(rows)
    return total / len(training), len(batches)


def _loss(logits: Tensor, samples: Samples, rows: np.ndarray, weights: Tensor) -> Tensor:
    labels = torch.from_numpy(samples.labels[rows]).to(logits.device)
    soft = torch.from_numpy(samples.soft[rows]).to(logits.device)
    log_p = F.log_softmax(logits, dim=1)
    hard = F.nll_loss(log_p, labels, reduction="none")
    divergence = F.kl_div(log_p, soft, reduction="none").sum(dim=1)
    return ((hard + divergence) * weights[labels]).mean()


def _class_weights(training: np.ndarray, validation: np.ndarray, caution: float) -> Tensor:
    """Weights by class, growing by the factor `caution` from the smallest that occurs to the largest.

    Their mean over the training views is 1, so that `caution` does not change the pace of learning.
    """
    present = sorted({*training.tolist(), *validation.tolist()})
    weights = torch.ones(max(present) + 1)
    for rank, label in enumerate(present):
        weights[label] = caution ** (rank / max(1, len(present) - 1))
    return weights / weights[torch.from_numpy(training)].mean()


@torch.no_grad()
def _validate(
    vrc: VRC, samples: Samples, weights: Tensor, settings: TrainSettings, device: torch.device
) -> tuple[float, float]:
    """Loss and accuracy."""
    vrc.eval()
    rows = np.arange(len(samples))
    parts = [rows[i : i + settings.batch_views] for i in range(0, len(rows), settings.batch_views)]
    logits = torch.cat([vrc(_pictures(samples.views[part], device)) for part in parts])
    right = (logits.argmax(dim=1).cpu().numpy() == samples.labels).mean()
    return _loss(logits, samples, rows, weights).item(), float(right)


@torch.no_grad()
def _settle_batch_norm(vrc: VRC, samples: Samples, settings: TrainSettings, device: torch.device) -> None:
    """Sets every BatchNorm's running statistics to the mean over batches of the training views."""
    norms = [module for module in vrc.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over calls
    vrc.train()
    generator = torch.Generator().manual_seed(settings.seed)
    for rows in _batches(len(samples), settings.batch_views, generator)[:_SETTLE_BATCHES]:
        vrc(_pictures(samples.views[rows], device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def augmented(views: Tensor, generator: torch.Generator) -> Tensor:
    """`views` [N, S, S, 3] in [0, 1], each with its own cut, contrast, brightness and tint."""
    count, device = len(views), views.device

    def uniform(*shape: int, within: float) -> Tensor:
        return ((torch.rand(count, *shape, generator=generator) * 2 - 1) * within).to(device)

    cuts = torch.zeros(count, 2, 3, device=device)
    cuts[:, 0, 0] = cuts[:, 1, 1] = 1 + uniform(within=0.06)
    cuts[:, :, 2] = uniform(2, within=0.06)
    pictures = views.permute(0, 3, 1, 2)
    grid = F.affine_grid(cuts, list(pictures.shape), align_corners=False)
    pictures = F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    gain = 1 + uniform(1, 1, 1, within=0.2) + uniform(3, 1, 1, within=0.05)
    shifted = (pictures - 0.5) * gain + 0.5 + uniform(1, 1, 1, within=0.1)
    return shifted.clamp(0, 1).permute(0, 2, 3, 1)


def _batches(count: int, size: int, generator: torch.Generator) -> list[np.ndarray]:
    """All rows, shuffled, in batches of nearly equal size: a last one of a few would upset BatchNorm."""
    order = torch.randperm(count, generator=generator).numpy()
    return [np.sort(batch) for batch in np.array_split(order, math.ceil(count / size))]


def _learning_rate(step: int, steps_per_epoch: int, settings: TrainSettings) -> float:
    progress = step / (steps_per_epoch * settings.epochs)
    warm = min(1.0, (step + 1) / steps_per_epoch)
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * progress))


def _optimizer(vrc: VRC, settings: TrainSettings) -> torch.optim.AdamW:
    """Weight decay for matrices and kernels only."""
    parameters = list(vrc.parameters())
    groups: Iterator[dict[str, Any]] = (
        {"params": [p for p in parameters if (p.dim() > 1) == decayed], "weight_decay": decay}
        for decayed, decay in ((True, settings.weight_decay), (False, 0.0))
    )
    return torch.optim.AdamW(list(groups), lr=settings.learning_rate)


def _pictures(views: np.ndarray, device: torch.device) -> Tensor:
    """uint8 views as the VRC reads them, float32 in [0, 1]."""
    return torch.from_numpy(np.array(views)).to(device).float() * (1 / 255)


def _save(
    path: Path, vrc: VRC, optimizer: torch.optim.Optimizer, history: History, best: dict[str, Tensor]
) -> None:
    scratch = path.with_suffix(".partial")
    parts = {
        "vrc": vrc.state_dict(),
        "best": best,
        "optimizer": optimizer.state_dict(),
        "history": asdict(history),
    }
    torch.save(parts, scratch)
    scratch.replace(path)


def _restore(path: Path, vrc: VRC, optimizer: torch.optim.Optimizer) -> tuple[History, dict[str, Tensor]]:
    parts = torch.load(path, map_location="cpu", weights_only=True)
    vrc.load_state_dict(parts["vrc"])
    optimizer.load_state_dict(parts["optimizer"])
    kept = parts["history"]
    return History([Epoch(**e) for e in kept["epochs"]], kept["steps"], kept["best"]), parts["best"]
