"""The decoder: Qwen3 (with QK-norm) or Llama (without), over embeddings, with a KV cache that the caller
owns.

Choices:
- Embeddings in, not token ids: visual tokens and text tokens come from different places.
- The cache is an input and never an output. A call returns only the keys and values of its own tokens, and
  the caller writes them where it wants; attention reads cache and new tokens apart and normalises over both.
- Cosines, sines and the mask are inputs, so that one graph serves every position.
- The cache may hold 8-bit integers, each key and value with one scale: scores and weights are scaled, and not
  the cache.
- Keys are cached already rotated. RoPE turns the two halves of a head against each other (HF's
  `rotate_half`).
- Rank 4 everywhere: the queries that share a key/value head are stacked along the token axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypervl.attention import products, rotate, weighted_sum
from hypervl.config import DecoderConfig
from hypervl.norms import RMSNorm

MASKED = -3e4  # added to a score that must not count; far below any score, and still inside fp16


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Head(config)

    def forward(
        self,
        embeddings: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        mask: Tensor,
        kv: Sequence[Tensor],
        want_logits: bool = True,
        kv_scales: Sequence[Tensor] = (),
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Runs T new tokens behind a cache of C slots.

        `embeddings` [1, T, d]; `rope_cos`, `rope_sin` [1, 1, T, head_dim / 2] (`rope_table`); `mask`
        [1, 1, T, C + T], added to the scores (`attention_mask`); `kv` flat tensors k0, v0, k1, v1, ... of
        kv_heads * C * head_dim numbers, laid out [kv_heads, C, head_dim]; C may be 0. They may have another
        type than the weights; `kv_scales`, in the same order and flat [kv_heads * C], are what they are
        multiples of (`rpi_runtime.kv_cache`).

        Returns logits [1, T, vocab] (None unless wanted) and the new k0, v0, k1, v1, ... [1, kv_heads, T,
        head_dim].
        """
        # One mask row per query row: the queries of a group are stacked along the token axis.
        # Joined and not repeated: litert-torch lowers `repeat` through tensors of rank 8.
        mask = torch.cat([mask] * (self.config.num_attention_heads // self.config.num_key_value_heads), dim=2)
        x, new_kv = embeddings, []
        for i, layer in enumerate(self.layers):
            scales = tuple(kv_scales[2 * i : 2 * i + 2])
            x, k, v = layer(x, rope_cos, rope_sin, mask, Cached(kv[2 * i], kv[2 * i + 1], *scales))
            new_kv += [k, v]
        if not want_logits:
            return None, new_kv
        return self.lm_head(self.norm(x), self.embed_tokens.weight), new_kv

    def empty_kv(self) -> list[Tensor]:
        """The cache before the first token, with no slots."""
        return [self.embed_tokens.weight.new_empty(0) for _ in range(2 * self.config.num_hidden_layers)]


class Cached(NamedTuple):
    """Keys and values of one layer's cache, flat; numbers of their scales, where they have any."""

    keys: Tensor  # [kv_heads * C * head_dim]
    values: Tensor
    key_scales: Tensor | None = None  # [kv_heads * C]
    value_scales: Tensor | None = None


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cached: Cached
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixed, k, v = self.self_attn(self.input_layernorm(x), cos, sin, mask, cached)
        x = x + mixed
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x, k, v


class Attention(nn.Module):
    """Grouped-query attention: `heads / kv_heads` queries share one key/value head."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d, hd = config.hidden_size, config.head_dim
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, hd
        self.q_proj = nn.Linear(d, self.heads * hd, bias=False)
        self.k_proj = nn.Linear(d, self.kv_heads * hd, bias=False)
        self.v_proj = nn.Linear(d, self.kv_heads * hd, bias=False)
        self.o_proj = nn.Linear(self.heads * hd, d, bias=False)
        self.q_norm = RMSNorm(hd, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(hd, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cached: Cached
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, kv, hd = x.shape[1], self.kv_heads, self.head_dim
        slots = cached.keys.numel() // (kv * hd)
        k_cache = cached.keys.reshape(1, kv, slots, hd).to(x.dtype)
        v_cache = cached.values.reshape(1, kv, slots, hd).to(x.dtype)

        q = rotate(self.q_norm(self._split(self.q_proj(x), self.heads)).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(self._split(self.k_proj(x), kv)).transpose(1, 2), cos, sin)
        v = self._split(self.v_proj(x), kv).transpose(1, 2)

        # Scaling the queries and not the scores keeps q @ k inside fp16.
        q = (q * hd**-0.5).reshape(1, kv, self.heads // kv * tokens, hd)
        before = products(q, k_cache)
        if cached.key_scales is not None:
            before = before * cached.key_scales.reshape(1, kv, 1, slots)
        scores = torch.cat([before, products(q, k)], dim=-1) + mask
        weights = torch.softmax(scores, dim=-1)
        cache_weights = weights[..., :slots]
        if cached.value_scales is not None:
            cache_weights = cache_weights * cached.value_scales.reshape(1, kv, 1, slots)
        y = weighted_sum(cache_weights, v_cache) + weighted_sum(weights[..., slots:], v)
        y = y.reshape(1, self.heads, tokens, hd).transpose(1, 2).reshape(1, tokens, self.heads * hd)
        return self.o_proj(y), k, v

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """[1, T, heads * head_dim] -> [1, T, heads, head_dim]"""
        return x.reshape(1, x.shape[1], heads, self.head_dim)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Head(nn.Module):
    """Hidden states to logits. Tied, it borrows the embedding at each call: one tensor, one name."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.weight: nn.Parameter | None = None
        if not config.tie_word_embeddings:
            self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return F.linear(x, embedding if self.weight is None else self.weight)


def rope_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [1, 1, T, head_dim / 2] float32 for `positions` [T].

    Angles are computed in float32 exactly as transformers does: far into a context float64 would differ from
    it.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = positions.to(torch.float32).reshape(1, 1, -1, 1) * frequencies
    return angles.cos(), angles.sin()


def attention_mask(valid: int, cached: int = 0, slots: int = 0, rows: int | None = None) -> Tensor:
    """Additive mask [1, 1, T, slots + T] float32 for a call with T = `rows` tokens, of which `valid` are
    real.

    A real token sees the first `cached` of the `slots` cache slots and the real tokens up to itself. The
    padding behind sees only itself: its results are thrown away, but a row with nothing to see would be
    undefined.
    """
    rows = valid if rows is None else rows
    sees = torch.zeros(rows, slots + rows, dtype=torch.bool)
    sees[:valid, :cached] = True
    sees[:valid, slots : slots + valid] = torch.ones(valid, valid, dtype=torch.bool).tril()
    sees[:, slots:] |= torch.eye(rows, dtype=torch.bool)
    return torch.zeros(sees.shape).masked_fill(~sees, MASKED).reshape(1, 1, rows, slots + rows)
