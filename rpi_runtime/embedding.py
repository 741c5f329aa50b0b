"""What the decoder is fed: rows of the token table, which stays on disk, and visual tokens in their
places.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rpi_runtime.backends.base import Array
from rpi_runtime.errors import BundleError
from rpi_runtime.manifest import Embedding
from rpi_runtime.prompt import Position, Run, TokenRun, VisualRun


class EmbeddingTable:
    """The token table, read row by row. Mapped, each row that is touched would bring sixteen pages: around a
    fault the kernel maps what its page cache has."""

    def __init__(self, path: Path, spec: Embedding, scales_path: Path | None = None) -> None:
        """`path` holds the numbers that `spec` describes, `scales_path` the scales of int8 ones.

        Raises `BundleError` when one cannot be read.
        """
        self.columns = spec.columns
        self._spec = spec
        self._path = path
        self._row_bytes = spec.bytes // spec.rows
        try:
            self._file = path.open("rb", buffering=0)
            self._scales = np.fromfile(scales_path, "<f4") if scales_path else None
        except OSError as error:
            raise BundleError(f"{error.filename} cannot be read: {error.strerror}", _AGAIN) from None

    def rows(self, ids: Sequence[int]) -> Array:
        """Embeddings [len(ids), columns] float32; `BundleError` for an id that the table does not have."""
        wanted = np.asarray(ids, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < self._spec.rows:
            raise BundleError(
                f"token ids {wanted.min()} to {wanted.max()} do not fit the {self._spec.rows} embeddings",
                "The tokenizer belongs to another model: convert the checkpoint again.",
            )
        size, start, file = self._row_bytes, self._spec.offset, self._file.fileno()
        read = b"".join(os.pread(file, size, start + int(row) * size) for row in wanted)
        if len(read) != len(wanted) * size:
            raise BundleError(f"{self._path} was cut since it was opened", _AGAIN)
        stored = np.frombuffer(read, np.dtype(self._spec.dtype).newbyteorder("<"))
        found: Array = stored.reshape(len(wanted), self.columns).astype(np.float32)
        if self._scales is not None:
            found *= self._scales[wanted, None]
            found *= self._scales[self._spec.rows :]
        return found


_AGAIN = "Copy the bundle again, or convert the checkpoint again."


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
