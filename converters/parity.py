"""How close a graph is to PyTorch: every signature on real inputs, through the backend the device uses.

Pictures are cut by the runtime's tiling, and text goes through the runtime's own decoder loop: a prompt in
padded chunks of one `prefill_<n>`, then the text's own next tokens one by one through `decode`, each call
reading the keys and values that the graph's earlier calls wrote. An error therefore grows along a passage as
it would on the device.

What the figures of a row are taken over:

    route, tile_<side>   the outputs for all tiles, as one vector
    prefill_<n>          the keys and values it wrote, all layers and passages; KL and top-1 of what follows
    them decode               the logits of all passages; KL and top-1 over all of them
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from converters.decoder import kv_names
from converters.export import ExportOptions
from converters.metrics import Closeness, Distributions, rounded
from converters.recipes import Limits, Recipe
from converters.samples import PARITY, passages, tiles
from hypervl.checkpoint import Checkpoint
from hypervl.config import HyperVLConfig
from hypervl.decoder import Decoder, attention_mask, rope_table
from hypervl.offload import Offload
from hypervl.specs import decoder_spec
from hypervl.vrc import VRC
from rpi_runtime.backends.base import Graph
from rpi_runtime.backends.select import open_graph
from rpi_runtime.decoder import Decoder as GraphDecoder
from rpi_runtime.embedding import EmbeddingTable, PromptRows
from rpi_runtime.manifest import DecoderSpec, Parity
from rpi_runtime.prompt import TokenRun, VisualRun

_TILES_PER_PHOTO = 2  # a large branch takes seconds a tile in PyTorch
_ROUTED_PER_PHOTO = 12
_PROMPT_TOKENS = 145  # a full chunk of 128 and a padded one
_CONTINUED_TOKENS = 40


def check_component(
    name: str, checkpoint: Checkpoint, tflite_path: Path, recipe: Recipe, options: ExportOptions
) -> tuple[Parity, ...]:
    """One `Parity` per signature of component `name`; `passed` is judged by the recipe's limits.

    Raises nothing for a miss: the caller decides. Figures are rounded to 4 significant digits, so that the
    same files give the same manifest. The float32 weights wait on disk.
    """
    weights = Offload()
    module = checkpoint.load_component(name, weights)
    with torch.inference_mode(), weights.dropping(module):
        if isinstance(module, Decoder):
            # PyTorch first and gone before the graph is opened: memory never holds both.
            references = _references(module, checkpoint, options)
            with _opened(tflite_path) as graph:
                limits = recipe.limits.with_kv(options.kv_dtype)
                return tuple(_decoder(references, graph, limits, checkpoint.config, options))
        with _opened(tflite_path) as graph:
            return tuple(_pictures(module, checkpoint, graph, recipe.limits, options))


@contextmanager
def _opened(path: Path) -> Iterator[Graph]:
    # Without a weight cache every signature would pack a copy of the weights of its own.
    with tempfile.TemporaryDirectory() as folder:
        graph = open_graph(path, weight_cache=Path(folder), sha256=path.name)
        try:
            yield graph
        finally:
            graph.close()


def _pictures(
    module: nn.Module, checkpoint: Checkpoint, graph: Graph, limits: Limits, options: ExportOptions
) -> Iterator[Parity]:
    is_vrc = isinstance(module, VRC)
    sides = (checkpoint.config.vrc.image_size,) if is_vrc else options.tile_sides
    for side in sides:
        signature = "route" if is_vrc else f"tile_{side}"
        runner = graph.runner(signature)
        (output,) = (t.name for t in runner.signature.outputs)
        closeness = Closeness()
        for tile in tiles(PARITY, checkpoint, side, _ROUTED_PER_PHOTO if is_vrc else _TILES_PER_PHOTO):
            closeness.add(module(torch.from_numpy(tile)).numpy(), runner.run({"images": tile})[output])
        yield _judged(signature, closeness.samples, closeness, None, limits)


@dataclass(frozen=True)
class _Reference:
    """What PyTorch makes of one passage."""

    ids: Sequence[int]
    prompt_tokens: int  # the rest is the continuation
    rows: dict[int, np.ndarray]  # token -> its embedding, as the checkpoint has it
    logits: np.ndarray  # [continuation + 1, vocab], from the prompt's last token on
    kv: dict[str, np.ndarray]  # [kv_heads, prompt - 1, head_dim] of the tokens before it, by name


def _references(module: Decoder, checkpoint: Checkpoint, options: ExportOptions) -> list[_Reference]:
    """One passage for each size of a prefill chunk."""
    count = len(options.prefill_tokens)
    length = min(_PROMPT_TOKENS + _CONTINUED_TOKENS, options.contexts[0])
    return [_reference(module, ids) for ids in passages(PARITY, checkpoint, count, length)]


def _decoder(
    references: Sequence[_Reference],
    graph: Graph,
    limits: Limits,
    config: HyperVLConfig,
    options: ExportOptions,
) -> Iterator[Parity]:
    whole = decoder_spec(config.decoder, options.contexts, options.prefill_tokens, options.kv_dtype)
    for slots in reversed(whole.contexts):
        yield from _in_context(references, graph, limits, whole, slots)


def _in_context(
    references: Sequence[_Reference], graph: Graph, limits: Limits, whole: DecoderSpec, slots: int
) -> Iterator[Parity]:
    logits, distributions = Closeness(), Distributions()
    for size, reference in zip(whole.prefill_tokens, references, strict=True):
        if size not in whole.chunk_sizes(slots):
            continue
        chain = GraphDecoder(graph, whole, _Rows(reference.rows), contexts=(slots,), sizes=(size,))
        slices, following = Closeness(), Distributions()
        for expected, result in zip(reference.logits, _chained(chain, reference), strict=True):
            logits.add(expected, result)
            for tokens in (following, distributions):
                tokens.add(expected, result)
        for name, kv in reference.kv.items():
            slices.add(kv, chain.kv.read(name)[:, : kv.shape[1]])
        yield _judged(whole.signature(size, slots), reference.prompt_tokens - 1, slices, following, limits)
    yield _judged(whole.signature(1, slots), logits.samples, logits, distributions, limits)


def _reference(module: Decoder, ids: Sequence[int]) -> _Reference:
    """Runs all tokens at once."""
    config = module.config
    prompt = len(ids) - min(_CONTINUED_TOKENS, len(ids) // 2)
    embeddings = module.embed_tokens(torch.tensor([list(ids)]))
    angles = rope_table(torch.arange(len(ids)), config.head_dim, config.rope_theta)
    logits, new = module(embeddings, *angles, attention_mask(len(ids)), module.empty_kv())
    assert logits is not None
    return _Reference(
        ids,
        prompt,
        dict(zip(ids, embeddings[0].numpy(), strict=True)),
        logits[0, prompt - 1 :].numpy().copy(),  # a view would keep the prompt's logits, too
        {
            name: slices[0, :, : prompt - 1].numpy()
            for name, slices in zip(kv_names(config), new, strict=True)
        },
    )


def _chained(chain: GraphDecoder, reference: _Reference) -> Iterator[np.ndarray]:
    """The same logits [vocab] from the graph: the prompt in chunks, then the text token by token."""
    prompt = TokenRun(tuple(reference.ids[: reference.prompt_tokens]))
    yield chain.prefill(PromptRows([prompt], _Rows(reference.rows), _no_tile))
    for token in reference.ids[reference.prompt_tokens :]:
        yield chain.step(token)


class _Rows(EmbeddingTable):
    """The rows of the checkpoint's token table that a passage needs: parity measures the graph alone."""

    def __init__(self, rows: dict[int, np.ndarray]) -> None:
        self.columns = len(next(iter(rows.values())))
        self._known = rows

    def rows(self, ids: Sequence[int]) -> np.ndarray:
        return np.stack([self._known[i] for i in ids])


