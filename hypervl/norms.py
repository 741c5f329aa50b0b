"""RMSNorm and LayerNorm that cannot overflow in fp16.

A sum of squares leaves fp16's range (65,504) as soon as one activation passes 256, which real decoders do by
a factor of ten. Both norms therefore divide by `s = max(amax|x|, 1e-3)` first, so that no square exceeds 1,
and put `eps / s^2` under the root: `x / sqrt(mean(x^2) + eps) = (x/s) / sqrt(mean((x/s)^2) + eps/s^2)`, the
same number in exact arithmetic. `eps / s^2` is computed as `(sqrt(eps) / s)^2`, because eps itself is
subnormal in fp16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SMALLEST_SCALE = 1e-3


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis, as Qwen3RMSNorm and LlamaRMSNorm."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if self.training:  # in float32 or bfloat16, which need no care; PyTorch's own is several times faster
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        scale = _scale(x)
        x = x / scale
        return x * _inverse_deviation(x, scale, self.eps) * self.weight


class LayerNorm(nn.Module):
    """`(x - mean) / sqrt(var + eps) * weight + bias` over the last axis, as `torch.nn.LayerNorm`."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        scale = _scale(x)
        x = x / scale  # before the mean: a sum of large values overflows as well
        x = x - x.mean(-1, keepdim=True)
        return x * _inverse_deviation(x, scale, self.eps) * self.weight + self.bias


def _scale(x: Tensor) -> Tensor:
    return x.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST_SCALE)


def _inverse_deviation(scaled: Tensor, scale: Tensor, eps: float) -> Tensor:
    floor = eps**0.5 / scale
    return torch.rsqrt((scaled * scaled).mean(-1, keepdim=True) + floor * floor)
