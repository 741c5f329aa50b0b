"""The decoder over whole sequences gives what the decoder of the graphs gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hypervl.decoder import MASKED, Decoder, rope_table
from hypervl.training.batched_decoder import hidden_states
from tests.converters.tiny import CONFIG


@pytest.mark.parametrize("qk_norm", [True, False])
@torch.no_grad()
def test_any_mask_and_any_positions_over_a_batch_give_the_decoders_logits(qk_norm: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    decoder = Decoder(replace(CONFIG.decoder, qk_norm=qk_norm))
    for parameter in decoder.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    config, rows, tokens = decoder.config, 3, 17
    embeddings = torch.randn(rows, tokens, config.hidden_size, generator=generator)
    positions = torch.randint(0, 400, (rows, tokens), generator=generator)
    sees = torch.rand(rows, tokens, tokens, generator=generator) < 0.5
    sees |= torch.eye(tokens, dtype=torch.bool)
    found = decoder.lm_head(hidden_states(decoder, embeddings, positions, sees), decoder.embed_tokens.weight)
    for row in range(rows):
        mask = torch.zeros(tokens, tokens).masked_fill(~sees[row], MASKED)[None, None]
        cos, sin = rope_table(positions[row], config.head_dim, config.rope_theta)
        expected, _ = decoder(embeddings[row : row + 1], cos, sin, mask, decoder.empty_kv())
        assert expected is not None
        torch.testing.assert_close(
            found[row], expected[0], rtol=1e-4, atol=1e-5 * float(expected.abs().max())
        )
