"""One component of a checkpoint becomes one float32 .tflite file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from converters import decoder, vision, vrc
from converters.lowering import Traced, lower
from hypervl.checkpoint import Checkpoint
from rpi_runtime.manifest import DECODER, VRC


@dataclass(frozen=True)
class ExportOptions:
    """The fixed shapes of a bundle's graphs."""

    tile_sides: tuple[int, ...]  # px, descending; one signature `tile_<side>` each
    prefill_tokens: tuple[int, ...]  # ascending; one signature `prefill_<n>` each
    context_tokens: int  # slots of the KV cache


def export_component(name: str, checkpoint: Checkpoint, options: ExportOptions, out_path: Path) -> None:
    """Writes component `name` ("vrc", "vision_base", "vision_large", "decoder") as float32 to `out_path`.

    The same checkpoint and options give the same bytes. Memory stays near one and a half times the component's
    float32 weights: run it in a process of its own. Raises `EdgeError` when the graph cannot be lowered.
    """
    module = checkpoint.load_component(name).requires_grad_(False)
    lower(_signatures(name, module, options), out_path)


def _signatures(name: str, module: object, options: ExportOptions) -> list[Traced]:
    if name == VRC:
        return vrc.signatures(module)
    if name == DECODER:
        return decoder.signatures(module, options.prefill_tokens, options.context_tokens)
    return vision.signatures(module, options.tile_sides)
