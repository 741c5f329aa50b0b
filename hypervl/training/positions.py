"""Where a branch's position table begins: sines and cosines of row and column.

Random positions of the usual size are a tenth of what a patch says, and a small branch takes long to find
out which patches are neighbours. These are as large as the patches' own features, and a shift is a
rotation in them (two-dimensional, as in MAE, He et al. 2021).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hypervl.vision import VisionBranch

_LONGEST = 100.0  # wavelength base; a tile has tens of patches a side


def initialise_positions(branch: VisionBranch) -> None:
    table = branch.embeddings.position_embedding.weight
    side = branch.config.image_size // branch.config.patch_size
    with torch.no_grad():
        table.copy_(sines(side, table.shape[1]))


def sines(side: int, width: int) -> Tensor:
    """[side * side, width], row-major: a quarter each of sines and cosines of the row, then of the column."""
    quarter = width // 4
    frequencies = 1 / _LONGEST ** (torch.arange(quarter) / quarter)
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    return torch.cat([rows, columns], -1).reshape(side * side, 4 * quarter)
