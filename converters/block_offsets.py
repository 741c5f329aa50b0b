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
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 32  # inputs that share a scale and an offset
_SMALLEST_STEP = 1e-5  # of a block whose weights are all alike
_ROWS = 4096  # at a time: 16 MB of a 1024-wide head


class BlockOffsetLinear(nn.Module):
    """[1, T, inputs] -> [1, T, outputs]; the grid has the layer's name, the offsets `.offsets`."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """`weight` becomes the grid, in place."""
        super().__init__()
        offsets = split_(weight)
        self.grid = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.offsets = nn.Linear(offsets.shape[1], offsets.shape[0], bias=False, device="meta")
        self.offsets.weight = nn.Parameter(offsets, requires_grad=False)

    def forward(self, x: Tensor, *unused: Tensor) -> Tensor:
        """`unused` is what a tied head is given besides: the token table."""
        sums = x.reshape(1, x.shape[1], -1, BLOCK).sum(-1)
        shifted: Tensor = F.linear(x, self.grid, self.bias) + self.offsets(sums)
        return shifted


def split_(weight: Tensor) -> Tensor:
    """Makes `weight` [outputs, inputs] float32 the grid; returns the offsets [outputs, inputs / 32].

    The steps `d` fit bfloat16, which XNNPACK keeps them in, and float16, which the file keeps them in. Every
    block uses the levels -8 and 7, so that the step can be read off the grid again.
    """
    outputs, inputs = weight.shape
    offsets = torch.empty(outputs, inputs // BLOCK)
    for start in range(0, outputs, _ROWS):
        rows = slice(start, start + _ROWS)
        blocks = weight[rows].reshape(-1, inputs // BLOCK, BLOCK)
        low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
        step = ((high - low) / 15).clamp(min=_SMALLEST_STEP).bfloat16().half().float()
        offset = low + 8 * step
        levels = ((blocks - offset) / step).round_().clamp_(-8, 7)
        weight[rows], offsets[rows] = (levels * step).reshape(-1, inputs), offset.squeeze(-1)
    return offsets


def apply(module: nn.Module, scope: str, release: Callable[[], None] = lambda: None) -> None:
    """Puts `BlockOffsetLinear` in place of each layer of `module` whose name matches the expression `scope`.

    A layer is a linear one, or the decoder's head, tied or not: the token table of a tied one is split with
    it, and the decoder then takes embeddings that are not its `embed_tokens`, as the exported graph does. One
    whose inputs are no multiple of 32 stays. `release` is called whenever a layer was split.
    """
    for name, layer in [(n, m) for n, m in module.named_modules() if re.search(scope, n)]:
        weight = _weight(module, name, layer)
        if weight is not None and weight.shape[1] % BLOCK == 0:
            with torch.no_grad():
                module.set_submodule(name, BlockOffsetLinear(weight, getattr(layer, "bias", None)))
            release()


def _weight(module: nn.Module, name: str, layer: nn.Module) -> Tensor | None:
    if isinstance(layer, nn.Linear):
        return layer.weight
    if name == "lm_head":  # a tied one has no weight of its own
        own = getattr(layer, "weight", None)
        return own if own is not None else module.get_parameter("embed_tokens.weight")
    return None
