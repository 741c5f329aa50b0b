"""The decoder's signatures: `prefill_<n>` for chunks of a prompt, `decode` for one token."""

from __future__ import annotations

import torch
from torch import Tensor

from converters.lowering import Component, Traced
from hypervl.config import DecoderConfig
from hypervl.decoder import Decoder


def signatures(decoder: Decoder, prefill_tokens: tuple[int, ...], context_tokens: int) -> list[Traced]:
    """One per size of a prefill chunk, and `decode`, for a cache of `context_tokens` slots.

    The largest chunk comes first: GPTQ takes a shared weight's statistics from the first signature that uses
    it.
    """
    config = decoder.config
    prefill, decode = Prefill(decoder), Decode(decoder)
    chunks = [
        Traced(f"prefill_{n}", prefill, _sample(config, n, context_tokens))
        for n in sorted(prefill_tokens, reverse=True)
    ]
    return [*chunks, Traced("decode", decode, _sample(config, 1, context_tokens))]


def kv_names(config: DecoderConfig) -> list[str]:
    """The slices' names in the order of `Decoder.forward`: k_0, v_0, k_1, ...; the caches have `kv_`
    before."""
    return [f"{part}_{layer}" for layer in range(config.num_hidden_layers) for part in "kv"]


class Prefill(Component):
    """Takes embeddings [1, T, d], rope_cos and rope_sin [1, 1, T, head_dim / 2], mask [1, 1, T, C + T] and
    the caches kv_k_<i>, kv_v_<i> [kv_heads * C * head_dim]; gives k_<i>, v_<i> [1, kv_heads, T, head_dim]."""

    component: Decoder

    def forward(
        self, embeddings: Tensor, rope_cos: Tensor, rope_sin: Tensor, mask: Tensor, **kv: Tensor
    ) -> dict[str, Tensor]:
        names = kv_names(self.component.config)
        _, new = self.component(embeddings, rope_cos, rope_sin, mask, [kv[f"kv_{n}"] for n in names], False)
        return dict(zip(names, new, strict=True))


class Decode(Component):
    """The same for one token, and its logits [1, vocab]."""

    component: Decoder

    def forward(
        self, embeddings: Tensor, rope_cos: Tensor, rope_sin: Tensor, mask: Tensor, **kv: Tensor
    ) -> dict[str, Tensor]:
        names = kv_names(self.component.config)
        logits, new = self.component(embeddings, rope_cos, rope_sin, mask, [kv[f"kv_{n}"] for n in names])
        return {"logits": logits[:, 0], **dict(zip(names, new, strict=True))}


def _sample(config: DecoderConfig, tokens: int, slots: int) -> dict[str, Tensor]:
    """Each input a tensor of its own: torch.export takes one tensor under two names for one input."""
    angles = (1, 1, tokens, config.head_dim // 2)
    cache = (config.num_key_value_heads * slots * config.head_dim,)
    shapes = {
        "embeddings": (1, tokens, config.hidden_size),
        "rope_cos": angles,
        "rope_sin": angles,
        "mask": (1, 1, tokens, slots + tokens),
        **{f"kv_{name}": cache for name in kv_names(config)},
    }
    return {name: torch.empty(shape) for name, shape in shapes.items()}
