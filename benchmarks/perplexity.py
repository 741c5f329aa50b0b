"""Perplexity of bundles on a fixed text, through the decoder loop of the device, beside PyTorch in float32.

The text is the beginning of "Alice's Adventures in Wonderland" (benchmarks/data), which nothing here is
calibrated with. It is cut into passages of 513 tokens; the model sees each passage alone and is asked for
every token but the first. PyTorch sees a passage at once, the graph token by token with its KV cache, so that
errors add up as they do on the device.

    python -m benchmarks.perplexity CHECKPOINT BUNDLE...
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from converters.metrics import Distributions, log_softmax
from hypervl.checkpoint import Checkpoint
from hypervl.decoder import Decoder, attention_mask, rope_table
from rpi_runtime.decoder import Decoder as GraphDecoder
from rpi_runtime.errors import EdgeError
from rpi_runtime.manifest import DECODER
from rpi_runtime.session import Session
from rpi_runtime.tokenizer import TextCodec

TEXT = Path(__file__).parent / "data" / "alice.txt"
ASKED_TOKENS = 512  # of each passage; one more comes before them


@dataclass(frozen=True)
class Quality:
    tokens: int  # that the model was asked for
    perplexity: float
    kl_divergence: float  # nats per token, from PyTorch in float32
    top1_agreement: float  # share of tokens with PyTorch's most likely one


class Tally:
    """Adds up the quality of one model, position by position."""

    def __init__(self) -> None:
        self._distributions = Distributions()
        self._loss = 0.0

    def add(self, reference: np.ndarray, logits: np.ndarray, token: int) -> None:
        """Logits [vocab] of PyTorch and of the model, and the token that the text has there."""
        self._distributions.add(reference, logits)
        self._loss -= float(log_softmax(logits)[token])

    @property
    def quality(self) -> Quality:
        tokens = self._distributions.positions
        return Quality(
            tokens,
            math.exp(self._loss / tokens),
            self._distributions.kl_divergence,
            self._distributions.top1_agreement,
        )


class Reference:
    """What PyTorch says to each passage: computed once, 4 bytes per token and entry of the vocabulary."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        module = checkpoint.load_component(DECODER)
        assert isinstance(module, Decoder)
        self._passages = passages(TextCodec.from_checkpoint(checkpoint.folder))
        self._logits = [reference_logits(module, ids[:-1]) for ids in self._passages]

    @property
    def quality(self) -> Quality:
        return self._compare(iter(self._logits))

    def quality_of(self, decoder: GraphDecoder) -> Quality:
        """Feeds every passage token by token. Raises ValueError when the context is shorter than one."""
        if decoder.kv.slots < ASKED_TOKENS:
            raise ValueError(f"a context of {decoder.kv.slots} tokens, {ASKED_TOKENS} are needed")
        return self._compare(graph_logits(decoder, ids[:-1]) for ids in self._passages)

    def _compare(self, results: Iterator[Iterable[np.ndarray]]) -> Quality:
        tally = Tally()
        for ids, expected, found in zip(self._passages, self._logits, results, strict=True):
            for token, reference, logits in zip(ids[1:], expected, found, strict=True):
                tally.add(reference, logits, token)
        return tally.quality


def passages(codec: TextCodec) -> list[list[int]]:
    """The whole passages of the text, 513 token ids each."""
    ids = codec.encode(TEXT.read_text(encoding="utf-8"))
    size = ASKED_TOKENS + 1
    return [list(ids[i : i + size]) for i in range(0, len(ids) - size + 1, size)]


def reference_logits(module: Decoder, ids: Sequence[int]) -> np.ndarray:
    """Logits [tokens, vocab] behind each of `ids`."""
    with torch.inference_mode():
        embeddings = module.embed_tokens(torch.tensor([list(ids)]))
        angles = rope_table(torch.arange(len(ids)), module.config.head_dim, module.config.rope_theta)
        logits, _ = module(embeddings, *angles, attention_mask(len(ids)), module.empty_kv())
        assert logits is not None
        found: np.ndarray = logits[0].numpy()
        return found


def graph_logits(decoder: GraphDecoder, ids: Sequence[int]) -> Iterator[np.ndarray]:
    """The same, one position after another, from an empty cache."""
    decoder.kv.wipe()
    for token in ids:
        yield decoder.step(token)


def main(argv: Sequence[str]) -> int:
    if len(argv) < 2 or argv[0].startswith("-"):
        print(__doc__)
        return 2
    reference = Reference(Checkpoint.open(Path(argv[0])))
    _print("PyTorch float32", reference.quality)
    for bundle in argv[1:]:
        with Session.open(bundle) as session:
            _print(bundle, reference.quality_of(session.decoder))
    return 0


def _print(name: str, quality: Quality) -> None:
    print(
        f"{name}: perplexity {quality.perplexity:.2f} over {quality.tokens} tokens, "
        f"KL {quality.kl_divergence:.4f}, top-1 {quality.top1_agreement:.1%}"
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EdgeError as error:
        sys.exit(f"error: {error}")
