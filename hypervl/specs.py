"""What a config says in the runtime's words: one definition for the reference and for a bundle's manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hypervl.config import HyperVLConfig
from rpi_runtime.manifest import ImageTokens, VisionSpec


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


def image_tokens(config: HyperVLConfig) -> ImageTokens:
    """Spellings of the tokens around visual tokens."""
    return ImageTokens(**dataclasses.asdict(config.image_tokens))
