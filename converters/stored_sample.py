"""The sample that a component carries: a real input, and what PyTorch makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from converters.export import ExportOptions
from converters.samples import PARITY, passages, tiles
from hypervl.checkpoint import Checkpoint
from hypervl.decoder import Decoder, attention_mask, rope_table
from hypervl.offload import Offload
from hypervl.vrc import VRC
from rpi_runtime.samples import DecoderSample, PictureSample, store

_PROMPT_TOKENS = 9  # a chunk of 8, and the one that asks for logits


def write_sample(name: str, checkpoint: Checkpoint, options: ExportOptions, out_path: Path) -> None:
    """Writes the sample of component `name`: of a vision graph a tile at its smallest side, of a decoder the
    first tokens of a text."""
    weights = Offload()
    module = checkpoint.load_component(name, weights)
    with torch.inference_mode(), weights.dropping(module):
        if isinstance(module, Decoder):
            store(_decoder(module, checkpoint), out_path)
            return
        is_vrc = isinstance(module, VRC)
        side = checkpoint.config.vrc.image_size if is_vrc else min(options.tile_sides)
        # In 8 bits: a quarter of the bytes, and the graph gets what PyTorch got.
        pixels = np.rint(next(tiles(PARITY, checkpoint, side, 1)) * 255).astype(np.uint8)
        expected = module(torch.from_numpy(pixels.astype(np.float32) / 255))
        signature = "route" if is_vrc else f"tile_{side}"
        store(PictureSample(signature, pixels, expected.numpy()), out_path)


def _decoder(module: Decoder, checkpoint: Checkpoint) -> DecoderSample:
    (ids,) = passages(PARITY, checkpoint, 1, _PROMPT_TOKENS)
    config = module.config
    rows = module.embed_tokens(torch.tensor([ids])).to(torch.float16)
    angles = rope_table(torch.arange(len(ids)), config.head_dim, config.rope_theta)
    logits, _ = module(rows.to(torch.float32), *angles, attention_mask(len(ids)), module.empty_kv())
    assert logits is not None
    return DecoderSample(rows[0].numpy(), logits[0, -1].numpy())
