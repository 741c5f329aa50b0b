"""Dense heads: linear readings of patch features and of visual tokens, for pretraining a branch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypervl.config import VisionConfig
from hypervl.projector import pixel_shuffle
from hypervl.training.targets import CHARACTERS, FIELDS, IGNORE, VALUE_CHARACTERS
from hypervl.vision import VisionBranch

# Of a field's loss; else 1. The seven characters of a value together weigh as much as two words.
_WEIGHTS = {
    **{"suffix": 0.5, "unit": 0.5, "state": 0.5, "colour": 0.5},
    **{field: 2 / VALUE_CHARACTERS for field in FIELDS if field.startswith(("value_", "read_"))},
}
_CHARACTER_WEIGHT = 3.0
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
            one_loss = F.cross_entropy(given, wanted[:, i], ignore_index=IGNORE)
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


def dense_loss(
    branch: VisionBranch,
    heads: DenseHeads,
    images: Tensor,
    targets: Tensor,
    token_targets: Tensor,
    characters: Tensor,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`images` [N, S, S, 3] in [0, 1]; `targets` [N, g, g, fields], `token_targets` [N, g/2, g/2, fields],
    `characters` [N, c, c].

    Gives the loss, and shares of right answers: "character" of the stem's cells, "word" and "value" (all
    characters) of patches, and the same of the visual tokens as "token_...".
    """
    seen = branch.look(images)
    patches = branch.transform(seen, branch.constants(images.shape[1]))
    count, grid = targets.shape[0], targets.shape[1]
    squares = patches.reshape(count, grid, grid, patches.shape[-1])
    tokens = branch.projector(pixel_shuffle(squares, branch.config.pixel_shuffle))
    loss, shares = heads.patch(patches.flatten(0, 1), targets.flatten(0, 2))
    token_loss, token_shares = heads.token(tokens.flatten(0, 1), token_targets.flatten(0, 2))
    character_loss, right = read_characters(heads, seen, characters)
    loss = loss + token_loss + _CHARACTER_WEIGHT * character_loss
    return loss, {"character": right, **shares, **{f"token_{k}": v for k, v in token_shares.items()}}


def read_characters(heads: DenseHeads, seen: Tensor, characters: Tensor) -> tuple[Tensor, Tensor]:
    """What the stem's output `seen` [N, channels, c, c] says of `characters` [N, c, c]: loss, and the
    share of the cells with a character that are right."""
    cells, wanted = seen.permute(0, 2, 3, 1).flatten(0, 2), characters.flatten()
    # Cells without a character teach little: one in eight is enough.
    rows = (wanted > 0) | ((wanted == 0) & (torch.rand(wanted.shape, device=wanted.device) < 0.125))
    scores, wanted = heads.character(cells[rows]), wanted[rows]
    right = (scores.argmax(-1) == wanted)[wanted > 0].float().mean()
    return F.cross_entropy(scores, wanted), right
