"""Samples that a bundle stores: an input, and what PyTorch made of it. With them a device sees whether a
delegate computes the same numbers before it trusts it.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rpi_runtime.backends.base import Array, Graph
from rpi_runtime.decoder import Decoder
from rpi_runtime.embedding import EmbeddingTable, PromptRows
from rpi_runtime.errors import BundleError
from rpi_runtime.manifest import DecoderSpec
from rpi_runtime.prompt import TokenRun, VisualRun

_AGAIN = "Convert the checkpoint again, or copy the bundle again."


@dataclass(frozen=True)
class PictureSample:
    signature: str  # that takes it
    pixels: Array  # [1, side, side, 3] uint8; a graph reads them / 255 as float32
    expected: Array  # the signature's one output, float32


@dataclass(frozen=True)
class DecoderSample:
    rows: Array  # [tokens, hidden] float16: the first tokens of a text
    expected: Array  # [vocab] float32: logits behind the last of them


Sample = PictureSample | DecoderSample


def store(sample: Sample, path: Path) -> None:
    """Writes an .npz; the same sample gives the same bytes, since it holds no time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, value in asdict(sample).items():
            written = io.BytesIO()
            np.save(written, np.asarray(value), allow_pickle=False)
            file.writestr(zipfile.ZipInfo(f"{name}.npy"), written.getvalue(), zipfile.ZIP_DEFLATED)


def load(path: Path) -> Sample:
    """Raises `BundleError` for a file that holds no sample."""
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {name: file[name] for name in file.files}
        if "pixels" in parts:
            return PictureSample(str(parts.pop("signature")), **parts)
        return DecoderSample(**parts)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: holds no sample: {error}", _AGAIN) from None


def closeness(graph: Graph, sample: Sample, spec: DecoderSpec | None) -> float:
    """Cosine between what `graph` makes of `sample` and what is expected; 0 where that is no number."""
    if isinstance(sample, PictureSample):
        pixels = sample.pixels.astype(np.float32) / 255
        (result,) = graph.runner(sample.signature).run({"images": pixels}).values()
    else:
        assert spec is not None
        decoder = Decoder(graph, spec, _Rows(sample.rows.astype(np.float32)), sizes=spec.prefill_tokens[:1])
        run = TokenRun(tuple(range(len(sample.rows))))
        result = decoder.prefill(PromptRows([run], decoder.table, _no_tile))
    return _cosine(result, sample.expected)


def _cosine(a: Array, b: Array) -> float:
    if a.size != b.size:
        return 0.0
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    found = float(x @ y) / (math.sqrt(float(x @ x) * float(y @ y)) or 1.0)
    return found if math.isfinite(found) else 0.0


class _Rows(EmbeddingTable):
    """The rows of a sample, in its order."""

    def __init__(self, rows: Array) -> None:
        self.columns = rows.shape[1]
        self._rows = rows

    def rows(self, ids: Sequence[int]) -> Array:
        return self._rows[list(ids)]


def _no_tile(run: VisualRun) -> Array:
    raise AssertionError("a decoder's sample shows no picture")
