"""One vision branch: a SigLIP / SigLIP2 vision tower, pixel shuffle and projector.

Choices:
- Tensor names are those of Hugging Face's vision towers, so that their weights load as they are (the pooling
  head is left out: an image-text model reads the patches).
- Pictures come in as the runtime has them, NHWC in [0, 1]; the normalisation is folded into the patch
  convolution (exact: a convolution is linear and the patches do not overlap the border). With a convolutional
  stem, which does pad, it stays an operation of its own.
- What depends only on the tile side (folded convolution, interpolated positions) is in `TileConstants`, so
  that an export bakes it into the graph and no graph resizes a constant.
- Attention is written out at rank 4; nothing exceeds rank 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypervl.attention import products, rotate, weighted_sum
from hypervl.config import VisionConfig
from hypervl.conv_norm import ConvNorm
from hypervl.norms import LayerNorm
from hypervl.projector import Projector, pixel_shuffle


class TileConstants(NamedTuple):
    """What one branch needs to know about one tile side."""

    patch_weight: Tensor  # [d, 3, P, P], normalisation folded in; behind a stem [d, channels, p, p]
    patch_bias: Tensor  # [d]
    positions: Tensor  # [1, patches, d], row-major
    rope_cos: Tensor | None  # [1, 1, patches, head_dim / 2]; None without rotary positions
    rope_sin: Tensor | None


class VisionBranch(nn.Module):
    """`images` [N, side, side, 3] float in [0, 1] -> visual tokens [N, (side / patch / shuffle)^2, decoder
    hidden].

    `side` may be any multiple of `patch_size * pixel_shuffle`. Tokens are in row-major order.
    """

    def __init__(
        self,
        config: VisionConfig,
        decoder_hidden: int,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.config = config
        # Not buffers: they belong to the preprocessor's config, and a module built on "meta" would lose them.
        self.mean, self.std = tuple(mean), tuple(std)
        self.stem = Stem(config.stem_channels, config.stem_dilations)
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        shuffled = config.hidden_size * config.pixel_shuffle**2
        self.projector = Projector(shuffled, decoder_hidden, config.layer_norm_eps)

    def forward(self, images: Tensor, constants: TileConstants | None = None) -> Tensor:
        return self.project(self.encode(images, constants))

    def encode(self, images: Tensor, constants: TileConstants | None = None) -> Tensor:
        """Patch features [N, patches, d] behind `post_layernorm`: transformers' `last_hidden_state`."""
        return self.transform(self.look(images), constants or self.constants(images.shape[1]))

    def look(self, images: Tensor) -> Tensor:
        """What the patch embedding reads, NCHW: the pictures themselves, or what the stem makes of them."""
        x = images.permute(0, 3, 1, 2)
        if not self.config.stem_channels:
            return x
        mean, std = (x.new_tensor(v).reshape(1, 3, 1, 1) for v in (self.mean, self.std))
        features: Tensor = self.stem((x - mean) / std)
        return features

    def transform(self, x: Tensor, constants: TileConstants) -> Tensor:
        """From `look` to patch features [N, patches, d]."""
        weight, bias, positions, *rope = constants
        x = F.conv2d(x, weight, bias, stride=weight.shape[-1])
        x = x.permute(0, 2, 3, 1).flatten(1, 2) + positions
        features: Tensor = self.post_layernorm(self.encoder(x, *rope))
        return features

    def project(self, patches: Tensor) -> Tensor:
        """Patch features [N, patches, d] of square tiles to visual tokens [N, tokens, decoder hidden]."""
        count, total, width = patches.shape
        grid = math.isqrt(total)
        squares = pixel_shuffle(patches.reshape(count, grid, grid, width), self.config.pixel_shuffle)
        tokens: Tensor = self.projector(squares)
        return tokens

    def constants(self, side: int, embedding: tuple[Tensor, Tensor] | None = None) -> TileConstants:
        """The constants of tile side `side` px; an export computes them once and keeps them. `embedding` is
        `folded_patch_embedding`, for one who has it already."""
        weight, bias = embedding or self.folded_patch_embedding()
        return TileConstants(weight, bias, self.positions(side), *self.rotary_table(side))

    def folded_patch_embedding(self) -> tuple[Tensor, Tensor]:
        """Weight [d, 3, P, P] and bias [d] of the patch convolution for pictures in [0, 1]; as they are
        behind a stem.

        `conv((x - mean) / std)` is `conv'(x)` with `w' = w / std` and `b' = b - sum(w * mean / std)`.
        """
        conv = self.embeddings.patch_embedding
        assert conv.bias is not None
        if self.config.stem_channels:
            return conv.weight, conv.bias
        mean = torch.tensor(self.mean, dtype=conv.weight.dtype).reshape(1, 3, 1, 1)
        weight = conv.weight / torch.tensor(self.std, dtype=conv.weight.dtype).reshape(1, 3, 1, 1)
        return weight, conv.bias - (weight * mean).sum((1, 2, 3))

    def positions(self, side: int) -> Tensor:
        """Position table for tile side `side` px: [1, patches, d], interpolated from the learned grid.

        "bilinear" resizes as `Siglip2VisionModel` (antialiased), "bicubic" as `SiglipVisionModel` with
        `interpolate_pos_encoding`.
        """
        config, table = self.config, self.embeddings.position_embedding.weight
        learned, grid = config.image_size // config.patch_size, side // config.patch_size
        if grid == learned:
            return table.unsqueeze(0)
        # PyTorch has no antialiased resize in fp16 on a CPU; Siglip2VisionModel goes through float32 as well.
        square = table.float().reshape(1, learned, learned, -1).permute(0, 3, 1, 2)
        mode = config.position_interpolation
        smooth = mode == "bilinear"
        resized = F.interpolate(square, (grid, grid), mode=mode, align_corners=False, antialias=smooth)
        return resized.flatten(2).transpose(1, 2).to(table.dtype)

    def rotary_table(self, side: int) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Cosines and sines [1, 1, patches, head_dim / 2] of a tile of `side` px: half of the pairs turn by
        the row, half by the column. Neighbours are one apart at every side, so that what is learned about
        the patch to the right holds everywhere (as in Qwen2-VL, arXiv 2409.12191)."""
        config = self.config
        if not config.rotary:
            return None, None
        grid, pairs = side // config.patch_size, config.hidden_size // config.num_attention_heads // 4
        device = self.embeddings.position_embedding.weight.device
        frequencies = _ROTARY_THETA ** (-torch.arange(pairs, dtype=torch.float32, device=device) / pairs)
        angles = torch.arange(grid, dtype=torch.float32, device=device)[:, None] * frequencies
        rows = angles[:, None].expand(grid, grid, pairs)
        columns = angles[None].expand(grid, grid, pairs)
        both = torch.cat([rows, columns], -1).reshape(1, 1, grid * grid, 2 * pairs)
        return both.cos(), both.sin()


_ROTARY_THETA = 100.0  # a tile has tens of patches a side


def patch_convolution_weight(linear_weight: Tensor, patch_size: int) -> Tensor:
    """Turns the patch weight of a NaFlex SigLIP2, linear [d, P * P * 3], into [d, 3, P, P]."""
    return linear_weight.reshape(-1, patch_size, patch_size, 3).permute(0, 3, 1, 2).contiguous()


class Stem(nn.Sequential):
    """Convolutions 3x3 with BatchNorm and ReLU6, first of stride 2, then residual: [N, 3, S, S] ->
    [N, channels[-1], S / 2^n, S / 2^n].

    A small model learns to read from few pictures this way (Xiao et al. 2021, "Early convolutions help
    transformers see better").
    """

    def __init__(self, channels: Sequence[int], dilations: Sequence[int]) -> None:
        super().__init__(
            *(ConvNorm(i, o, kernel=3, stride=2) for i, o in pairwise((3, *channels))),
            *(Residual(channels[-1], dilation) for dilation in dilations),
        )


class Residual(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.inner = ConvNorm(channels, channels, kernel=3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Embeddings(nn.Module):
    """Holds the two tensors; `VisionBranch.constants` says how they are used."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d, stem = config.hidden_size, config.stem_channels
        patch = config.patch_size // 2 ** len(stem)
        self.patch_embedding = nn.Conv2d(stem[-1] if stem else 3, d, patch, stride=patch)
        self.position_embedding = nn.Embedding((config.image_size // config.patch_size) ** 2, d)


class Encoder(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, rope_cos: Tensor | None = None, rope_sin: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, rope_cos, rope_sin)
        return x


class EncoderLayer(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rope_cos: Tensor | None = None, rope_sin: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), rope_cos, rope_sin)
        x = x + self.mlp(self.layer_norm2(x))
        return x


class Attention(nn.Module):
    """Every patch sees every patch; [N, patches, d] -> the same."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.heads, self.head_dim = config.num_attention_heads, d // config.num_attention_heads
        self.q_proj = nn.Linear(d, d)
        self.k_proj = nn.Linear(d, d)
        self.v_proj = nn.Linear(d, d)
        self.out_proj = nn.Linear(d, d)

    def forward(self, x: Tensor, rope_cos: Tensor | None = None, rope_sin: Tensor | None = None) -> Tensor:
        # Scaling the queries and not the scores keeps q @ k inside fp16.
        q = self._split(self.q_proj(x) * self.head_dim**-0.5)
        k, v = self._split(self.k_proj(x)), self._split(self.v_proj(x))
        if rope_cos is not None and rope_sin is not None:
            q, k = (rotate(x, rope_cos, rope_sin).to(v.dtype) for x in (q, k))
        if self.training:  # PyTorch's fused attention keeps no scores for the way back: a third less time
            y = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        else:
            y = weighted_sum(torch.softmax(products(q, k), dim=-1), v)
        mixed: Tensor = self.out_proj(y.transpose(1, 2).reshape(x.shape))
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        """[N, patches, d] -> [N, heads, patches, head_dim]"""
        return x.reshape(x.shape[0], x.shape[1], self.heads, self.head_dim).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.fc1(x), approximate="tanh")
        x = self.fc2(x)
        return x
