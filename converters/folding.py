"""BatchNorms become part of the convolutions in front of them: a graph has no op of its own for them."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hypervl.conv_norm import ConvNorm

M = TypeVar("M", bound=nn.Module)


def fold_norms(module: M) -> M:
    """A copy without BatchNorms, which computes the same."""
    folded = copy.deepcopy(module)
    for block in folded.modules():
        if isinstance(block, ConvNorm):
            block.conv = fuse_conv_bn_eval(block.conv, block.norm)
            block.norm = nn.Identity()  # type: ignore[assignment]
    return folded
