"""A vision branch in operations that NNAPI has.

No Android has NNAPI's batched matrix product (it came with feature level 6) nor a GELU, and a fully connected
layer keeps more than two dimensions from level 30 on only. So everything between the patches and the visual
tokens is of rank 2 here: attention head by head, as fully connected layers whose weights are the keys, then
the values; GELU is written out. The numbers are the same but for rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from converters.vision import Tile
from hypervl.projector import Projector, pixel_shuffle
from hypervl.vision import MLP, Attention, EncoderLayer, VisionBranch


class FlatTile(Tile):
    """images [1, side, side, 3] in [0, 1] -> visual_tokens [1, (side / patch_px)^2, decoder hidden]."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        branch, weight = self.component, self.patch_weight
        assert isinstance(branch, VisionBranch)
        x = F.conv2d(branch.look(images), weight, self.patch_bias, stride=weight.shape[-1])
        width, grid = x.shape[1], x.shape[2]
        x = x.permute(0, 2, 3, 1).reshape(grid * grid, width) + self.positions[0]
        for layer in branch.encoder.layers:
            assert isinstance(layer, EncoderLayer)
            x = x + self._attend(layer.self_attn, layer.layer_norm1(x))
            x = x + _mlp(layer.mlp, layer.layer_norm2(x))
        squares = branch.post_layernorm(x).reshape(1, grid, grid, width)
        tokens = _project(branch.projector, pixel_shuffle(squares, branch.config.pixel_shuffle)[0])
        return {"visual_tokens": tokens.unsqueeze(0)}

    def _attend(self, attention: Attention, x: Tensor) -> Tensor:
        """[patches, d] -> the same."""
        size = attention.head_dim
        q, k = attention.q_proj(x) * size**-0.5, attention.k_proj(x)
        v = attention.v_proj(x).transpose(0, 1)
        heads = []
        for start in range(0, size * attention.heads, size):
            q_head, k_head = (self._turn(part[:, start : start + size]) for part in (q, k))
            seen = torch.softmax(F.linear(q_head, k_head), dim=-1)
            heads.append(F.linear(seen, v[start : start + size]))
        mixed: Tensor = attention.out_proj(torch.cat(heads, dim=-1))
        return mixed

    def _turn(self, x: Tensor) -> Tensor:
        """One head's rotary positions, where the branch has them."""
        if self.rope_cos is None or self.rope_sin is None:
            return x
        cos, sin = self.rope_cos[0, 0], self.rope_sin[0, 0]
        half = x.shape[-1] // 2
        a, b = x[:, :half], x[:, half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _mlp(mlp: MLP, x: Tensor) -> Tensor:
    out: Tensor = mlp.fc2(_gelu(mlp.fc1(x)))
    return out


def _project(projector: Projector, x: Tensor) -> Tensor:
    out: Tensor = projector.linear_2(_gelu(projector.linear_1(projector.norm(x))))
    return out


def _gelu(x: Tensor) -> Tensor:
    """`F.gelu(x, approximate="tanh")`: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
    return x * (torch.tanh(inner) * 0.5 + 0.5)
