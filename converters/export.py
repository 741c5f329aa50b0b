"""One component of a checkpoint becomes one float32 .tflite file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from converters import block_offsets, decoder, vision, vrc
from converters.lowering import Traced, lower
from converters.nnapi import FlatTile
from converters.samples import CALIBRATION, passages
from converters.smoothing import smooth
from hypervl.checkpoint import Checkpoint
from hypervl.decoder import Decoder
from hypervl.offload import Offload
from hypervl.vision import VisionBranch
from hypervl.vrc import VRC

# Of the calibration text, for smoothing: all of it, in pieces that keep attention small.
_PASSAGES = 8
_PASSAGE_TOKENS = 256


@dataclass(frozen=True)
class ExportOptions:
    """The fixed shapes of a bundle's graphs."""

    tile_sides: tuple[int, ...]  # px, descending; one signature `tile_<side>` each
    prefill_tokens: tuple[int, ...]  # ascending; one signature `prefill_<n>` each
    contexts: tuple[int, ...]  # slots of the KV cache, ascending; signatures of their own for each
    kv_dtype: str = "float32"  # what they hold: one of `rpi_runtime.manifest.KV_BYTES`
    block_offsets: str = ""  # layers to split before the export (`Recipe.block_offsets`)
    smoothed: bool = False  # activations of a decoder are evened out before the export (`Recipe.smoothed`)
    writing: str = ""  # for a delegate (`converters.delegates.Wanted`)


def export_component(name: str, checkpoint: Checkpoint, options: ExportOptions, out_path: Path) -> None:
    """Writes component `name` ("vrc", "vision_base", "vision_large", "decoder") as float32 to `out_path`.

    The same checkpoint and options give the same bytes. The float32 weights wait on disk, where temporary
    files lie; memory holds one layer's, and what tracing a signature takes. Raises `EdgeError` when the graph
    cannot be lowered.
    """
    weights = Offload()
    module = checkpoint.load_component(name, weights).requires_grad_(False)
    if options.smoothed:
        assert isinstance(module, Decoder)
        with weights.dropping(module):
            smooth(module, passages(CALIBRATION, checkpoint, _PASSAGES, _PASSAGE_TOKENS), weights.drop)
    if options.block_offsets:
        block_offsets.apply(module, options.block_offsets, weights.drop)
    lower(_signatures(module, options), out_path, weights.drop)


def _signatures(module: nn.Module, options: ExportOptions) -> list[Traced]:
    if isinstance(module, VRC):
        return vrc.signatures(module)
    if isinstance(module, Decoder):
        return decoder.signatures(module, options.prefill_tokens, options.contexts, options.kv_dtype)
    assert isinstance(module, VisionBranch)
    return vision.signatures(module, options.tile_sides, FlatTile if options.writing == "nnapi" else None)
