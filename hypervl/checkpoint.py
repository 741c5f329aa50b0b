"""A HyperVL checkpoint: a folder in the manner of Hugging Face, read lazily and checked completely.

    config.json                 HyperVLConfig
    model.safetensors           or shards with model.safetensors.index.json; float32, float16 or bfloat16
    tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja
    preprocessor_config.json    how pictures are cut and normalised; follows from config.json

Which tensors there must be, and of which shapes, is asked of the modules themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypervl.config import HyperVLConfig
from hypervl.model import HyperVL, component, named_tensors
from hypervl.new_folder import check_target, new_folder
from hypervl.offload import Offload
from hypervl.safetensors_files import Stored, TensorFiles, write_tensors
from hypervl.safetensors_header import INDEX_FILE, first_few
from hypervl.text_files import TEXT_FILES, TextFiles, as_json, read_json
from rpi_runtime.errors import CheckpointError, nearest
from rpi_runtime.manifest import COMPONENTS

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHARD_BYTES = 2_000_000_000
_OFFLOADED_BYTES = 100_000  # smaller tensors are not worth a mapping of their own


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint. Tensors are mapped, and cost memory only while they are used."""

    folder: Path
    config: HyperVLConfig
    text_files: TextFiles
    tensor_files: TensorFiles

    @classmethod
    def open(cls, folder: Path | str) -> Checkpoint:
        """Reads everything but the tensors' values and checks that it fits together.

        Raises `CheckpointError` for a missing, cut or damaged file, a config that no model could have,
        tensors that are missing, unexpected or of another shape, and a tokenizer that does not fit the model.
        Values are checked by `check_finite`.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder", "Build a checkpoint with `toolkit assemble`.")
        if (folder / "manifest.json").exists() and not (folder / CONFIG_FILE).exists():
            raise CheckpointError(
                f"{folder}: is a bundle, not a checkpoint", "Name the checkpoint that it was converted from."
            )
        config = HyperVLConfig.from_dict(read_json(folder / CONFIG_FILE))
        text_files = TextFiles.read(folder)
        check_text(config, text_files)
        _check_preprocessor(folder / PREPROCESSOR_FILE, config)
        tensor_files = TensorFiles.open(folder)
        check_tensors(str(folder), tensor_files.tensors, expected_tensors(config))
        return cls(folder, config, text_files, tensor_files)

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """Name -> where it lies, dtype and shape, without reading its values."""
        return self.tensor_files.tensors

    def tensor(self, name: str) -> Tensor:
        """One tensor in float32 (counters stay integers). Stored as float32 it is mapped and not copied."""
        if name not in self.tensors:
            raise nearest(name, self.tensors, "tensor")
        tensor = self.tensor_files.tensor(name)
        return tensor.to(torch.float32) if tensor.is_floating_point() else tensor

    def load(self, prefix: str, offload: Offload | None = None) -> dict[str, Tensor]:
        """State dict of all tensors that begin with `prefix`, which is taken off their names."""

        def loaded(name: str) -> Tensor:
            stored = self.tensors[name]
            if offload is None or stored.bytes < _OFFLOADED_BYTES or not stored.dtype.is_floating_point:
                return self.tensor(name)
            return offload.keep(self.tensor_files.tensor(name))

        return {n.removeprefix(prefix): loaded(n) for n in self.tensors if n.startswith(prefix)}

    def load_component(self, name: str, offload: Offload | None = None) -> nn.Module:
        """Component "vrc", "vision_base", "vision_large" or "decoder" with its weights, in evaluation mode.

        Takes the component's size in float32, or none of it while the tensors are stored as float32; with
        `offload`, hardly more than the largest tensor.
        """
        with torch.device("meta"):
            module = component(self.config, name)
        module.load_state_dict(self.load(f"{name}.", offload), assign=True)
        return module.eval()

    def load_model(self) -> HyperVL:
        """All components as one model, in evaluation mode."""
        with torch.device("meta"):
            model = HyperVL(self.config)
        model.load_state_dict(self.load(""), assign=True)
        return model.eval()

    def parameters(self, prefix: str = "") -> int:
        """How many numbers the tensors below `prefix` hold."""
        return sum(math.prod(s.shape) for n, s in self.tensors.items() if n.startswith(prefix))

    def check_finite(self, prefix: str = "", on_tensor: Callable[[str], None] | None = None) -> None:
        """Reads every tensor below `prefix`, one at a time; `on_tensor` is told each name when it is done.

        Raises `CheckpointError` naming the tensors with NaN or infinity.
        """
        wrong = []
        for name in self.tensors:
            if name.startswith(prefix):
                if not all_finite(self.tensor_files.tensor(name)):
                    wrong.append(name)
                if on_tensor is not None:
                    on_tensor(name)
        if wrong:
            raise CheckpointError(
                f"{self.folder}: {_count(wrong, 'tensor')} with NaN or infinity: {first_few(wrong)}",
                "The weights are broken, most often by a training that diverged or by a cast to float16.",
            )

    def fingerprint(self) -> str:
        """sha256 (hex) over names and bytes of config, tensor files and text files."""
        digest = hashlib.sha256()
        files = [self.folder / CONFIG_FILE, *self.tensor_files.files]
        for name, size, blocks in (
            *((f.name, f.stat().st_size, _blocks(f)) for f in files),
            *((n, len(content), iter([content])) for n, content in sorted(self.text_files.files.items())),
        ):
            digest.update(f"{name}\0{size}\0".encode())
            for block in blocks:
                digest.update(block)
        return digest.hexdigest()


def save(
    model: HyperVL,
    folder: Path,
    text_files: TextFiles,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
) -> None:
    """Writes `model` as a checkpoint folder; see `write`."""
    tensors = dict(named_tensors(model))
    write(
        folder,
        model.config,
        text_files,
        tensors.__getitem__,
        dtype=dtype,
        shard_bytes=shard_bytes,
        replace=replace,
    )


def write(
    folder: Path,
    config: HyperVLConfig,
    text_files: TextFiles,
    produce: Callable[[str], Tensor],
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
    replace: bool = False,
) -> None:
    """Writes a checkpoint folder; `produce` is asked for one tensor after another, by name, of any dtype.

    The folder appears when it is whole, or not at all. The same content gives the same bytes.

    Raises `UsageError` for a folder that exists (unless `replace`) and for an unknown `dtype`,
    `CheckpointError` for a value that is not finite in `dtype`, `ResourceError` when the disk is too small.
    """
    if dtype not in DTYPES:
        raise nearest(dtype, DTYPES, "dtype")
    expected = {
        name: (tuple(t.shape), DTYPES[dtype] if t.is_floating_point() else t.dtype)
        for name, t in expected_tensors(config).items()
    }
    size = sum(math.prod(shape) * kind.itemsize for shape, kind in expected.values())

    def cast(name: str) -> Tensor:
        tensor = produce(name)
        stored = tensor.to(expected[name][1])
        if not all_finite(stored):
            why = f"is too large for {dtype}" if all_finite(tensor) else "holds NaN or infinity"
            raise CheckpointError(
                f"tensor {name!r} {why}", "Choose another dtype, or another source of the weights."
            )
        return stored

    text_bytes = sum(map(len, text_files.files.values()))
    with new_folder(folder, replace=replace, ours=_is_ours, needed_bytes=size + text_bytes) as scratch:
        (scratch / CONFIG_FILE).write_bytes(as_json(config.to_dict()))
        (scratch / PREPROCESSOR_FILE).write_bytes(as_json(_preprocessor(config)))
        text_files.write(scratch)
        write_tensors(scratch, expected, cast, shard_bytes)


def check_output(folder: Path, *, replace: bool) -> None:
    """Raises the `UsageError` of `write` for a folder that is there, before anything was computed."""
    check_target(folder.absolute(), replace=replace, ours=_is_ours)


def expected_tensors(config: HyperVLConfig) -> dict[str, Tensor]:
    """Every tensor of a checkpoint with `config`, by name and in order; on "meta", so without values."""
    with torch.device("meta"):
        return {f"{c}.{n}": t for c in COMPONENTS for n, t in named_tensors(component(config, c))}


def check_tensors(
    where: str, found: Mapping[str, Stored], expected: Mapping[str, Tensor], must_fit: str = "its config.json"
) -> None:
    """Raises `CheckpointError` with the first missing, unexpected and misshaped tensors and their count."""
    missing = [n for n in expected if n not in found]
    unexpected = [n for n in found if n not in expected]
    both = [(n, found[n], expected[n]) for n in expected if n in found]
    misshaped = [
        f"{n} is {list(f.shape)}, not {list(e.shape)}" for n, f, e in both if f.shape != tuple(e.shape)
    ]
    mistyped = [f"{n} is {f.dtype}" for n, f, e in both if f.dtype.is_floating_point != e.is_floating_point()]
    problems = [
        f"{_count(names, 'tensor')} {what}: {first_few(names)}"
        for names, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (misshaped, "of another shape"),
            (mistyped, "of another kind"),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{where} does not fit {must_fit}: {'; '.join(problems)}",
            "Weights and config must come from one model: copy both again, or correct the config.",
        )


def check_text(config: HyperVLConfig, text_files: TextFiles) -> None:
    """Raises `CheckpointError` when the tokenizer has ids or lacks tokens that the model needs otherwise."""
    rows = config.decoder.vocab_size
    largest = max(text_files.largest_token_id, *text_files.eos_token_ids, -1)
    if largest >= rows:
        raise CheckpointError(
            f"the tokenizer has token id {largest}, the decoder's vocabulary ends at {rows - 1}",
            "Use the tokenizer that belongs to the decoder.",
        )
    for role, spelling in dataclasses.asdict(config.image_tokens).items():
        if spelling and spelling not in text_files.special_tokens:
            raise CheckpointError(
                f"config.json: image_tokens.{role} {spelling!r} is no special token of the tokenizer",
                "Correct the field ('' where the model has no such token), or use the model's own tokenizer.",
            )


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity; takes no memory (NaN survives minimum and maximum)."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


def _preprocessor(config: HyperVLConfig) -> dict[str, Any]:
    return {"image_processor_type": "HyperVLImageProcessor", **dataclasses.asdict(config.tiling)}


def _check_preprocessor(path: Path, config: HyperVLConfig) -> None:
    """Two files say how pictures are cut; one that was changed alone would silently have no effect."""
    if not path.is_file():
        return
    found = read_json(path)
    for key, value in _preprocessor(config).items():
        value = list(value) if isinstance(value, tuple) else value
        if key in found and found[key] != value:
            raise CheckpointError(
                f"{path}: {key} is {found[key]!r}, config.json has {value!r}", "Make the two files agree."
            )


def _is_ours(name: str) -> bool:
    fixed = {CONFIG_FILE, PREPROCESSOR_FILE, INDEX_FILE, *TEXT_FILES}
    return name in fixed or re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", name) is not None


def _count(names: list[str], what: str) -> str:
    return f"{len(names)} {what}" + ("s" if len(names) != 1 else "")


def _blocks(path: Path) -> Any:
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            yield block
