"""The decoder computes what transformers' Qwen3 and Llama compute, in one call or through the cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from hypervl.config import DecoderConfig
from hypervl.decoder import MASKED, Decoder, attention_mask, rope_table

LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB, THETA = 3, 6, 2, 16, 101, 5e3
TOKENS = 23

Kind = tuple[bool, bool]
KINDS = [
    pytest.param((True, True), id="qwen3-tied"),
    pytest.param((True, False), id="qwen3-untied"),
    pytest.param((False, True), id="llama-tied"),
    pytest.param((False, False), id="llama-untied"),
]


def pair(kind: Kind) -> tuple[Decoder, nn.Module]:
    """Our decoder and transformers' with the same random weights."""
    qk_norm, tied = kind
    shape = {
        "hidden_size": 72,  # not heads * head_dim: Qwen3's widths differ too
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
    }
    rope = {"rope_type": "default", "rope_theta": THETA}
    theirs = (
        Qwen3ForCausalLM(Qwen3Config(**shape, rope_parameters=rope))
        if qk_norm
        else LlamaForCausalLM(LlamaConfig(**shape, rope_parameters=rope))
    ).eval()
    torch.manual_seed(2)
    for name, parameter in theirs.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name), std=0.15)
    ours = Decoder(DecoderConfig(**shape, rope_theta=THETA, qk_norm=qk_norm)).eval()
    state = {name.removeprefix("model."): tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict({k: v for k, v in state.items() if not (tied and k == "lm_head.weight")})
    return ours, theirs


def prompt() -> Tensor:
    return torch.randint(0, VOCAB, (1, TOKENS), generator=torch.Generator().manual_seed(3))


class Host:
    """What a host does around the decoder: it owns the cache and writes each call's slices into it."""

    def __init__(self, decoder: Decoder, slots: int) -> None:
        self.decoder, self.slots, self.filled = decoder, slots, 0
        # Full of rubbish: a masked slot must not be seen, whatever it holds.
        self.kv = [torch.randn(KV_HEADS, slots, HEAD_DIM) * 50 for _ in range(2 * LAYERS)]

    def feed(self, ids: Tensor, rows: int) -> Tensor:
        """Runs `ids` [1, n] in a call of `rows` rows; logits of the real ones [1, n, vocab]."""
        valid = ids.shape[1]
        padded = torch.cat([ids, ids.new_full((1, rows - valid), 7)], dim=1)
        logits, new = self.decoder(
            self.decoder.embed_tokens(padded),
            *rope_table(torch.arange(self.filled, self.filled + rows), HEAD_DIM, THETA),
            attention_mask(valid, cached=self.filled, slots=self.slots, rows=rows),
            [cache.flatten() for cache in self.kv],
        )
        assert logits is not None
        for cache, piece in zip(self.kv, new, strict=True):
            cache[:, self.filled : self.filled + valid] = piece[0, :, :valid]
        self.filled += valid
        return logits[:, :valid]


def whole_sequence(decoder: Decoder, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    count = ids.shape[1]
    rope = rope_table(torch.arange(count), HEAD_DIM, THETA)
    logits, kv = decoder(decoder.embed_tokens(ids), *rope, attention_mask(count), decoder.empty_kv())
    assert logits is not None
    return logits, kv


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_sequence_in_one_call_equals_transformers(kind: Kind) -> None:
    ours, theirs = pair(kind)
    expected = theirs(prompt())
    logits, _ = whole_sequence(ours, prompt())
    assert expected.logits.std() > 0.1
    assert (logits - expected.logits).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_new_slices_are_the_keys_and_values_that_transformers_caches(kind: Kind) -> None:
    ours, theirs = pair(kind)
    cache = theirs(prompt(), use_cache=True).past_key_values
    _, kv = whole_sequence(ours, prompt())
    for i in range(LAYERS):
        assert (kv[2 * i] - cache.layers[i].keys).abs().max() < 1e-4
        assert (kv[2 * i + 1] - cache.layers[i].values).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_step_by_step_through_the_cache_equals_transformers_step_by_step(kind: Kind) -> None:
    ours, theirs = pair(kind)
    host, cache = Host(ours, slots=TOKENS), None
    for i in range(TOKENS):
        token = prompt()[:, i : i + 1]
        expected = theirs(token, past_key_values=cache, use_cache=True)
        cache = expected.past_key_values
        assert (host.feed(token, rows=1) - expected.logits).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_padded_chunks_into_a_cache_larger_than_the_prompt_equal_transformers(kind: Kind) -> None:
    ours, theirs = pair(kind)
    host = Host(ours, slots=64)
    pieces = [host.feed(chunk, rows=8) for chunk in prompt().split(8, dim=1)]  # 8 + 8 + 7 and one of padding
    pieces.append(host.feed(prompt()[:, :1], rows=1))  # and a decode step behind them
    expected = theirs(torch.cat([prompt(), prompt()[:, :1]], dim=1)).logits
    assert (torch.cat(pieces, dim=1) - expected).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_continuation_equals_transformers_generate(kind: Kind) -> None:
    ours, theirs = pair(kind)
    expected = theirs.generate(
        prompt(), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    host = Host(ours, slots=64)
    logits, found = host.feed(prompt(), rows=TOKENS), []
    for _ in range(12):
        found.append(int(logits[0, -1].argmax()))
        logits = host.feed(torch.tensor([[found[-1]]]), rows=1)
    assert found == expected[0, TOKENS:].tolist()


@torch.no_grad()
def test_without_logits_the_slices_are_the_same() -> None:
    ours, _ = pair((True, True))
    arguments = (
        ours.embed_tokens(prompt()),
        *rope_table(torch.arange(TOKENS), HEAD_DIM, THETA),
        attention_mask(TOKENS),
        ours.empty_kv(),
    )
    nothing, kv = ours(*arguments, want_logits=False)
    assert nothing is None
    assert all(torch.equal(a, b) for a, b in zip(kv, ours(*arguments)[1], strict=True))


def test_a_tied_head_has_no_tensor_of_its_own() -> None:
    names = {kind: set(pair(kind)[0].state_dict()) for kind in ((True, True), (True, False))}
    assert names[True, False] - names[True, True] == {"lm_head.weight"}


def test_rope_equals_transformers_far_into_a_context() -> None:
    config = Qwen3Config(head_dim=128, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    positions = torch.tensor([0, 1, 1000, 32767])
    cos, sin = Qwen3RotaryEmbedding(config)(torch.zeros(1), positions.unsqueeze(0))
    ours = rope_table(positions, 128, 1e6)
    for table, theirs in zip(ours, (cos, sin), strict=True):
        assert table.shape == (1, 1, 4, 64)
        assert torch.equal(table[0, 0], theirs[0, :, :64])  # theirs holds every angle twice


def test_the_mask_shows_cache_then_past_then_only_itself_to_padding() -> None:
    seen = attention_mask(2, cached=1, slots=3, rows=4).eq(0).int()[0, 0].tolist()
    assert seen == [
        [1, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]
    assert attention_mask(2, cached=1, slots=3, rows=4).unique().tolist() == [MASKED, 0.0]


@torch.no_grad()
def test_large_activations_stay_finite_in_fp16() -> None:
    """Qwen3's largest residual channels exceed 10,000; their squares leave fp16 (65,504) by far."""
    ours, _ = pair((True, True))
    embeddings = torch.randn(1, 5, 72) * 30
    embeddings[..., 3] = 2e4
    arguments = (
        embeddings,
        *rope_table(torch.arange(5), HEAD_DIM, THETA),
        attention_mask(5),
        ours.empty_kv(),
    )
    exact, _ = ours(*arguments)
    kv = [cache.half() for cache in ours.empty_kv()]
    halved, _ = ours.half()(*(a.half() for a in arguments[:4]), kv)
    assert exact is not None
    assert halved is not None
    assert halved.isfinite().all()
    torch.testing.assert_close(halved.float(), exact, rtol=0.05, atol=0.05)


def test_nothing_in_the_graph_exceeds_rank_4() -> None:
    ours, _ = pair((True, True))
    kv = [torch.zeros(KV_HEADS * 8 * HEAD_DIM) for _ in range(2 * LAYERS)]
    arguments = (
        torch.randn(1, 4, 72),
        *rope_table(torch.arange(4), HEAD_DIM, THETA),
        attention_mask(4, 2, 8),
        kv,
    )
    graph = torch.export.export(ours, arguments).graph
    ranks = [node.meta["val"].dim() for node in graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert max(ranks) == 4
