"""Makes a decoder's activations easier to quantise on the fly, without changing what it computes.

A few channels of a language model's activations are far larger than the rest, and the scale that they force
on a token leaves the rest few of the 256 levels. Their size can move into the weights behind them, which have
a scale per output channel and suffer less: x / s and W * s give the same product (SmoothQuant,
arXiv:2211.10438). Here s is folded into what makes x, so that the graph gets no operator for it:

    q, k, v       the norm before attention
    gate, up      the norm before the MLP
    down          the rows of `up`
    lm_head       the last norm

The output projection stays: its input is made of cached values, which would change, and quantises well.
Factors are powers of two: folding is then exact in float32. docs/quantization.md has the measured gain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hypervl.decoder import Decoder, DecoderLayer, attention_mask, rope_table

STRENGTH = 0.55  # share of the imbalance that the weights take over; measured best of 0.4, 0.55 and 0.7
_SMALLEST = 1e-5  # what a channel that is always zero counts as


@torch.no_grad()
def smooth(
    decoder: Decoder, passages: Sequence[Sequence[int]], release: Callable[[], None] = lambda: None
) -> None:
    """Folds factors into the parameters of `decoder`, in place. `release` is called after each layer.

    `passages` are token ids of text to measure the channels on. A tied head keeps its table: the decoder then
    takes embeddings that are not its `embed_tokens`, as the exported graph does.
    """
    largest = _largest_inputs(decoder, passages)
    for i, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer)
        attention, mlp = layer.self_attn, layer.mlp
        readers = [attention.q_proj, attention.k_proj, attention.v_proj]
        _fold(largest[f"attention {i}"], layer.input_layernorm, readers)
        _fold(largest[f"mlp {i}"], layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj])
        _fold(largest[f"down {i}"], mlp.up_proj, [mlp.down_proj])
        release()
    tied = decoder.lm_head.weight is None
    _fold(largest["head"], decoder.norm, [decoder.embed_tokens if tied else decoder.lm_head])


def _fold(largest: Tensor, maker: nn.Module, readers: Sequence[nn.Module]) -> None:
    """Divides what `maker` gives by a factor per channel, and multiplies the columns of `readers` by it.

    `maker` is a norm with one weight per channel, or a linear layer with one row per channel.
    """
    columns = torch.stack([_largest_magnitudes(_weight(r)) for r in readers]).amax(0)
    wanted = largest.clamp(min=_SMALLEST) ** STRENGTH / columns.clamp(min=_SMALLEST) ** (1 - STRENGTH)
    factors = torch.exp2(torch.round(torch.log2(wanted / wanted.log().mean().exp())))
    made = _weight(maker)
    made.div_(factors[:, None] if made.dim() == 2 else factors)
    for reader in readers:
        _weight(reader).mul_(factors)


def _weight(module: nn.Module) -> Tensor:
    return module.get_parameter("weight")


def _largest_magnitudes(weight: Tensor) -> Tensor:
    """Of each column; `abs` would copy what may be a gigabyte."""
    return torch.maximum(weight.amax(0), -weight.amin(0))


def _largest_inputs(decoder: Decoder, passages: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The largest magnitude of each input channel, per group of layers that read the same input."""
    found: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        here = x.abs().flatten(0, -2).amax(0)
        found[name] = torch.maximum(found[name], here) if name in found else here

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_pre_hook(lambda _, args: see(name, args[0]))

    hooks = []
    for i, layer in enumerate(decoder.layers):
        assert isinstance(layer, DecoderLayer)
        hooks += [
            watch(f"attention {i}", layer.self_attn.q_proj),
            watch(f"mlp {i}", layer.mlp.gate_proj),
            watch(f"down {i}", layer.mlp.down_proj),
        ]
    # Without logits the last norm does not run: they would be the largest tensor of all.
    last = decoder.layers[-1]
    hooks.append(last.register_forward_hook(lambda _, args, out: see("head", decoder.norm(out[0]))))
    try:
        for ids in passages:
            angles = rope_table(torch.arange(len(ids)), decoder.config.head_dim, decoder.config.rope_theta)
            embeddings = decoder.embed_tokens(torch.tensor([list(ids)]))
            decoder(embeddings, *angles, attention_mask(len(ids)), decoder.empty_kv(), want_logits=False)
    finally:
        for hook in hooks:
            hook.remove()
    return found
