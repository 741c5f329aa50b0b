"""Tensors in `model.safetensors`, or in shards with an index: mapped when read, streamed when written.

A tensor costs memory only while it is used. Every header is checked against its file before anything is read,
so that a cut or damaged file has its own message. Writing asks for one tensor at a time: a model larger than
memory can be written. The same tensors give the same bytes.

The format is at https://huggingface.co/docs/safetensors: 8 bytes of header length, a JSON header, the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rpi_runtime.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
_LARGEST_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_COPY_AGAIN = "The file is incomplete or damaged: copy or download it again."


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies, and what it is."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFiles:
    """The tensors of one folder, or of one file."""

    def __init__(self, files: tuple[Path, ...], tensors: Mapping[str, Stored]) -> None:
        self.files = files
        self.tensors = tensors
        self._opened: dict[Path, Any] = {}

    @classmethod
    def open(cls, path: Path) -> TensorFiles:
        """Reads the headers of `path`: a `.safetensors` file, or a folder with one or with shards.

        Raises `CheckpointError` for a file that is missing, cut or damaged, or of an unknown dtype.
        """
        files = _shards(path) if path.is_dir() else (path,)
        tensors: dict[str, Stored] = {}
        for file in files:
            for name, stored in _read_header(file).items():
                if name in tensors:
                    raise CheckpointError(
                        f"tensor {name!r} is in {tensors[name].file.name} and in {file.name}",
                        "Keep one of them.",
                    )
                tensors[name] = stored
        return cls(files, tensors)

    def tensor(self, name: str) -> Tensor:
        """The tensor as it is stored: a private mapping of the file, not a copy."""
        file = self.tensors[name].file
        try:
            if file not in self._opened:
                self._opened[file] = safe_open(file, framework="pt")
            found: Tensor = self._opened[file].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{file}: {error}", _COPY_AGAIN) from None
        return found


def _shards(folder: Path) -> tuple[Path, ...]:
    if (folder / SINGLE_FILE).is_file():
        return (folder / SINGLE_FILE,)
    index = folder / INDEX_FILE
    if not index.is_file():
        pickled = sorted(p.name for p in folder.glob("pytorch_model*.bin"))
        hint = (
            f"{pickled[0]} is a pickle: load it with transformers and save it as safetensors."
            if pickled
            else ""
        )
        raise CheckpointError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}", hint or "Is this the folder?"
        )
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        # A shard lies beside its index: an index from elsewhere must not make us open other files.
        inside = all(PurePosixPath(name).name == name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index} is not a safetensors index", _COPY_AGAIN) from None
    if not names or not inside:
        raise CheckpointError(f"{index} names no shards, or shards outside its folder", _COPY_AGAIN)
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(
            f"{folder}: {len(absent)} of {len(names)} shards missing: {first_few(absent)}",
            "Copy or download the missing files.",
        )
    return tuple(folder / name for name in names)


def _read_header(file: Path) -> dict[str, Stored]:
    try:
        held = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            raw = stream.read(length) if length <= min(_LARGEST_HEADER_BYTES, held) else b""
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file", "Check the path.") from None
    if held < 8 + length and length <= _LARGEST_HEADER_BYTES:
        raise CheckpointError(f"{file} is cut inside its header, at {held:,} bytes", _COPY_AGAIN)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        spans = {n: (e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for n, e in header.items()}
        promised = 8 + length + max((end for _, _, _, end in spans.values()), default=0)
        sizes_known = all(
            isinstance(x, int) and x >= 0 for _, shape, b, e in spans.values() for x in (*shape, b, e)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{file}: its header is not that of a safetensors file", _COPY_AGAIN) from None
    if not sizes_known:
        raise CheckpointError(f"{file}: its header has sizes that are no whole numbers", _COPY_AGAIN)
    if held < promised:
        raise CheckpointError(
            f"{file} is cut: its header promises {promised:,} bytes, it has {held:,}", _COPY_AGAIN
        )
    found = {}
    for name, (dtype, shape, begin, end) in spans.items():
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{file}: tensor {name!r} is stored as {dtype}", "Save it as float32, float16 or bfloat16."
            )
        found[name] = Stored(file, DTYPES[dtype], shape)
        if end - begin != found[name].bytes:
            raise CheckpointError(
                f"{file}: tensor {name!r} has {end - begin:,} bytes, shape {list(shape)} needs "
                f"{found[name].bytes:,}",
                _COPY_AGAIN,
            )
    return found


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


def first_few(names: list[str], limit: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
