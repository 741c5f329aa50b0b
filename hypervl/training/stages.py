"""The stages of training a panel reader, as data: what each trains, on what, with which loss.

1. `primer`: the large branch's stem learns letters from pages full of them.
2. `dense`: the large branch learns to read panels, one answer per patch and per visual token.
3. `answers`: the decoder learns to answer from the large branch's visual tokens.
4. `joint`: the large branch and the decoder together.
5. `dcl`: the base branch, which begins as every other layer of the large one, under the same decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hypervl.config import HyperVLConfig
from hypervl.model import HyperVL
from hypervl.specs import image_tokens, vision_spec
from hypervl.training.answer_data import AnswerBatch, AnswerSource
from hypervl.training.answers import (
    answer_loss,
    exact_shares,
    joined,
    looks,
    read_answers,
    visual_tokens,
)
from hypervl.training.consistency import Consistency, consistency_losses
from hypervl.training.dense import DenseHeads, dense_loss, look_at, read_characters
from hypervl.training.loop import Curriculum, Schedule, Task
from hypervl.training.panel_data import LEVELS, DenseBatch, DenseSource, PrimerBatch, PrimerSource
from hypervl.training.targets import Cells

# Steps and highest rates that suit `nano`. A panel of 12 elements is level 2; levels rise with what is
# read right.
PRIMER = Schedule(1500, 1.4e-3, 4e-3)
FRESH_HEADS = Schedule(200, 1.4e-3)
DENSE = Schedule(3200, 1e-3, 3e-3)
ANSWERS = Schedule(250, 1.4e-3, 4e-3)
JOINT = Schedule(720, 8e-4, 2.4e-3, warmup=30)
DCL = Schedule(90, 7e-4, 2e-3, warmup=20)
_DENSE_LEVELS = Curriculum("read", (0.3, 0.4))
_ANSWER_LEVELS = Curriculum("exact", (0.35,))
DENSE_WEIGHT = 0.2  # of the dense loss, a sum over many fields, beside that of the answers
_TOP = len(LEVELS) - 1
_HEADS = ("heads",)


@dataclass(frozen=True)
class Workshop:
    """What all stages of one training share."""

    model: HyperVL
    tokenizer: Path  # folder with the checkpoint's tokenizer
    device: torch.device
    seed: int = 0
    scale: float = 1.0  # of every stage's steps

    @cached_property
    def heads(self) -> DenseHeads:
        """Of the large branch; shared by the stages that need them."""
        hidden = self.config.decoder.hidden_size
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return DenseHeads(self.config.vision_large, hidden).to(self.device)

    @property
    def config(self) -> HyperVLConfig:
        return self.model.config

    def schedule(self, schedule: Schedule) -> Schedule:
        steps = max(1, round(schedule.steps * self.scale))
        return replace(schedule, steps=steps, warmup=min(schedule.warmup, max(1, steps // 10)))

    def answers(self, first_seed: int) -> AnswerSource:
        """Panels of their own for each stage: `first_seed` tells them apart."""
        config = self.config
        return AnswerSource(
            vision_spec(config),
            self.tokenizer,
            image_tokens(config),
            Cells.of(config.vision_large),
            seed=10 * self.seed + first_seed,
        )


def primer(shop: Workshop) -> Task:
    vision, heads, device = shop.model.vision_large, shop.heads, shop.device
    source = PrimerSource(
        shop.config.tiling.tile_side, cell=2 ** len(vision.config.stem_channels), seed=shop.seed
    )

    def loss(batch: PrimerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        images = torch.from_numpy(batch.images).to(device).float() / 255
        seen = vision.look(images)
        value, right = read_characters(heads, seen, torch.from_numpy(batch.characters).to(device).long())
        return value, {"character": right}

    modules = {"vision_large": vision, "heads": heads}
    return Task(
        "primer_large",
        modules,
        source,
        loss,
        shop.schedule(PRIMER),
        Curriculum("character", (0.35, 0.5)),
        classifiers=_HEADS,
    )


def dense(shop: Workshop) -> Task:
    vision, heads, device = shop.model.vision_large, shop.heads, shop.device
    source = DenseSource(vision_spec(shop.config), Cells.of(vision.config), seed=shop.seed)

    def loss(batch: DenseBatch) -> tuple[Tensor, dict[str, Tensor]]:
        images = torch.from_numpy(batch.images).to(device).float() / 255
        return dense_loss(heads, look_at(vision, images), batch.targets)

    modules = {"vision_large": vision, "heads": heads}
    schedule = shop.schedule(DENSE)
    return Task("dense_large", modules, source, loss, schedule, _DENSE_LEVELS, classifiers=_HEADS)


def fresh_heads(shop: Workshop) -> Task:
    """Dense heads for a large branch that reads already, and rests until they do."""
    task = dense(shop)
    return replace(
        task,
        name="heads",
        schedule=shop.schedule(FRESH_HEADS),
        curriculum=Curriculum(),
        first_level=_TOP,
        frozen=("vision_large",),
    )


def answers(shop: Workshop) -> Task:
    """The decoder learns from the visual tokens as they come; the branch goes on with its dense targets."""
    task = _answering(shop, "answers", ANSWERS, through_branch=False)
    return replace(task, curriculum=_ANSWER_LEVELS, first_level=1)


def joint(shop: Workshop) -> Task:
    """Answers teach the branch, too, beside its dense targets."""
    return replace(_answering(shop, "joint", JOINT, through_branch=True), first_level=_TOP)


def _answering(shop: Workshop, name: str, schedule: Schedule, through_branch: bool) -> Task:
    model, heads, device = shop.model, shop.heads, shop.device

    def loss(batch: AnswerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        found = looks(model.vision_large, batch, device)
        visual = joined(found)
        read = read_answers(model.decoder, visual if through_branch else visual.detach(), batch)
        losses = {"answers": answer_loss(read)}
        pixels = sum(tiles.size for tiles in batch.tiles)
        shares: dict[str, Tensor] = {}
        for look, targets, tiles in zip(found, batch.dense, batch.tiles, strict=True):
            value, right = dense_loss(heads, look, targets)
            losses["dense"] = losses.get("dense", 0) + value * (DENSE_WEIGHT * tiles.size / pixels)
            shares = shares or right  # of the first side
        return torch.stack(list(losses.values())).sum(), {**losses, **exact_shares(read, batch), **shares}

    modules = {"vision_large": model.vision_large, "decoder": model.decoder, "heads": heads}
    number = 1 if through_branch else 0
    return Task(
        name,
        modules,
        shop.answers(number),
        loss,
        shop.schedule(schedule),
        classifiers=_HEADS,
        rest_norms=True,
    )


def dcl(shop: Workshop, what: Consistency, name: str = "dcl") -> Task:
    """The base branch; the large branch and the decoder, which both serve, stay as they are."""
    model, device = shop.model, shop.device

    def loss(batch: AnswerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        student = read_answers(model.decoder, visual_tokens(model.vision_base, batch, device), batch)
        shares, logits, visual = exact_shares(student, batch), None, None
        with torch.no_grad():
            if what.kl or what.features:
                visual = visual_tokens(model.vision_large, batch, device)
            if what.kl and visual is not None:
                teacher = read_answers(model.decoder, visual, batch)
                logits, shares["exact_large"] = teacher.logits, exact_shares(teacher, batch)["exact"]
        losses = consistency_losses(student, logits, visual if what.features else None)
        return torch.stack(list(losses.values())).sum(), {**losses, **shares}

    modules = {name: getattr(model, name) for name in ("vision_base", "vision_large", "decoder")}
    return Task(
        name,
        modules,
        shop.answers(2),
        loss,
        shop.schedule(DCL),
        first_level=_TOP,
        frozen=("vision_large", "decoder"),
        rest_norms=True,
    )
