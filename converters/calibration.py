"""Real inputs for calibration: the shipped photographs and text, fed as the device will feed them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from converters.decoder import kv_names
from converters.export import ExportOptions
from converters.quantize import Calibration
from converters.samples import CALIBRATION, passages, tiles
from hypervl.checkpoint import Checkpoint
from hypervl.decoder import attention_mask, rope_table
from hypervl.specs import decoder_spec
from rpi_runtime.manifest import DECODER, VRC

_TILES_PER_PHOTO = 4
_PASSAGES = 12


def calibration(
    name: str, checkpoint: Checkpoint, options: ExportOptions, photos: tuple[str, ...] = ()
) -> Calibration:
    """Inputs for every signature of component `name`; `photos` are paths of others than the shipped ones.

    For the decoder these are passages of text in front of which nothing is cached: its largest prefill sees
    many, the other signatures, which share its weights, one each.
    """
    if name == DECODER:
        return _decoder(checkpoint, options)
    source = replace(CALIBRATION, photos=photos) if photos else CALIBRATION
    sides = (checkpoint.config.vrc.image_size,) if name == VRC else options.tile_sides
    return {
        "route" if name == VRC else f"tile_{side}": [
            {"images": tile} for tile in tiles(source, checkpoint, side, 1 if photos else _TILES_PER_PHOTO)
        ]
        for side in sides
    }


def _decoder(checkpoint: Checkpoint, options: ExportOptions) -> Calibration:
    spec = decoder_spec(checkpoint.config.decoder, options.contexts, options.prefill_tokens, options.kv_dtype)
    largest = (max(options.prefill_tokens), spec.context_tokens)
    found = {}
    for slots in spec.contexts:
        for size in (*spec.chunk_sizes(slots), 1):
            texts = passages(CALIBRATION, checkpoint, _PASSAGES if (size, slots) == largest else 1, size)
            found[spec.signature(size, slots)] = [
                _inputs(checkpoint, ids, size, slots, options.kv_dtype) for ids in texts
            ]
    return found


def _inputs(
    checkpoint: Checkpoint, ids: list[int], size: int, slots: int, kv_dtype: str
) -> dict[str, np.ndarray]:
    config = checkpoint.config.decoder
    embeddings = torch.zeros(1, size, config.hidden_size)
    embeddings[0, : len(ids)] = checkpoint.tensor("decoder.embed_tokens.weight")[ids]
    cos, sin = rope_table(torch.arange(size), config.head_dim, config.rope_theta)
    rows = config.num_key_value_heads * slots
    empty, scales = np.zeros(rows * config.head_dim, kv_dtype), np.zeros(rows, np.float32)
    names = [f"kv_{name}" for name in kv_names(config)]
    return {
        "embeddings": embeddings.numpy(),
        "rope_cos": cos.numpy(),
        "rope_sin": sin.numpy(),
        "mask": attention_mask(len(ids), slots=slots, rows=size).numpy(),
        **dict.fromkeys(names, empty),
        **({f"{name}_scale": scales for name in names} if kv_dtype == "int8" else {}),
    }
