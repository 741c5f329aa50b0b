"""Builds a HyperVL checkpoint from public parts: a vision tower for each branch, a decoder, a tokenizer.

No weights of HyperVL are public, but those of its parts are. Parts that are not given take their shape from a
preset and are initialised by a seed; the report names them, because they know nothing until they are trained.
Tensors stream from the parts into the new folder, one at a time.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hypervl.byte_tokenizer import IMAGE_TOKENS as BYTE_IMAGE_TOKENS
from hypervl.byte_tokenizer import byte_tokenizer
from hypervl.checkpoint import check_tensors, check_text, expected_tensors, write
from hypervl.config import (
    BRANCHES,
    QWEN3_IMAGE_TOKENS,
    HyperVLConfig,
    ImageTokensConfig,
    TilingConfig,
    VisionConfig,
    check,
    preset,
)
from hypervl.model import initial_tensor
from hypervl.public_parts import DecoderPart, Part, VisionPart, open_decoder, open_tensors, open_vision
from hypervl.text_files import TextFiles
from rpi_runtime.errors import CheckpointError, UsageError


@dataclass(frozen=True)
class Sources:
    """Where the parts come from; None is not given. `preset` shapes what is not given."""

    preset: str | None = None
    vision_base: Path | None = None  # SigLIP or SigLIP2 folder
    vision_large: Path | None = None
    decoder: Path | None = None  # Qwen3 or Llama folder
    projector_base: Path | None = None  # .safetensors with norm, linear_1, linear_2
    projector_large: Path | None = None
    vrc: Path | None = None  # .safetensors
    tokenizer: Path | None = None  # folder; else the decoder's, else bytes


@dataclass(frozen=True)
class PartReport:
    name: str
    source: str  # where it was copied from; "" when it was initialised
    parameters: int


@dataclass(frozen=True)
class AssembleReport:
    folder: Path
    config: HyperVLConfig
    parts: tuple[PartReport, ...]
    tokenizer: str  # where it came from
    seed: int

    @property
    def initialised(self) -> tuple[PartReport, ...]:
        return tuple(p for p in self.parts if not p.source)


def assemble(
    output: Path, sources: Sources, *, seed: int = 0, dtype: str = "float32", replace: bool = False
) -> AssembleReport:
    """Writes the checkpoint folder `output`.

    Raises `UsageError` when nothing was given, for an unknown preset or dtype, and for a folder that exists
    (unless `replace`); `CheckpointError` for a part that cannot be read, is not supported or does not fit.
    """
    if sources == Sources():
        raise UsageError(
            "nothing to assemble", "Name a preset (--preset nano) or a part (--decoder, --vision-base, ...)."
        )
    towers = {b: open_vision(p) for b in BRANCHES if (p := getattr(sources, f"vision_{b}")) is not None}
    decoder = open_decoder(sources.decoder) if sources.decoder is not None else None

    base = preset(sources.preset or "nano")
    tokenizer_folder = sources.tokenizer or sources.decoder
    text_files = TextFiles.read(tokenizer_folder) if tokenizer_folder else byte_tokenizer()
    shape = decoder.config if decoder else base.decoder
    if decoder is None and text_files.largest_token_id >= shape.vocab_size:
        # An initialised decoder gets as many rows as the tokenizer needs (a multiple of 64 suits kernels).
        shape = dataclasses.replace(shape, vocab_size=-(-(text_files.largest_token_id + 1) // 64) * 64)
    config = dataclasses.replace(
        base,
        name="hypervl" if towers or decoder else base.name,
        vision_base=_vision(base, towers, "base"),
        vision_large=_vision(base, towers, "large"),
        decoder=shape,
        tiling=_tiling(base.tiling, towers),
        image_tokens=_image_tokens(text_files),
    )
    check(config)
    check_text(config, text_files)

    parts: dict[str, Part | None] = {"vrc.": _optional(sources.vrc, ("vrc.",))}
    for branch in BRANCHES:
        prefix = f"vision_{branch}."
        file: Path | None = getattr(sources, f"projector_{branch}")
        parts[f"{prefix}projector."] = _optional(file, (f"{prefix}projector.", "projector."))
        parts[prefix] = towers.get(branch)
    parts["decoder."] = decoder
    expected = expected_tensors(config)
    owned = {prefix: [n for n in expected if _owner(n, parts) == prefix] for prefix in parts}
    for prefix, part in parts.items():
        if part is not None:
            must_fit = "its config.json" if isinstance(part, VisionPart | DecoderPart) else "its place"
            wanted = {n.removeprefix(prefix): expected[n] for n in owned[prefix]}
            check_tensors(str(part.path), part.tensors, wanted, must_fit)

    def produce(name: str) -> Tensor:
        prefix = _owner(name, parts)
        part = parts[prefix]
        return part.read(name.removeprefix(prefix)) if part else initial_tensor(name, expected[name], seed)

    write(output, config, text_files, produce, dtype=dtype, replace=replace)
    reports = tuple(
        PartReport(
            _part_name(prefix),
            str(part.path) if part else "",
            sum(expected[n].numel() for n in owned[prefix]),
        )
        for prefix, part in parts.items()
    )
    return AssembleReport(
        output, config, reports, str(tokenizer_folder or "built in: one token per byte"), seed
    )


def _vision(base: HyperVLConfig, towers: dict[str, VisionPart], branch: str) -> VisionConfig:
    """The branch's own shape; else the preset's, on the patch grid of the other branch when there is one."""
    if branch in towers:
        return towers[branch].config
    for given in towers.values():
        c = given.config
        return dataclasses.replace(
            base.vision(branch),
            image_size=c.image_size,
            patch_size=c.patch_size,
            position_interpolation=c.position_interpolation,
        )
    return base.vision(branch)


def _tiling(base: TilingConfig, towers: dict[str, VisionPart]) -> TilingConfig:
    """Tiles as large as the first tower was trained on; the smaller sides in the preset's proportion."""
    if not towers:
        return base
    configs = [t.config for t in towers.values()]
    unit = math.lcm(*(c.patch_size * c.pixel_shuffle for c in configs))
    full = max(configs[0].image_size // unit, 1)
    units = {full} | {max(round(full * side / base.tile_side), 1) for side in base.tile_sides}
    sides = tuple(unit * u for u in sorted(units, reverse=True))
    said = {t.mean_std for t in towers.values() if t.mean_std is not None}
    if len(said) > 1:
        raise CheckpointError(
            "the two vision towers normalise pictures differently (image_mean, image_std)",
            "Take both branches from one family.",
        )
    mean, std = said.pop() if said else (base.image_mean, base.image_std)
    return dataclasses.replace(base, tile_side=sides[0], tile_sides=sides, image_mean=mean, image_std=std)


def _image_tokens(text_files: TextFiles) -> ImageTokensConfig:
    """The spellings around pictures that this tokenizer has; none where it has none."""
    for known in (BYTE_IMAGE_TOKENS, QWEN3_IMAGE_TOKENS):
        if all(spelling in text_files.special_tokens for spelling in dataclasses.astuple(known) if spelling):
            return known
    return ImageTokensConfig()


def _optional(file: Path | None, prefixes: tuple[str, ...]) -> Part | None:
    return None if file is None else open_tensors(file, prefixes)


def _owner(name: str, prefixes: dict[str, Part | None]) -> str:
    """The longest prefix that `name` begins with: a projector lies inside its branch, but comes by itself."""
    return max((p for p in prefixes if name.startswith(p)), key=len)


def _part_name(prefix: str) -> str:
    """ "vision_base." is the tower alone: the projector is listed by itself."""
    name = prefix.rstrip(".").replace(".", " ")
    return f"{name} tower" if name.removeprefix("vision_") in BRANCHES else name
