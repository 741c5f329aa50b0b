"""A vision branch's signatures: `tile_<side>` for each side a tile may be encoded at."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from converters.folding import fold_norms
from converters.lowering import Component, Traced
from hypervl.vision import TileConstants, VisionBranch


def signatures(
    branch: VisionBranch, tile_sides: tuple[int, ...], tile: type[Tile] | None = None
) -> list[Traced]:
    """One per tile side (px), all on one copy of the weights; `tile` is how a delegate wants it computed."""
    weight, bias = (part.contiguous() for part in branch.folded_patch_embedding())  # one copy for all
    branch = _without_norms_in_stem(branch)
    return [
        Traced(
            f"tile_{side}",
            (tile or Tile)(branch, branch.constants(side, (weight, bias))),
            {"images": torch.zeros(1, side, side, 3)},
        )
        for side in tile_sides
    ]


class Tile(Component):
    """images [1, side, side, 3] in [0, 1] -> visual_tokens [1, (side / patch_px)^2, decoder hidden]."""

    patch_weight: Tensor
    patch_bias: Tensor
    positions: Tensor
    rope_cos: Tensor | None
    rope_sin: Tensor | None

    def __init__(self, branch: VisionBranch, constants: TileConstants) -> None:
        super().__init__(branch)
        for name, value in constants._asdict().items():
            self.register_buffer(
                name, None if value is None else value.detach().contiguous(), persistent=False
            )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        constants = TileConstants(
            self.patch_weight, self.patch_bias, self.positions, self.rope_cos, self.rope_sin
        )
        return {"visual_tokens": self.component(images, constants)}


def _without_norms_in_stem(branch: VisionBranch) -> VisionBranch:
    """A branch with a folded stem that shares everything else: a deep copy would hold its weights twice."""
    folded = copy.copy(branch)
    folded._modules = dict(branch._modules)
    folded.stem = fold_norms(branch.stem)
    return folded
