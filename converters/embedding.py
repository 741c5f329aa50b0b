"""The token table: rows the device reads one at a time, in a file of its own or in the decoder graph.

A tied head is the table. Where the graph keeps its numbers as such, be it with a factor for each column that
`converters.smoothing` has folded in, the device reads its rows there, and the table is not stored twice.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converters.silence import silence
from hypervl.checkpoint import Checkpoint
from rpi_runtime import tflite_file
from rpi_runtime.errors import CheckpointError, EdgeError
from rpi_runtime.manifest import TABLE_BYTES

with silence():
    from ai_edge_litert import schema_py_generated as schema

TENSOR = "decoder.embed_tokens.weight"
_ROWS = 4096  # at a time: 16 MB of a 1024-wide float32 table
_LARGEST_INT8 = 127
# Of an int8 number's step: rounding takes half of it, and float32 a little more.
_MOST_OFF = 0.51


class _Rows:
    """The checkpoint's token table, of which only the rows that are asked for become float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._stored = checkpoint.tensor_files.tensor(TENSOR)
        self.shape = (self._stored.shape[0], self._stored.shape[1])

    def __getitem__(self, part: slice) -> np.ndarray:
        rows: np.ndarray = self._stored[part].float().numpy()
        return rows


@dataclass(frozen=True)
class Table:
    """Where the numbers lie: as `rpi_runtime.manifest.Embedding`, without its files."""

    dtype: str
    rows: int
    columns: int
    offset: int = 0


def write_table(checkpoint: Checkpoint, dtype: str, out_path: Path, scales_path: Path | None = None) -> Table:
    """Writes the decoder's token table to `out_path`, a block of rows at a time.

    "int8" is symmetric per row and needs `scales_path` for its scales; "float16" is the rows. Raises
    `CheckpointError` for values that float16 cannot hold.
    """
    table = _Rows(checkpoint)
    count, width = table.shape
    scales = []
    with out_path.open("wb") as file:
        for start in range(0, count, _ROWS):
            rows = table[start : start + _ROWS]
            if dtype == "int8":
                scale, quantised = quantise_rows(rows)
                scales.append(scale)
                file.write(quantised.tobytes())
            else:
                file.write(_float16(rows).tobytes())
    if dtype == "int8":
        assert scales_path is not None
        _write_scales(scales_path, np.concatenate(scales), np.ones(width, np.float32))
    return Table(dtype, count, width)


def find_table(checkpoint: Checkpoint, graph_path: Path, scales_path: Path | None = None) -> Table:
    """The decoder's token table in the graph at `graph_path`; of int8 the scales go to `scales_path`.

    Every row was compared with the checkpoint's. Raises `EdgeError` where the graph does not have them.
    """
    table = _Rows(checkpoint)
    shape = table.shape
    with graph_path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for found in _constants(data, graph_path, shape):
            stored = np.memmap(graph_path, found.dtype, mode="r", offset=found.offset, shape=shape)
            scale, factors = (np.ones(count, np.float32) for count in shape)
            if found.dtype == "int8":
                scale = _row_scales(data, found)
                factors = _column_factors(table, stored, scale)
            if _is_table(table, stored, scale, factors):
                if scales_path is not None:
                    _write_scales(scales_path, scale, 1 / factors)
                return Table(found.dtype, *shape, found.offset)
    raise EdgeError(
        f"the head in {graph_path.name} does not have the numbers of the token table",
        "Give the table a file of its own: --embedding int8.",
    )


def quantise_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales [n] float32 and rows [n, d] int8 with `rows ~ scales[:, None] * int8`, off by half a scale at
    most; a row of zeros, or of nothing but subnormal numbers, becomes zeros with scale 1."""
    scales = (np.abs(rows).max(axis=1) / _LARGEST_INT8).astype(np.float32)
    scales[scales < np.finfo(np.float32).tiny] = 1
    quantised = np.clip(np.rint(rows / scales[:, None]), -_LARGEST_INT8, _LARGEST_INT8)
    return scales, quantised.astype(np.int8)


def _float16(rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        small = rows.astype("<f2")
    if not np.isfinite(small).all():
        raise CheckpointError(
            f"{TENSOR} has values up to {np.abs(rows).max():.3g}, which float16 cannot hold",
            "Choose the int8 table (--embedding int8).",
        )
    return small


def _write_scales(path: Path, rows: np.ndarray, columns: np.ndarray) -> None:
    np.concatenate([rows, columns]).astype("<f4").tofile(path)


@dataclass(frozen=True)
class _Constant:
    dtype: str
    offset: int
    subgraph: int
    tensor: int


def _constants(data: mmap.mmap, path: Path, shape: tuple[int, int]) -> Iterator[_Constant]:
    """The graph's constants of `shape`, each buffer once."""
    graph, seen = tflite_file.parse(data, path.name), set()
    for number, subgraph in enumerate(graph.subgraphs):
        for index, tensor in enumerate(subgraph.tensors):
            buffer = graph.buffers[tensor.buffer]
            if tensor.shape == shape and tensor.dtype in TABLE_BYTES and buffer.bytes:
                if tensor.buffer not in seen:
                    yield _Constant(tensor.dtype, buffer.offset_bytes, number, index)
                seen.add(tensor.buffer)


def _row_scales(data: mmap.mmap, constant: _Constant) -> np.ndarray:
    tensor = schema.Model.GetRootAs(data).Subgraphs(constant.subgraph).Tensors(constant.tensor)
    return np.array(tensor.Quantization().ScaleAsNumpy(), np.float32)  # the mapping is closed later


def _column_factors(table: _Rows, stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """What each column of `stored` was multiplied with: powers of two, as `converters.smoothing` takes."""
    theirs, ours = (np.zeros(stored.shape[1]) for _ in range(2))
    for start in range(0, len(stored), _ROWS):
        part = slice(start, start + _ROWS)
        theirs += scale[part].astype(np.float64) @ np.abs(stored[part].astype(np.float32))
        ours += np.abs(table[part]).sum(0)
    known = (theirs > 0) & (ours > 0)
    ratio = np.divide(theirs, ours, out=np.ones_like(ours), where=known)
    return np.exp2(np.round(np.log2(ratio))).astype(np.float32)


def _is_table(table: _Rows, stored: np.ndarray, scale: np.ndarray, factors: np.ndarray) -> bool:
    for start in range(0, len(stored), _ROWS):
        part = slice(start, start + _ROWS)
        wanted, found = table[part] * factors, stored[part]
        if found.dtype == np.int8:
            step = scale[part, None]
            same = np.abs(found * step - wanted) <= _MOST_OFF * step
        else:
            same = found == wanted.astype(found.dtype)
        if not same.all():
            return False
    return True
