"""The stages of training a panel reader, as data: what each trains, on what, with which loss.

1. `primer`: the large branch's stem learns letters from pages full of them.
2. `dense`: the large branch learns to read panels, one answer per patch and per visual token.
3. `answers`: the decoder learns to answer from the large branch's visual tokens.
4. `joint`: the large branch and the decoder together.
5. `dense`, of the base branch, which begins as every other layer of the large one.
6. `dcl`: the base branch under the same decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from hypervl.config import HyperVLConfig
from hypervl.decoder import Decoder
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
from hypervl.training.guides import Guide, Overheard
from hypervl.training.looked_at import LookedAt, LookedAtSource, look_at_all
from hypervl.training.loop import Curriculum, Schedule, Task
from hypervl.training.panel_data import LEVELS, DenseBatch, DenseSource, PrimerBatch, PrimerSource
from hypervl.training.targets import Cells
from hypervl.training.together import Modules
from hypervl.vision import VisionBranch

# Steps and highest rates that suit `nano`. A panel of 12 elements is level 2; levels rise with what is
# read right.
PRIMER = Schedule(1500, 1.4e-3, 4e-3, batches=2)
FRESH_HEADS = Schedule(150, 1.4e-3, batches=2)
DENSE_AGAIN = Schedule(1700, 8e-4, 2.4e-3, warmup=50, batches=2)
DENSE = Schedule(3200, 1e-3, 3e-3, batches=2)
ANSWERS = Schedule(1050, 1.4e-3, 4e-3, warmup=50, batches=2)
JOINT = Schedule(320, 5e-4, 1.5e-3, warmup=20, batches=2)
DENSE_BASE = Schedule(450, 8e-4, 2.4e-3, warmup=30, batches=2)
DCL = Schedule(200, 7e-4, 2e-3, warmup=20, batches=2)
_DENSE_LEVELS = Curriculum("read", (0.3, 0.4))
LOOKED_AT = 700  # batches of pictures for the decoder, which goes through them several times
_TILES_PER_FILE = 10
DENSE_WEIGHT = 0.2  # of the dense loss, a sum over many fields, beside that of the answers
_TOP = len(LEVELS) - 1
_HEADS = ("heads",)
TOKENIZER_FOLDER = "tokenizer"  # in the work folder
_LAYERS = "encoder.layers."


@dataclass(frozen=True)
class Workshop:
    """What all stages of one training share."""

    model: HyperVL
    work: Path
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

    @cached_property
    def guide(self) -> Guide:
        """Of the decoder."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return Guide(self.config.decoder).to(self.device)

    @property
    def tokenizer(self) -> Path:
        """Folder with the checkpoint's tokenizer."""
        return self.work / TOKENIZER_FOLDER

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
    device = shop.device
    cell = 2 ** len(shop.config.vision_large.stem_channels)
    source = PrimerSource(shop.config.tiling.tile_side, cell, seed=shop.seed)

    def loss(modules: Modules, batch: PrimerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        images = torch.from_numpy(batch.images).to(device).float() / 255
        seen = _branch(modules, "vision_large").look(images)
        characters = torch.from_numpy(batch.characters).to(device).long()
        value, right = read_characters(_heads(modules), seen, characters)
        return value, {"character": right}

    modules = {"vision_large": shop.model.vision_large, "heads": shop.heads}
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
    return _dense(shop, "vision_large", shop.heads, DENSE, _DENSE_LEVELS, 0)


def _dense(
    shop: Workshop,
    branch: str,
    heads: DenseHeads,
    schedule: Schedule,
    levels: Curriculum,
    first_level: int,
) -> Task:
    device = shop.device
    source = DenseSource(vision_spec(shop.config), Cells.of(shop.config.vision_large), seed=shop.seed)

    def loss(modules: Modules, batch: DenseBatch) -> tuple[Tensor, dict[str, Tensor]]:
        images = torch.from_numpy(batch.images).to(device).float() / 255
        look = look_at(_branch(modules, branch), images)
        return dense_loss(_heads(modules), look, batch.targets)

    return Task(
        branch.replace("vision", "dense"),
        {branch: getattr(shop.model, branch), "heads": heads},
        source,
        loss,
        shop.schedule(schedule),
        levels,
        first_level,
        classifiers=_HEADS,
    )


def dense_base(shop: Workshop) -> Task:
    """The base branch begins as every other layer of the large one, and learns to read with fewer. Its visual
    tokens still mean what the large one's do: the heads are copies of those that read them."""
    heads = copy.deepcopy(shop.heads)

    def begin(pool: ProcessPoolExecutor | None, on_file: Callable[[int, int], None]) -> None:
        begin_base_branch(shop.model)
        heads.load_state_dict(shop.heads.state_dict())

    task = _dense(shop, "vision_base", heads, DENSE_BASE, Curriculum(), _TOP)
    return replace(task, prepare=begin)


def begin_base_branch(model: HyperVL) -> None:
    """Makes the base branch a copy of the large one with evenly spaced layers of it (as DistilBERT begins,
    Sanh et al. 2019)."""
    base, large = model.vision_base, model.vision_large
    step = len(large.encoder.layers) / len(base.encoder.layers)
    own = base.state_dict()
    for name in own:
        source = name
        if name.startswith(_LAYERS):
            number, _, rest = name.removeprefix(_LAYERS).partition(".")
            source = f"{_LAYERS}{int(int(number) * step)}.{rest}"
        own[name] = large.state_dict()[source]
    base.load_state_dict(own)


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


def dense_again(shop: Workshop) -> Task:
    """What `dense` does, for a branch that has been through it."""
    task = dense(shop)
    schedule = shop.schedule(DENSE_AGAIN)
    return replace(task, schedule=schedule, curriculum=Curriculum(), first_level=_TOP)


def answers(shop: Workshop) -> Task:
    """The decoder learns to answer from the visual tokens as they are, of pictures that are encoded once."""
    device, schedule = shop.device, shop.schedule(ANSWERS)
    source = replace(shop.answers(0), tiles=_TILES_PER_FILE)
    files = max(1, round(LOOKED_AT * shop.scale))
    looked = LookedAtSource(shop.work / "looked_at", files, schedule.steps * schedule.batches, shop.seed)

    def prepare(pool: ProcessPoolExecutor | None, on_file: Callable[[int, int], None]) -> None:
        branch = shop.model.vision_large
        look_at_all(source, _TOP, branch, looked, device, pool, lambda done: on_file(done, files))

    def loss(modules: Modules, one: LookedAt) -> tuple[Tensor, dict[str, Tensor]]:
        overheard = Overheard(cast(Guide, modules["guide"]), one.batch)
        visual = torch.from_numpy(one.tokens).to(device).float()
        read = read_answers(_decoder(modules), visual, one.batch, overheard.hear)
        losses = {"answers": answer_loss(read), **overheard.losses()}
        return torch.stack(list(losses.values())).sum(), {**losses, **exact_shares(read, one.batch)}

    modules = {"decoder": shop.model.decoder, "guide": shop.guide}
    return Task(
        "answers",
        modules,
        looked,
        loss,
        schedule,
        first_level=_TOP,
        classifiers=("guide",),
        prepare=prepare,
    )


def joint(shop: Workshop) -> Task:
    """Answers teach the branch, too, beside its dense targets. The decoder is still told where to look, not
    what it sees there: a fresh guide outweighed the answers for a hundred steps, which got worse."""
    device, guide = shop.device, shop.guide

    def loss(modules: Modules, batch: AnswerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        found = looks(_branch(modules, "vision_large"), batch, device)
        overheard = Overheard(guide, batch)
        read = read_answers(_decoder(modules), joined(found), batch, overheard.hear)
        losses = {"answers": answer_loss(read), "pointing": overheard.pointing()}
        pixels = sum(tiles.size for tiles in batch.tiles)
        shares: dict[str, Tensor] = {}
        for look, targets, tiles in zip(found, batch.dense, batch.tiles, strict=True):
            value, right = dense_loss(_heads(modules), look, targets)
            losses["dense"] = losses.get("dense", 0) + value * (DENSE_WEIGHT * tiles.size / pixels)
            shares = shares or right  # of the first side
        return torch.stack(list(losses.values())).sum(), {**losses, **exact_shares(read, batch), **shares}

    return Task(
        "joint",
        {"vision_large": shop.model.vision_large, "decoder": shop.model.decoder, "heads": shop.heads},
        shop.answers(1),
        loss,
        shop.schedule(JOINT),
        first_level=_TOP,
        classifiers=_HEADS,
        rest_norms=True,
    )


def dcl(shop: Workshop, what: Consistency, name: str = "dcl") -> Task:
    """The base branch; the large branch and the decoder, which both serve, stay as they are."""
    model, device = shop.model, shop.device

    def loss(modules: Modules, batch: AnswerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        decoder = _decoder(modules)
        student = read_answers(decoder, visual_tokens(_branch(modules, "vision_base"), batch, device), batch)
        shares, logits, visual = exact_shares(student, batch), None, None
        with torch.no_grad():
            if what.kl or what.features:
                visual = visual_tokens(_branch(modules, "vision_large"), batch, device)
            if what.kl and visual is not None:
                teacher = read_answers(decoder, visual, batch)
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


def _branch(modules: Modules, name: str) -> VisionBranch:
    return cast(VisionBranch, modules[name])


def _decoder(modules: Modules) -> Decoder:
    return cast(Decoder, modules["decoder"])


def _heads(modules: Modules) -> DenseHeads:
    return cast(DenseHeads, modules["heads"])
