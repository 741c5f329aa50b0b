"""Which tensors safetensors files hold, from their headers alone: no torch, no safetensors library.

The format is at https://huggingface.co/docs/safetensors: 8 bytes of header length, a JSON header, the data.
Every header is checked against its file, so that a cut or damaged file has its own message.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rpi_runtime.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}  # the dtypes a checkpoint may have
_LARGEST_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_COPY_AGAIN = "The file is incomplete or damaged: copy or download it again."


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    file: Path
    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    offset_bytes: int  # from the beginning of the file

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numbers * ITEM_BYTES[self.dtype]


def read_headers(path: Path) -> tuple[tuple[Path, ...], dict[str, Entry]]:
    """The files at `path` (a `.safetensors` file, or a folder with one or with shards) and the tensors in
    them.

    Raises `CheckpointError` for a file that is missing, cut or damaged, or of an unknown dtype.
    """
    files = _shards(path) if path.is_dir() else (path,)
    tensors: dict[str, Entry] = {}
    for file in files:
        for name, entry in _read_header(file).items():
            if name in tensors:
                raise CheckpointError(
                    f"tensor {name!r} is in {tensors[name].file.name} and in {file.name}",
                    "Keep one of them.",
                )
            tensors[name] = entry
    return files, tensors


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


def _read_header(file: Path) -> dict[str, Entry]:
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
        if dtype not in ITEM_BYTES:
            raise CheckpointError(
                f"{file}: tensor {name!r} is stored as {dtype}", "Save it as float32, float16 or bfloat16."
            )
        found[name] = Entry(file, dtype, shape, 8 + length + begin)
        if end - begin != found[name].bytes:
            raise CheckpointError(
                f"{file}: tensor {name!r} has {end - begin:,} bytes, shape {list(shape)} needs "
                f"{found[name].bytes:,}",
                _COPY_AGAIN,
            )
    return found


def first_few(names: list[str], limit: int = 3) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
