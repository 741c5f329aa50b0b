"""The loss of answers: pictures through a branch, sequences through the decoder, differentiable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hypervl.decoder import Decoder
from hypervl.training.answer_data import AnswerBatch
from hypervl.training.batched_decoder import Hear, hidden_states, unheard
from hypervl.training.dense import Look, look_at
from hypervl.training.targets import IGNORE
from hypervl.vision import VisionBranch
from vqa.panels.scene import DISPLAY


class Read(NamedTuple):
    """What the decoder makes of a batch; one row per token of an answer (`AnswerBatch.target`)."""

    logits: Tensor  # [n, vocab]
    targets: Tensor  # [n]
    visual: Tensor  # [visual tokens, hidden], of all tiles in the batch's order


def looks(branch: VisionBranch, batch: AnswerBatch, device: torch.device) -> list[Look]:
    """What a branch makes of the tiles of a batch, side by side."""
    return [look_at(branch, torch.from_numpy(tiles).to(device).float() / 255) for tiles in batch.tiles]


def joined(found: Sequence[Look]) -> Tensor:
    """[visual tokens, hidden], in the order that `AnswerBatch.visual` counts in."""
    return torch.cat([look.tokens.flatten(0, 1) for look in found])


def visual_tokens(branch: VisionBranch, batch: AnswerBatch, device: torch.device) -> Tensor:
    """[visual tokens, hidden] of all tiles of a batch."""
    return joined(looks(branch, batch, device))


def read_answers(decoder: Decoder, visual: Tensor, batch: AnswerBatch, hear: Hear = unheard) -> Read:
    device = visual.device
    where, segment, position, target, ids = (
        torch.from_numpy(a).to(device)
        for a in (batch.visual, batch.segment, batch.position, batch.target, batch.ids)
    )
    shown = (where >= 0)[..., None]
    embeddings = torch.where(
        shown, visual[where.clamp(min=0)].to(decoder.embed_tokens.weight.dtype), decoder.embed_tokens(ids)
    )
    states = hidden_states(decoder, embeddings, position, sees(segment), hear)
    rows = target != IGNORE
    logits = decoder.lm_head(states[rows], decoder.embed_tokens.weight)
    return Read(logits.float(), target[rows], visual)


def sees(segment: Tensor) -> Tensor:
    """[B, T] segments -> [B, T, T]: a token sees the picture and its own question up to itself."""
    tokens = segment.shape[1]
    earlier = torch.ones(tokens, tokens, dtype=torch.bool, device=segment.device).tril()
    same = segment[:, :, None] == segment[:, None, :]
    return ((segment == 0)[:, None, :] | same) & earlier


def answer_loss(read: Read) -> Tensor:
    return F.cross_entropy(read.logits, read.targets)


@torch.no_grad()
def exact_shares(read: Read, batch: AnswerBatch) -> dict[str, Tensor]:
    """Shares: "exact" of questions whose every token is the most likely one, "exact_display" of those that
    read a display, "token" of such tokens."""
    hit = (read.logits.argmax(-1) == read.targets).cpu()
    rows, columns = (batch.target != IGNORE).nonzero()
    most = int(batch.segment.max()) + 1
    numbers, order = torch.from_numpy(rows * most + batch.segment[rows, columns]).unique(return_inverse=True)
    right = torch.zeros(len(numbers)).index_add_(0, order, (~hit).float()) == 0
    shares = {"exact": right.float().mean(), "token": hit.float().mean()}
    asked = [batch.questions[number // most][number % most - 1] for number in numbers.tolist()]
    display = torch.tensor([one.type == DISPLAY for one in asked])
    if bool(display.any()):
        shares["exact_display"] = right[display].float().mean()
    return shares
