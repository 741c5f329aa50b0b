"""Asymmetric 4-bit blocks out of a symmetric grid and offsets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from converters import block_offsets
from converters.lowering import Component, Traced, lower
from converters.quantize import quantize_component
from converters.recipes import RECIPES
from rpi_runtime.backends.select import open_graph
from rpi_runtime.manifest import DECODER


def weights(outputs: int = 48, inputs: int = 96) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)) * 0.05 + 0.01


def split_and_put_together(weight: torch.Tensor) -> torch.Tensor:
    grid = weight.clone()
    offsets = block_offsets.split_(grid)
    return grid + offsets.repeat_interleave(block_offsets.BLOCK, dim=1)


def test_every_weight_is_within_half_a_step_of_its_own() -> None:
    w = weights()
    blocks = w.reshape(48, 3, 32)
    step = (blocks.amax(-1) - blocks.amin(-1)) / 15
    error = (split_and_put_together(w) - w).abs().reshape(48, 3, 32).amax(-1)
    assert (error <= step * 0.57).all()  # steps are rounded to 8 bits: 7 of them may be 0.4 % too short


def test_weights_that_were_quantised_asymmetrically_come_out_as_they_were() -> None:
    generator = torch.Generator().manual_seed(2)
    levels = torch.randint(0, 16, (8, 4, 32), generator=generator)
    levels[..., 0], levels[..., 1] = 0, 15
    step = (torch.rand(8, 4, 1, generator=generator) * 0.01 + 0.01).bfloat16().float()
    w = (levels * step + torch.randn(8, 4, 1, generator=generator) * 0.1).reshape(8, 128)
    assert torch.allclose(split_and_put_together(w), w, atol=1e-6)


def test_a_block_of_equal_weights_is_exact() -> None:
    w = torch.full((4, 64), 0.3)
    assert torch.allclose(split_and_put_together(w), w, atol=1e-6)


def test_it_is_closer_than_symmetric_blocks() -> None:
    w = weights()
    blocks = w.reshape(48, 3, 32)
    step = blocks.abs().amax(-1, keepdim=True) / 7
    symmetric = (step * (blocks / step).round()).reshape(48, 96)
    error = (split_and_put_together(w) - w).norm()
    assert error < 0.8 * (symmetric - w).norm()


def test_the_layer_computes_what_its_weights_say() -> None:
    w, bias, x = weights(), torch.randn(48), torch.randn(1, 5, 96)
    expected = nn.functional.linear(x, split_and_put_together(w), bias)
    layer = block_offsets.BlockOffsetLinear(w, bias)
    assert torch.allclose(layer(x), expected, atol=1e-5)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(96, 64, bias=False)])
        self.lm_head = nn.Linear(64, 64, bias=False)
        nn.init.normal_(self.layers[0].weight, 0.02, 0.05, torch.Generator().manual_seed(3))
        nn.init.eye_(self.lm_head.weight)


class Traceable(Component):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        component = self.component
        return {"y": component.lm_head(component.layers[0](x))}  # type: ignore[operator, index, union-attr]


def test_the_graph_keeps_grid_and_offsets_through_quantising(tmp_path: Path) -> None:
    """What the int4 recipe makes of a layer differs from the split layer only by activations in int8."""
    module = Layers()
    dense = split_and_put_together(module.layers[0].weight.detach())  # type: ignore[arg-type]
    recipe = RECIPES[DECODER]["int4"]
    block_offsets.apply(module, recipe.block_offsets)
    assert isinstance(module.layers[0], block_offsets.BlockOffsetLinear)
    assert isinstance(module.lm_head, nn.Linear)
    lower([Traced("one", Traceable(module), {"x": torch.empty(1, 4, 96)})], tmp_path / "float.tflite")
    quantize_component(tmp_path / "float.tflite", recipe, tmp_path / "int4.tflite")
    x = np.random.default_rng(0).standard_normal((1, 4, 96)).astype(np.float32)
    graph = open_graph(tmp_path / "int4.tflite", threads=1)
    y = graph.runner("one").run({"x": x})["y"]
    graph.close()
    expected = x @ dense.numpy().T
    assert np.abs(y - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_split_whether_it_is_tied_or_not(tied: bool) -> None:
    from hypervl.config import DecoderConfig
    from hypervl.decoder import Decoder, attention_mask, rope_table

    config = DecoderConfig(64, 96, 1, 2, 1, 32, vocab_size=50, tie_word_embeddings=tied)
    decoder = Decoder(config).requires_grad_(False)
    for p in decoder.parameters():
        nn.init.normal_(p, 0, 0.1, torch.Generator().manual_seed(4))
    head = decoder.embed_tokens.weight if tied else decoder.lm_head.weight
    assert head is not None
    cos, sin = rope_table(torch.arange(3), 32, 1e4)
    inputs = (torch.randn(1, 3, 64), cos, sin, attention_mask(3), decoder.empty_kv())
    before, _ = decoder(*inputs)
    block_offsets.apply(decoder, "lm_head")
    after, _ = decoder(*inputs)
    assert not torch.equal(before, after)
    assert torch.allclose(before, after, atol=0.2 * before.abs().max().item())
