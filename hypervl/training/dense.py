"""Dense heads: linear readings of patch features and of visual tokens, for pretraining a branch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypervl.config import VisionConfig
from hypervl.training.targets import CHARACTERS, FIELDS, IGNORE, VALUE_CHARACTERS, DenseTargets
from hypervl.vision import VisionBranch

# Of a field's loss; else 1. The seven characters of a value together weigh as much as two words.
_WEIGHTS = {
    **dict.fromkeys(("suffix", "unit", "full_scale", "magnitude", "middle", "place"), 0.5),
    **{field: 2 / VALUE_CHARACTERS for field in FIELDS if field.startswith(("value_", "read_"))},
}
_CHARACTER_WEIGHT = 3.0
_MIDDLE_RATE = 10.0  # of what a patch weighs that is the middle of its element, against one that is not
_SIZES = tuple(FIELDS.values())
_VALUES = [i for i, field in enumerate(FIELDS) if field.startswith("value_")]
_READS = [i for i, field in enumerate(FIELDS) if field.startswith("read_")]


class DenseHead(nn.Module):
    """Which kind of element each row shows, and the other fields of those that show one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kind = nn.Linear(width, FIELDS["kind"])
        self.fields = nn.Linear(width, sum(_SIZES))

    def forward(self, rows: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """`rows` [n, width], `targets` [n, fields] -> loss and shares of right answers."""
        loss = F.cross_entropy(self.kind(rows), targets[:, 0])
        # Most patches are background, which has nothing but its kind: the rest is not computed for them.
        busy = (targets[:, 1:] > 0).any(1)
        if not bool(busy.any()):
            return loss, {}
        scores, wanted = self.fields(rows[busy]).split(_SIZES, -1), targets[busy]
        right: dict[str, Tensor] = {}
        value_right = torch.ones(len(wanted), dtype=torch.bool, device=rows.device)
        read_right = value_right.clone()
        for i, (field, given) in enumerate(zip(FIELDS, scores, strict=True)):
            asked = wanted[:, i] != IGNORE
            if field == "kind" or not bool(asked.any()):
                continue
            weights = given.new_tensor((1.0, _MIDDLE_RATE)) if field == "middle" else None
            one_loss = F.cross_entropy(given, wanted[:, i], weights, ignore_index=IGNORE)
            loss = loss + _WEIGHTS.get(field, 1.0) * one_loss
            hit = given.argmax(-1) == wanted[:, i]
            if field == "word":
                right[field] = hit[asked].float().mean()
            elif i in _VALUES:
                value_right &= hit | ~asked
            elif i in _READS:
                read_right &= hit | ~asked
        shown = wanted[:, _VALUES[0]] > 0
        if bool(shown.any()):
            right["value"] = value_right[shown].float().mean()
        shown = wanted[:, _READS[0]] > 0
        if bool(shown.any()):
            right["read"] = read_right[shown].float().mean()
        return loss, right


class DenseHeads(nn.Module):
    """Read what the stem gives, patch features and visual tokens; thrown away after pretraining."""

    def __init__(self, config: VisionConfig, decoder_hidden: int) -> None:
        super().__init__()
        self.patch, self.token = DenseHead(config.hidden_size), DenseHead(decoder_hidden)
        self.character = nn.Linear(config.stem_channels[-1], 1 + len(CHARACTERS))


class Look(NamedTuple):
    """All that a branch makes of N tiles of one side on the way to its visual tokens."""

    cells: Tensor  # [N, channels, c, c], of the stem
    patches: Tensor  # [N, g * g, d]
    tokens: Tensor  # [N, tokens, hidden]


def look_at(branch: VisionBranch, images: Tensor) -> Look:
    """`images` [N, S, S, 3] in [0, 1]."""
    cells = branch.look(images)
    patches = branch.transform(cells, branch.constants(images.shape[1]))
    return Look(cells, patches, branch.project(patches))


def dense_loss(heads: DenseHeads, look: Look, targets: DenseTargets) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and shares of right answers: "character" of the stem's cells, "word", "value" and "read" (all
    characters) of patches, and the same of the visual tokens as "token_..."."""
    patches, tokens, characters = (
        torch.from_numpy(t).to(look.cells.device).long()
        for t in (targets.patches, targets.tokens, targets.characters)
    )
    loss, shares = heads.patch(look.patches.flatten(0, 1), patches.flatten(0, 2))
    token_loss, token_shares = heads.token(look.tokens.flatten(0, 1), tokens.flatten(0, 2))
    character_loss, right = read_characters(heads, look.cells, characters)
    loss = loss + token_loss + _CHARACTER_WEIGHT * character_loss
    return loss, {"character": right, **shares, **{f"token_{k}": v for k, v in token_shares.items()}}


def read_characters(heads: DenseHeads, seen: Tensor, characters: Tensor) -> tuple[Tensor, Tensor]:
    """What the stem's output `seen` [N, channels, c, c] says of `characters` [N, c, c]: loss, and the
    share of the cells with a character that are right."""
    cells, wanted = seen.permute(0, 2, 3, 1).flatten(0, 2), characters.flatten()
    # Cells without a character teach little: one in seven is enough, of every column and row.
    seldom = torch.arange(len(wanted), device=wanted.device) % 7 == 0
    rows = (wanted > 0) | ((wanted == 0) & seldom)
    scores, wanted = heads.character(cells[rows]), wanted[rows]
    right = (scores.argmax(-1) == wanted)[wanted > 0].float()
    return F.cross_entropy(scores, wanted), right.mean()
