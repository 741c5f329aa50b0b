"""A checkpoint small enough to lower in seconds, with every kind of layer, and the shapes it is exported
for."""

from __future__ import annotations

from pathlib import Path

from converters.export import ExportOptions
from hypervl.byte_tokenizer import IMAGE_TOKENS, byte_tokenizer
from hypervl.checkpoint import Checkpoint, save
from hypervl.config import DecoderConfig, HyperVLConfig, TilingConfig, VisionConfig, VRCConfig
from hypervl.model import build

OPTIONS = ExportOptions(tile_sides=(96, 64), prefill_tokens=(8, 32), contexts=(96,))

CONFIG = HyperVLConfig(
    name="tiny",
    vrc=VRCConfig(
        image_size=64,
        stem_channels=8,
        stages=((1, 8, 1, 1, 3), (4, 16, 2, 2, 3)),
        head_channels=32,
        hidden_size=32,
    ),
    vision_base=VisionConfig(64, 128, 1, 2, image_size=96),
    vision_large=VisionConfig(96, 128, 1, 2, image_size=96, stem_channels=(8, 12, 16), stem_dilations=(2,)),
    decoder=DecoderConfig(64, 96, 2, 4, 2, 16, vocab_size=320, rope_theta=1e4, max_position_embeddings=512),
    tiling=TilingConfig(tile_side=96, tile_sides=(96, 64), max_tiles=6),
    image_tokens=IMAGE_TOKENS,
)


def write_checkpoint(folder: Path, seed: int = 0) -> Checkpoint:
    """Random weights with biases and norms that are not the identity they start as, so that folding shows."""
    import torch

    model = build(CONFIG, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.add_(torch.rand(tensor.shape, generator=generator), alpha=0.2)
                assert "running_var" not in name or bool((tensor > 0).all())
    save(model, folder, byte_tokenizer())
    return Checkpoint.open(folder)
