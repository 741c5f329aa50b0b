"""The two matrix products of attention, written so that a graph keeps them at rank 4, and rotary positions.

`a @ b` on rank 4 is decomposed by `torch.export` into a rank-3 product between reshapes: TFLite then has to
copy the transposed keys, the whole cache at every token, and a GPU gave wrong results at rank 3. An einsum is
lowered as it stands, to one BATCH_MATMUL of rank 4 that reads the keys as they lie.
"""

from __future__ import annotations

import torch
from torch import Tensor


def products(queries: Tensor, keys: Tensor) -> Tensor:
    """Every query times every key: [N, heads, Q, d] x [N, heads, K, d] -> [N, heads, Q, K]."""
    return torch.einsum("nhqd,nhkd->nhqk", queries, keys)


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """The values, summed under the weights: [N, heads, Q, K] x [N, heads, K, d] -> [N, heads, Q, d]."""
    return torch.einsum("nhqk,nhkd->nhqd", weights, values)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: turns pair (i, i + head_dim / 2) of each head [1, heads, T, head_dim] by its angle."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
