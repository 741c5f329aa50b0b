"""The stages of training a panel reader, as data: what each trains, on what, with which loss.

1. `primer_<branch>`: a branch's stem learns letters from pages full of them.
2. `dense_<branch>`: the branch learns to read panels, one answer per patch (`dense`).
3. `answers`: the decoder learns to answer from the large branch's visual tokens; the branch rests.
4. `joint`: the large branch and the decoder together.
5. `dcl`: the base branch under the decoder of the large one (`consistency`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from hypervl.config import HyperVLConfig
from hypervl.model import HyperVL
from hypervl.specs import image_tokens, vision_spec
from hypervl.training.answer_data import AnswerBatch, AnswerSource
from hypervl.training.answers import answer_loss, exact_shares, read_answers, visual_tokens
from hypervl.training.consistency import Consistency, consistency_losses
from hypervl.training.dense import DenseHeads, dense_loss, read_characters
from hypervl.training.loop import Curriculum, Schedule, Task
from hypervl.training.panel_data import LEVELS, DenseBatch, DenseSource, PrimerBatch, PrimerSource

# Steps and highest rates that suit `nano`. A panel of 12 elements is level 2; levels rise with what is
# read right.
PRIMER = Schedule(1500, 1.4e-3, 4e-3)
DENSE = Schedule(4000, 1.4e-3, 4e-3)
ANSWERS = Schedule(1000, 1.4e-3, 4e-3)
JOINT = Schedule(2500, 7e-4, 2e-3)
DCL = Schedule(4000, 7e-4, 2e-3)
_DENSE_LEVELS = Curriculum("read", (0.3, 0.4))
_ANSWER_LEVELS = Curriculum("exact", (0.5, 0.6))
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
    _heads: dict[str, DenseHeads] = field(default_factory=dict)

    def heads(self, branch: str) -> DenseHeads:
        """Shared by the two stages that need them."""
        if branch not in self._heads:
            hidden = self.config.decoder.hidden_size
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                self._heads[branch] = DenseHeads(self.config.vision(branch), hidden).to(self.device)
        return self._heads[branch]

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
            vision_spec(config), self.tokenizer, image_tokens(config), seed=10 * self.seed + first_seed
        )


def primer(shop: Workshop, branch: str) -> Task:
    vision, heads, device = shop.model.vision(branch), shop.heads(branch), shop.device
    source = PrimerSource(
        shop.config.tiling.tile_side, cell=2 ** len(vision.config.stem_channels), seed=shop.seed
    )

    def loss(batch: PrimerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        images = torch.from_numpy(batch.images).to(device).float() / 255
        seen = vision.look(images)
        value, right = read_characters(heads, seen, torch.from_numpy(batch.characters).to(device).long())
        return value, {"character": right}

    modules = {f"vision_{branch}": vision, "heads": heads}
    return Task(
        f"primer_{branch}",
        modules,
        source,
        loss,
        shop.schedule(PRIMER),
        Curriculum("character", (0.35, 0.5)),
        classifiers=_HEADS,
    )


def dense(shop: Workshop, branch: str) -> Task:
    vision, heads, device = shop.model.vision(branch), shop.heads(branch), shop.device
    config = vision.config
    source = DenseSource(
        vision_spec(shop.config),
        patch=config.patch_size,
        shuffle=config.pixel_shuffle,
        cell=2 ** len(config.stem_channels),
        seed=shop.seed,
    )

    def loss(batch: DenseBatch) -> tuple[Tensor, dict[str, Tensor]]:
        images = torch.from_numpy(batch.images).to(device).float() / 255
        targets = (
            torch.from_numpy(t).to(device).long()
            for t in (batch.targets, batch.token_targets, batch.characters)
        )
        return dense_loss(vision, heads, images, *targets)

    modules = {f"vision_{branch}": vision, "heads": heads}
    schedule = shop.schedule(DENSE)
    return Task(f"dense_{branch}", modules, source, loss, schedule, _DENSE_LEVELS, classifiers=_HEADS)


def answers(shop: Workshop) -> Task:
    """The decoder alone, on visual tokens that stay as they are."""
    model, device = shop.model, shop.device

    def loss(batch: AnswerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            visual = visual_tokens(model.vision_large, batch, device)
        read = read_answers(model.decoder, visual, batch)
        return answer_loss(read), exact_shares(read, batch)

    modules = {"vision_large": model.vision_large, "decoder": model.decoder}
    return Task(
        "answers",
        modules,
        shop.answers(0),
        loss,
        shop.schedule(ANSWERS),
        _ANSWER_LEVELS,
        frozen=("vision_large",),
    )


def joint(shop: Workshop) -> Task:
    model, device = shop.model, shop.device

    def loss(batch: AnswerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        read = read_answers(model.decoder, visual_tokens(model.vision_large, batch, device), batch)
        return answer_loss(read), exact_shares(read, batch)

    modules = {"vision_large": model.vision_large, "decoder": model.decoder}
    return Task("joint", modules, shop.answers(1), loss, shop.schedule(JOINT), first_level=_TOP)


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
    )
