"""The decoder over whole sequences in batches, for training: the same weights, no cache.

`hypervl.decoder` is written for the graph: one sequence, a cache, attention in two parts. Here PyTorch's
fused attention takes any mask over a batch. A test holds the two against each other.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hypervl.attention import rotate
from hypervl.decoder import Decoder, DecoderLayer


def hidden_states(decoder: Decoder, embeddings: Tensor, positions: Tensor, sees: Tensor) -> Tensor:
    """`embeddings` [B, T, d], `positions` [B, T] int64, `sees` [B, T, T] bool (row sees column) -> what the
    head reads, [B, T, d]."""
    config = decoder.config
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=embeddings.device)
    angles = positions[:, None, :, None].float() / config.rope_theta ** (half / config.head_dim)
    cos, sin = angles.cos(), angles.sin()
    x = embeddings
    for layer in decoder.layers:
        assert isinstance(layer, DecoderLayer)
        x = x + _attention(layer, layer.input_layernorm(x), cos, sin, sees[:, None])
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return decoder.norm(x)


def _attention(layer: DecoderLayer, x: Tensor, cos: Tensor, sin: Tensor, sees: Tensor) -> Tensor:
    a = layer.self_attn
    count, tokens, _ = x.shape

    def split(y: Tensor, heads: int) -> Tensor:
        return y.reshape(count, tokens, heads, a.head_dim)

    q = _rotate(a.q_norm(split(a.q_proj(x), a.heads)).transpose(1, 2), cos, sin)
    k = _rotate(a.k_norm(split(a.k_proj(x), a.kv_heads)).transpose(1, 2), cos, sin)
    v = split(a.v_proj(x), a.kv_heads).transpose(1, 2)
    shared = a.heads // a.kv_heads
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=sees)
    return a.o_proj(mixed.transpose(1, 2).reshape(count, tokens, a.heads * a.head_dim))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotate(x, cos, sin).to(x.dtype)
