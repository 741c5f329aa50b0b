"""What a config says in the runtime's words: one definition for the reference and for a bundle's manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hypervl.config import DecoderConfig, HyperVLConfig
from rpi_runtime.manifest import DecoderSpec, ImageTokens, VisionSpec


def vision_spec(config: HyperVLConfig, tile_sides: Sequence[int] = ()) -> VisionSpec:
    """How pictures become visual tokens, tiles at one of `tile_sides` px (the config's, if empty)."""
    tiling = config.tiling
    return VisionSpec(
        tile_side=tiling.tile_side,
        tile_sides=tuple(tile_sides) or tiling.tile_sides,
        max_tiles=tiling.max_tiles,
        thumbnail=tiling.thumbnail,
        patch_px=config.vision_base.patch_size * config.vision_base.pixel_shuffle,
        scales=tuple(map(float, config.vrc.scales)),
        vrc_side=config.vrc.image_size,
        auto_large_share=config.auto_large_share,
    )


def decoder_spec(
    config: DecoderConfig, contexts: Sequence[int], prefill_tokens: Sequence[int], kv_dtype: str = "float32"
) -> DecoderSpec:
    """What the runtime's loop needs to feed a decoder graph of these fixed shapes."""
    return DecoderSpec(
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        rope_theta=float(config.rope_theta),
        contexts=tuple(contexts),
        prefill_tokens=tuple(prefill_tokens),
        kv_dtype=kv_dtype,
    )


def image_tokens(config: HyperVLConfig) -> ImageTokens:
    """Spellings of the tokens around visual tokens."""
    return ImageTokens(**dataclasses.asdict(config.image_tokens))
