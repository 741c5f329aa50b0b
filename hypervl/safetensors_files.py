"""Tensors in `model.safetensors`, or in shards with an index: mapped when read, streamed when written.

A tensor costs memory only while it is used. Every header is checked against its file before anything is read,
so that a cut or damaged file has its own message. Writing asks for one tensor at a time: a model larger than
memory can be written. The same tensors give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypervl.safetensors_header import INDEX_FILE, SINGLE_FILE, read_headers
from rpi_runtime.errors import CheckpointError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies, and what it is."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset_bytes: int  # from the beginning of the file

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFiles:
    """The tensors of one folder, or of one file."""

    def __init__(self, files: tuple[Path, ...], tensors: Mapping[str, Stored]) -> None:
        self.files = files
        self.tensors = tensors

    @classmethod
    def open(cls, path: Path) -> TensorFiles:
        """Reads the headers of `path`: a `.safetensors` file, or a folder with one or with shards.

        Raises `CheckpointError` for a file that is missing, cut or damaged, or of an unknown dtype.
        """
        files, entries = read_headers(path)
        tensors = {n: Stored(e.file, DTYPES[e.dtype], e.shape, e.offset_bytes) for n, e in entries.items()}
        return cls(files, tensors)

    def tensor(self, name: str) -> Tensor:
        """The tensor as it is stored: a private mapping of its part of the file.

        What was read of it counts as memory of this process and is given back with the tensor. Writing to it
        changes neither the file nor what a second call returns. The safetensors library maps whole files,
        of which nothing is given back before the last tensor.
        """
        held = self.tensors[name]
        if not held.bytes:
            return torch.empty(held.shape, dtype=held.dtype)
        try:
            raw = np.memmap(held.file, np.uint8, "c", held.offset_bytes, (held.bytes,))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{held.file}: {error}", "Copy or download the file again.") from None
        mapped = torch.from_numpy(raw)
        if raw.ctypes.data % held.dtype.itemsize:  # a foreign file may put a tensor anywhere
            mapped = mapped.clone()
        return mapped.view(held.dtype).reshape(held.shape)


def write_tensors(
    folder: Path,
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    produce: Callable[[str], Tensor],
    shard_bytes: int,
) -> None:
    """Writes `tensors` (name -> shape and dtype) into `folder`; `produce` is asked for one after another.

    More than `shard_bytes` become shards, in the given order, with an index.
    """
    shards: list[list[str]] = [[]]
    total = filled = 0
    for name, (shape, dtype) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
        total += size
    if len(shards) == 1:
        _write_file(folder / SINGLE_FILE, {name: tensors[name] for name in shards[0]}, produce)
        return
    where = {}
    for i, names in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, {name: tensors[name] for name in names}, produce)
        where.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def _write_file(
    path: Path, tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]], produce: Callable[[str], Tensor]
) -> None:
    # Wide types first: every tensor then begins at a multiple of its item size, and maps without a copy.
    order = sorted(tensors, key=lambda name: -tensors[name][1].itemsize)
    spelled = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        shape, dtype = tensors[name]
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": spelled[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = produce(name).detach()
            assert (tuple(tensor.shape), tensor.dtype) == tensors[name], name
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
