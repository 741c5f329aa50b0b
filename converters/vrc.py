"""The Visual Resolution Compressor's one signature, `route`."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from converters.lowering import Component, Traced
from hypervl.vrc import VRC, ConvNorm


def signatures(vrc: VRC) -> list[Traced]:
    side = vrc.config.image_size
    return [Traced("route", Route(fold_norms(vrc)), {"images": torch.zeros(1, side, side, 3)})]


class Route(Component):
    """images [1, S, S, 3] in [0, 1] -> scale_logits [1, scales]."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"scale_logits": self.component(images)}


def fold_norms(vrc: VRC) -> VRC:
    """A copy whose BatchNorms have become part of the convolutions in front of them."""
    folded = copy.deepcopy(vrc)
    for block in folded.modules():
        if isinstance(block, ConvNorm):
            block.conv = fuse_conv_bn_eval(block.conv, block.norm)
            block.norm = nn.Identity()  # type: ignore[assignment]
    return folded
