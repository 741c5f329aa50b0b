"""The Visual Resolution Compressor's one signature, `route`."""

from __future__ import annotations

import torch
from torch import Tensor

from converters.folding import fold_norms
from converters.lowering import Component, Traced
from hypervl.vrc import VRC


def signatures(vrc: VRC) -> list[Traced]:
    side = vrc.config.image_size
    return [Traced("route", Route(fold_norms(vrc)), {"images": torch.zeros(1, side, side, 3)})]


class Route(Component):
    """images [1, S, S, 3] in [0, 1] -> scale_logits [1, scales]."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"scale_logits": self.component(images)}
