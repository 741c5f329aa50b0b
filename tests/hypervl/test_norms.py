"""The norms equal the usual ones, and stay finite in fp16 where those overflow."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from hypervl.norms import LayerNorm, RMSNorm

EPS = 1e-6


@pytest.mark.parametrize("magnitude", [1e-5, 1e-3, 1.0, 300.0, 1e5])
def test_rms_norm_equals_qwen3s_at_every_magnitude(magnitude: float) -> None:
    ours, theirs = RMSNorm(96, EPS), Qwen3RMSNorm(96, EPS)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 96) * magnitude
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("magnitude", [1e-5, 1e-3, 1.0, 300.0, 1e5])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_layer_norm_equals_torchs_at_every_magnitude(magnitude: float, offset: float) -> None:
    ours, theirs = LayerNorm(96, EPS), nn.LayerNorm(96, EPS)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    x = (torch.randn(2, 5, 96) + offset) * magnitude
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("magnitude", [1e-4, 1e-3, 1.0, 300.0, 2e4])
def test_in_fp16_a_norm_is_as_good_as_in_fp32(kind: type[nn.Module], magnitude: float) -> None:
    """A square leaves fp16 above 256; `2e4` is what a real decoder's largest channels reach."""
    x = (torch.randn(3, 512) * magnitude).clamp(-6e4, 6e4).half()
    norm = kind(512, EPS)
    exact = norm(x.float())
    halved = norm.half()(x)
    assert halved.dtype == torch.float16
    torch.testing.assert_close(halved.float(), exact, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_zeros_stay_zeros(kind: type[nn.Module]) -> None:
    for dtype in (torch.float32, torch.float16):
        assert kind(8, EPS).to(dtype)(torch.zeros(2, 8, dtype=dtype)).eq(0).all()
