"""What the decoder is fed: rows of the token table, which stays on disk, and visual tokens in their
places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rpi_runtime.backends.base import Array
from rpi_runtime.errors import BundleError
from rpi_runtime.manifest import Embedding
from rpi_runtime.prompt import Position, Run, TokenRun, VisualRun


class EmbeddingTable:
    """The token table, mapped: only the rows that are read come into memory, and the kernel may drop them."""

    def __init__(self, path: Path, spec: Embedding) -> None:
        """`path` holds `spec.rows` x `spec.columns` numbers, int8 with float32 scales per row behind them.

        Raises `BundleError` when the file's size does not fit.
        """
        self.columns = spec.columns
        self._spec = spec
        shape = (spec.rows, spec.columns)
        scale_bytes = spec.rows * 4 if spec.dtype == "int8" else 0
        expected = spec.rows * spec.columns * np.dtype(spec.dtype).itemsize + scale_bytes
        if path.stat().st_size != expected:
            raise BundleError(
                f"{path}: {path.stat().st_size} bytes, but {spec.rows} x {spec.columns} {spec.dtype} "
                f"need {expected}",
                "Copy the bundle again, or convert the checkpoint again.",
            )
        self._rows = np.memmap(path, dtype=spec.dtype, mode="r", shape=shape)
        self._scales: Array | None = None
        if scale_bytes:
            self._scales = np.fromfile(path, dtype="<f4", offset=expected - scale_bytes)

    def rows(self, ids: Sequence[int]) -> Array:
        """Embeddings [len(ids), columns] float32; `BundleError` for an id that the table does not have."""
        wanted = np.asarray(ids, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self._spec.rows:
            raise BundleError(
                f"token ids {wanted.min()} to {wanted.max()} do not fit the {self._spec.rows} embeddings",
                "The tokenizer belongs to another model: convert the checkpoint again.",
            )
        found: Array = self._rows[wanted].astype(np.float32)
        if self._scales is not None:
            found *= self._scales[wanted, None]
        return found


class PromptRows:
    """The runs of a prompt as embeddings, a stretch at a time.

    `visual` gives the visual tokens [tokens, columns] of a run's whole tile, of any float type.
    """

    def __init__(
        self, runs: Sequence[Run], table: EmbeddingTable, visual: Callable[[VisualRun], Array]
    ) -> None:
        self._table = table
        self._visual = visual
        self._runs = tuple(runs)
        self.positions: list[Position] = [position for run in runs for position in run.positions()]

    def write(self, start: int, out: Array) -> None:
        """Fills `out` [n, columns] float32 with positions `start` to `start + n`."""
        end, begin = start + len(out), 0
        for run in self._runs:
            first, last = max(start, begin), min(end, begin + run.tokens)
            if first < last:
                out[first - start : last - start] = self._rows(run, first - begin, last - begin)
            begin += run.tokens

    def _rows(self, run: Run, first: int, last: int) -> Array:
        if isinstance(run, TokenRun):
            return self._table.rows(run.ids[first:last])
        return self._visual(run)[run.start + first : run.start + last]
