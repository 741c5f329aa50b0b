"""Linear layers as a symmetric 4-bit grid and one offset per block: asymmetric quantisation.

TFLite's 4-bit blocks are symmetric: a block that spans [-0.1, 0.3] wastes a third of its levels. Here each
block of 32 inputs gets `w = d (q - 8) + o` with 16 levels between its own smallest and largest weight. The
grid `d (q - 8)` is an ordinary block-wise int4 matrix; the offsets `o` are constant over a block, so that
their share of the product needs only the block's sum of inputs:

    y = x @ grid.T + block_sums(x) @ offsets.T

The offsets are a 32 times smaller matrix, kept in int8: a quarter of a bit per weight. Weights that were
quantised asymmetrically before, as those of a GGUF Q4_1 file, come out as they were. docs/quantization.md has
the measured gain.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 32  # inputs that share a scale and an offset
_SMALLEST_STEP = 1e-5  # of a block whose weights are all alike


class BlockOffsetLinear(nn.Module):
    """[1, T, inputs] -> [1, T, outputs]; the grid has the layer's name, the offsets `.offsets`."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        grid, offsets = split(weight)
        self.grid = nn.Parameter(grid, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.offsets = nn.Linear(offsets.shape[1], offsets.shape[0], bias=False, device="meta")
        self.offsets.weight = nn.Parameter(offsets, requires_grad=False)

    def forward(self, x: Tensor, *unused: Tensor) -> Tensor:
        """`unused` is what a tied head is given besides: the token table."""
        sums = x.reshape(1, x.shape[1], -1, BLOCK).sum(-1)
        shifted: Tensor = F.linear(x, self.grid, self.bias) + self.offsets(sums)
        return shifted


def split(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Grid [outputs, inputs] and offsets [outputs, inputs / 32], float32, of `weight` [outputs, inputs].

    The steps `d` fit bfloat16, which XNNPACK keeps them in, and float16, which the file keeps them in. Every
    block uses the levels -8 and 7, so that the step can be read off the grid again.
    """
    blocks = weight.float().reshape(weight.shape[0], -1, BLOCK)
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    step = ((high - low) / 15).clamp(min=_SMALLEST_STEP).bfloat16().half().float()
    offsets = low + 8 * step
    levels = ((blocks - offsets) / step).round_().clamp_(-8, 7)
    return (levels * step).reshape(weight.shape), offsets.squeeze(-1)


def apply(module: nn.Module, scope: str) -> None:
    """Puts `BlockOffsetLinear` in place of each layer of `module` whose name matches the expression `scope`.

    A layer is a linear one, or the decoder's head, tied or not. One whose inputs are no multiple of 32 stays.
    """
    for name in [name for name, _ in module.named_modules() if re.search(scope, name)]:
        layer = module.get_submodule(name)  # by name: a list of layers would keep all old weights in memory
        weight = _weight(module, name, layer)
        if weight is not None and weight.shape[1] % BLOCK == 0:
            with torch.no_grad():
                module.set_submodule(name, BlockOffsetLinear(weight, getattr(layer, "bias", None)))


def _weight(module: nn.Module, name: str, layer: nn.Module) -> Tensor | None:
    if isinstance(layer, nn.Linear):
        return layer.weight
    if name == "lm_head":  # a tied one has no weight of its own
        own = getattr(layer, "weight", None)
        return own if own is not None else module.get_parameter("embed_tokens.weight")
    return None
