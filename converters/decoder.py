"""The decoder's signatures: `prefill_<n>` for chunks of a prompt, `decode` for one token, and both again for
smaller caches."""

from __future__ import annotations

import torch
from torch import Tensor

from converters.lowering import Component, Traced
from hypervl.config import DecoderConfig
from hypervl.decoder import Decoder
from hypervl.specs import decoder_spec


def signatures(
    decoder: Decoder, prefill_tokens: tuple[int, ...], contexts: tuple[int, ...], kv_dtype: str
) -> list[Traced]:
    """For each of `contexts`, slots of a cache of `kv_dtype`: one per size of a prefill chunk, and `decode`.

    The largest chunk of the largest context comes first: GPTQ takes a shared weight's statistics from the
    first signature that uses it.
    """
    prefill, decode = Prefill(decoder), Decode(decoder)
    spec = decoder_spec(decoder.config, contexts, prefill_tokens, kv_dtype)
    return [
        Traced(
            spec.signature(tokens, slots),
            decode if tokens == 1 else prefill,
            _sample(decoder.config, tokens, slots, kv_dtype),
        )
        for slots in reversed(contexts)
        for tokens in (*reversed(spec.chunk_sizes(slots)), 1)
    ]


def kv_names(config: DecoderConfig) -> list[str]:
    """The slices' names in the order of `Decoder.forward`: k_0, v_0, k_1, ...; the caches have `kv_`
    before."""
    return [f"{part}_{layer}" for layer in range(config.num_hidden_layers) for part in "kv"]


class Prefill(Component):
    """Takes embeddings [1, T, d], rope_cos and rope_sin [1, 1, T, head_dim / 2], mask [1, 1, T, C + T] and
    the caches kv_k_<i>, kv_v_<i> [kv_heads * C * head_dim]; gives k_<i>, v_<i> [1, kv_heads, T, head_dim].
    Caches of int8 come with kv_k_<i>_scale, kv_v_<i>_scale [kv_heads * C]."""

    component: Decoder

    def forward(
        self, embeddings: Tensor, rope_cos: Tensor, rope_sin: Tensor, mask: Tensor, **kv: Tensor
    ) -> dict[str, Tensor]:
        names = kv_names(self.component.config)
        _, new = self.component(embeddings, rope_cos, rope_sin, mask, *_caches(names, kv, want_logits=False))
        return dict(zip(names, new, strict=True))


class Decode(Component):
    """The same for one token, and its logits [1, vocab]."""

    component: Decoder

    def forward(
        self, embeddings: Tensor, rope_cos: Tensor, rope_sin: Tensor, mask: Tensor, **kv: Tensor
    ) -> dict[str, Tensor]:
        names = kv_names(self.component.config)
        logits, new = self.component(embeddings, rope_cos, rope_sin, mask, *_caches(names, kv))
        return {"logits": logits[:, 0], **dict(zip(names, new, strict=True))}


def _caches(
    names: list[str], kv: dict[str, Tensor], want_logits: bool = True
) -> tuple[list[Tensor], bool, list[Tensor]]:
    scales = [kv[f"kv_{n}_scale"] for n in names if f"kv_{n}_scale" in kv]
    return [kv[f"kv_{n}"] for n in names], want_logits, scales


def _sample(config: DecoderConfig, tokens: int, slots: int, kv_dtype: str) -> dict[str, Tensor]:
    """Each input a tensor of its own: torch.export takes one tensor under two names for one input."""
    angles = (1, 1, tokens, config.head_dim // 2)
    rows = config.num_key_value_heads * slots
    shapes = {
        "embeddings": (1, tokens, config.hidden_size),
        "rope_cos": angles,
        "rope_sin": angles,
        "mask": (1, 1, tokens, slots + tokens),
    }
    sample = {name: torch.empty(shape) for name, shape in shapes.items()}
    for name in kv_names(config):
        sample[f"kv_{name}"] = torch.empty(rows * config.head_dim, dtype=getattr(torch, kv_dtype))
        if kv_dtype == "int8":
            sample[f"kv_{name}_scale"] = torch.empty(rows)
    return sample