def _no_tile(run: VisualRun) -> np.ndarray:
    raise AssertionError("the text of parity shows no picture")


def _judged(
    signature: str, samples: int, closeness: Closeness, tokens: Distributions | None, limits: Limits
) -> Parity:
    """Stored figures are what is compared: nobody sees a miss that rounds to a pass."""
    cosine, snr_db = rounded(closeness.cosine, 7), rounded(closeness.snr_db)
    divergence = rounded(tokens.kl_divergence) if tokens else None
    agreement = rounded(tokens.top1_agreement) if tokens else None
    wanted = [
        ("cosine", cosine, ">=", limits.cosine),
        ("SNR", snr_db, ">=", limits.snr_db),
        ("KL", divergence, "<=", limits.kl_divergence),
        ("top-1", agreement, ">=", limits.top1_agreement),
    ]
    rules = [(n, f, sign, limit) for n, f, sign, limit in wanted if f is not None and limit is not None]
    return Parity(
        signature=signature,
        samples=samples,
        cosine=cosine,
        snr_db=snr_db,
        max_abs_error=rounded(closeness.max_abs_error),
        passed=all(f >= limit if sign == ">=" else f <= limit for _, f, sign, limit in rules),
        threshold=", ".join(f"{name} {sign} {limit:g}" for name, _, sign, limit in rules),
        kl_divergence=divergence,
        top1_agreement=agreement,
    )
