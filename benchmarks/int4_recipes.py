"""What each way to quantise a decoder costs: size, perplexity and agreement, on the real graphs.

Every row is exported, quantised by the converters and run through the device's decoder loop on a fixed text
(`benchmarks.perplexity`). docs/quantization.md shows the table for SmolLM2-135M-Instruct.

    python -m benchmarks.int4_recipes CHECKPOINT [WORK_FOLDER]

Takes about a minute a row on two quiet cores; graphs are kept in WORK_FOLDER and made once.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.perplexity import ASKED_TOKENS, Quality, Reference
from converters.calibration import calibration
from converters.export import ExportOptions, export_component
from converters.quantize import bits_per_weight, quantize_component
from converters.recipes import RECIPES, Limits, Recipe, Rule
from hypervl.checkpoint import Checkpoint
from hypervl.specs import decoder_spec
from rpi_runtime.backends.select import open_graph
from rpi_runtime.bundle import sha256_of
from rpi_runtime.decoder import Decoder as GraphDecoder
from rpi_runtime.embedding import EmbeddingTable
from rpi_runtime.errors import EdgeError
from rpi_runtime.manifest import DECODER

PREFILL_TOKENS = 8
_BLOCK = Rule("int4", granularity="block_32")
_HEAD = Rule("int8", r"lm_head")
_UNJUDGED = Limits(-1.0)  # a recipe of ours has limits; what was only tried has none


def _tried(name: str, *rules: Rule) -> Recipe:
    return Recipe(name, rules, _UNJUDGED)


OURS = tuple(RECIPES[DECODER][name] for name in ("fp16", "int8", "int4", "int4-small"))
PLAIN = (
    _tried("int8, not smoothed", Rule("int8")),
    _tried("int4 block 32", _BLOCK),
    _tried("int4 block 32, head int8", _BLOCK, _HEAD),
    _tried("the same, OCTAV", Rule("int4", granularity="block_32", method="octav"), _HEAD),
    _tried("the same, GPTQ", Rule("int4", granularity="block_32", method="gptq"), _HEAD),
    _tried("head, value and output int8", _BLOCK, Rule("int8", r"lm_head|\.(v|o)_proj")),
    _tried("head and down int8", _BLOCK, Rule("int8", r"lm_head|\.down_proj")),
    _tried("int4 per channel", Rule("int4")),
    _tried("int4 per channel, Hadamard", Rule("int4", method="hadamard")),
)


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        print(__doc__)
        return 2
    checkpoint = Checkpoint.open(Path(argv[0]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(argv[1] if len(argv) > 1 else scratch)
        folder.mkdir(parents=True, exist_ok=True)
        reference = Reference(checkpoint)
        best = reference.quality
        print("| Recipe | Bits per weight | MB | Perplexity | | KL | Top-1 |\n|---|---|---|---|---|---|---|")
        print(_row("PyTorch float32", 32.0, None, best, best), flush=True)
        for recipe in (*OURS, *PLAIN):
            graph = _graph(checkpoint, recipe, folder)
            quality = _quality(checkpoint, reference, graph, folder)
            print(_row(recipe.name, bits_per_weight(graph), graph, quality, best), flush=True)
    return 0


def _graph(checkpoint: Checkpoint, recipe: Recipe, folder: Path) -> Path:
    """The quantised graph of `recipe`, from a float32 one that recipes with the same preparation share."""
    options = ExportOptions((), (PREFILL_TOKENS,), ASKED_TOKENS, recipe.block_offsets, recipe.smoothed)
    slug = "".join(c if c.isalnum() else "-" for c in recipe.block_offsets) or "plain"
    slug += "-smoothed" * recipe.smoothed
    exported, graph = folder / f"{slug}.fp32.tflite", folder / f"{recipe.name.replace(' ', '-')}.tflite"
    if not exported.is_file():
        export_component(DECODER, checkpoint, options, exported)
    if not graph.is_file():
        samples = calibration(DECODER, checkpoint, options) if recipe.needs_calibration else None
        quantize_component(exported, recipe, graph, samples)
    return graph


def _quality(checkpoint: Checkpoint, reference: Reference, path: Path, folder: Path) -> Quality:
    spec = decoder_spec(checkpoint.config.decoder, ASKED_TOKENS, (PREFILL_TOKENS,))
    graph = open_graph(path, weight_cache=folder / "packed", sha256=sha256_of(path))
    try:
        return reference.quality_of(GraphDecoder(graph, spec, _Table(checkpoint)))
    finally:
        graph.close()


class _Table(EmbeddingTable):
    """The token table as the checkpoint has it, so that a row shows what happens to the graph alone."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.columns = checkpoint.config.decoder.hidden_size
        self._table = checkpoint.tensor("decoder.embed_tokens.weight")

    def rows(self, ids: Sequence[int]) -> np.ndarray:
        found: np.ndarray = self._table[list(ids)].numpy()
        return found


def _row(name: str, bits: float, graph: Path | None, quality: Quality, best: Quality) -> str:
    size = f"{graph.stat().st_size / 1e6:.0f}" if graph else ""
    more = quality.perplexity / best.perplexity - 1
    return (
        f"| {name} | {bits:.2f} | {size} | {quality.perplexity:.2f} | {more:+.1%} | "
        f"{quality.kl_divergence:.4f} | {quality.top1_agreement:.1%} |"
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EdgeError as error:
        sys.exit(f"error: {error}")
