"""The decoder over whole sequences in batches, for training: the same weights, no cache.

`hypervl.decoder` is written for the graph: one sequence, a cache, attention in two parts. Here PyTorch's
fused attention takes any mask over a batch. A test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hypervl.attention import rotate
from hypervl.decoder import Decoder, DecoderLayer

Hear = Callable[[int, Tensor, Tensor, Tensor], None]


def unheard(layer: int, queries: Tensor, keys: Tensor, after: Tensor) -> None:
    pass


def hidden_states(
    decoder: Decoder,
    embeddings: Tensor,
    positions: Tensor,
    sees: Tensor,
    hear: Hear = unheard,
) -> Tensor:
    """`embeddings` [B, T, d], `positions` [B, T] int64, `sees` [B, T, T] bool (row sees column) -> what the
    head reads, [B, T, d].

    `hear` is told of each layer its number, queries [B, heads, T, head_dim] and keys [B, kv_heads, T,
    head_dim], both rotated, and what leaves it, [B, T, d].
    """
    config = decoder.config
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=embeddings.device)
    angles = positions[:, None, :, None].float() / config.rope_theta ** (half / config.head_dim)
    cos, sin = angles.cos(), angles.sin()
    x = embeddings
    for number, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer)
        mixed, q, k = _attention(layer, layer.input_layernorm(x), cos, sin, sees[:, None])
        x = x + mixed
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        hear(number, q, k, x)
    return decoder.norm(x)


def _attention(
    layer: DecoderLayer, x: Tensor, cos: Tensor, sin: Tensor, sees: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the layer's attention adds, its queries and its keys."""
    a = layer.self_attn
    count, tokens, _ = x.shape

    def split(y: Tensor, heads: int) -> Tensor:
        return y.reshape(count, tokens, heads, a.head_dim)

    q = _rotate(a.q_norm(split(a.q_proj(x), a.heads)).transpose(1, 2), cos, sin)
    k = _rotate(a.k_norm(split(a.k_proj(x), a.kv_heads)).transpose(1, 2), cos, sin)
    v = split(a.v_proj(x), a.kv_heads).transpose(1, 2)
    shared = a.heads // a.kv_heads
    mixed = F.scaled_dot_product_attention(
        q, k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1), attn_mask=sees
    )
    return a.o_proj(mixed.transpose(1, 2).reshape(count, tokens, a.heads * a.head_dim)), q, k


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotate(x, cos, sin).to(x.dtype)
