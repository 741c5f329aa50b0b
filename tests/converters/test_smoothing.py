"""Smoothing moves the size of activations into weights, and changes nothing that the decoder computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from converters.smoothing import smooth
from hypervl.checkpoint import Checkpoint
from hypervl.decoder import Decoder, attention_mask, rope_table
from rpi_runtime.manifest import DECODER
from tests.converters.tiny import CONFIG

PASSAGES = [list(range(20)), list(range(40, 60))]
IDS = [7, 3, 250, 40, 11, 90]


def decoder(*, tied: bool, qk_norm: bool) -> Decoder:
    """Random weights, and norms that make two channels of each input much larger than the others."""
    torch.manual_seed(0)
    made = Decoder(replace(CONFIG.decoder, tie_word_embeddings=tied, qk_norm=qk_norm)).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.normal_(0, 0.2)
            if "norm" in name:
                weight.abs_().add_(0.5)
                weight[3] *= 50
                weight[11] *= 20
    return made.requires_grad_(False)


def run(module: Decoder, embeddings: Tensor) -> list[Tensor]:
    """Logits and all new keys and values."""
    config, tokens = module.config, embeddings.shape[1]
    angles = rope_table(torch.arange(tokens), config.head_dim, config.rope_theta)
    logits, kv = module(embeddings, *angles, attention_mask(tokens), module.empty_kv())
    assert logits is not None
    return [logits, *kv]


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_the_outputs_stay_the_same_to_the_last_bit(tied: bool, qk_norm: bool) -> None:
    module = decoder(tied=tied, qk_norm=qk_norm)
    embeddings = module.embed_tokens(torch.tensor([IDS]))
    before = run(module, embeddings)
    weights = [p.clone() for p in module.parameters()]
    smooth(module, PASSAGES)
    assert any(not torch.equal(a, b) for a, b in zip(weights, module.parameters(), strict=True))
    for expected, found in zip(before, run(module, embeddings), strict=True):
        assert torch.equal(expected, found)


def test_channels_come_closer_to_each_other() -> None:
    module = decoder(tied=True, qk_norm=False)
    seen: dict[str, list[Tensor]] = {"before": [], "after": []}
    embeddings = module.embed_tokens(torch.tensor([IDS]))
    watched = (module.layers[0].self_attn.q_proj, module.layers[0].mlp.gate_proj)
    for when in ("before", "after"):
        hooks = [m.register_forward_pre_hook(lambda _, a, w=when: seen[w].append(a[0])) for m in watched]
        run(module, embeddings)
        for hook in hooks:
            hook.remove()
        smooth(module, PASSAGES)
    for before, after in zip(seen["before"], seen["after"], strict=True):
        assert spread(after) < spread(before) / 3


def spread(x: Tensor) -> float:
    """The largest channel over the typical one."""
    channels = x.abs().amax((0, 1))
    return float(channels.max() / channels.median())


def test_a_second_module_of_the_checkpoint_is_as_it_was(tiny_checkpoint: Checkpoint) -> None:
    """Weights are folded in place, in memory that belongs to the module alone."""
    module = tiny_checkpoint.load_component(DECODER)
    assert isinstance(module, Decoder)
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    smooth(module, PASSAGES)
    assert any(not torch.equal(before[name], weight) for name, weight in module.named_parameters())
    for name, weight in tiny_checkpoint.load_component(DECODER).named_parameters():
        assert torch.equal(before[name], weight)
