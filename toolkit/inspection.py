"""What is inside a bundle, a .tflite file or a checkpoint, gathered without torch or a TFLite runtime.

Only headers, the manifest and the structure of graphs are read, never weights, whatever the size of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rpi_runtime.errors import UsageError
from rpi_runtime.footprint import Footprint, stored_in
from rpi_runtime.manifest import COMPONENTS, MANIFEST_FILE, Manifest, Parity, Signature

if TYPE_CHECKING:
    from hypervl.config import DecoderConfig, VisionConfig


@dataclass(frozen=True)
class BundleInspection:
    kind: str
    path: str
    bytes: int  # all files that the manifest lists
    manifest: Manifest
    tile_tokens: dict[int, int]  # tile side in px -> visual tokens
    most_visual_tokens: int  # of one picture: every tile at the full side
    kv_cache_bytes: int  # of a full context
    footprint: Footprint | None  # of the graphs, where the bundle was made
    problems: tuple[str, ...]  # files that are missing or have another size; their bytes are not read


@dataclass(frozen=True)
class Constants:
    """The constant tensors of one data type; a buffer that several tensors share counts once."""

    dtype: str
    tensors: int
    numbers: int
    bytes: int


@dataclass(frozen=True)
class GraphInspection:
    kind: str
    path: str
    bytes: int
    description: str
    metadata: tuple[str, ...]
    signatures: tuple[Signature, ...]
    operators: dict[str, int]  # most frequent first; all subgraphs together
    constants: tuple[Constants, ...]  # largest first
    structure_bytes: int  # the rest of the file: operators, names, quantisation scales


@dataclass(frozen=True)
class Part:
    """The tensors of one component of a checkpoint."""

    name: str
    tensors: int
    parameters: int
    dtypes: tuple[str, ...]  # as safetensors spells them
    bytes: int
    shape: str  # in words


@dataclass(frozen=True)
class CheckpointInspection:
    kind: str
    path: str
    name: str
    parts: tuple[Part, ...]
    files: dict[str, int]  # name -> bytes; weights and text
    tile_sides: tuple[int, ...]  # px
    max_tiles: int


Inspection = BundleInspection | GraphInspection | CheckpointInspection


def look_at(path: Path) -> Inspection:
    """Finds out what `path` is and reads its structure.

    Raises `UsageError` when it is none of the three, `BundleError` or `CheckpointError` when it is damaged.
    """
    if path.is_dir():
        if (path / MANIFEST_FILE).exists():
            return _bundle(path)
        if (path / "config.json").exists():
            return _checkpoint(path)
        raise UsageError(
            f"{path} is neither a bundle (it has no {MANIFEST_FILE}) nor a checkpoint (no config.json)",
            "Name a bundle folder, a checkpoint folder or a .tflite file.",
        )
    if not path.exists():
        raise UsageError(
            f"{path} does not exist", "Name a bundle folder, a checkpoint folder or a .tflite file."
        )
    return _graph(path)


def worst(parity: tuple[Parity, ...]) -> Parity | None:
    """The signature that is furthest from PyTorch: one that failed, or the lowest cosine."""
    return min(parity, key=lambda p: (p.passed, p.cosine), default=None)


def _bundle(path: Path) -> BundleInspection:
    from rpi_runtime.bundle import Bundle

    manifest = Bundle.open(path, verify=False).manifest
    vision, decoder = manifest.vision, manifest.decoder
    most = 0
    if vision is not None:
        tiles = vision.max_tiles + (1 if vision.thumbnail and vision.max_tiles > 1 else 0)
        most = tiles * vision.tokens(vision.tile_sides[0])
    return BundleInspection(
        kind="bundle",
        path=str(path),
        bytes=sum(file.bytes for file in manifest.files()),
        manifest=manifest,
        tile_tokens={side: vision.tokens(side) for side in vision.tile_sides} if vision else {},
        most_visual_tokens=most,
        kv_cache_bytes=decoder.kv_bytes_per_token * decoder.context_tokens if decoder else 0,
        footprint=stored_in(path),
        problems=tuple(_problems(path, manifest)),
    )


def _problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    for file in manifest.files():
        try:
            held = (folder / file.path).stat().st_size
        except OSError as error:
            yield f"{file.path}: {error.strerror}"
        else:
            if held != file.bytes:
                yield f"{file.path} has {held:,} bytes instead of {file.bytes:,}"


def _graph(path: Path) -> GraphInspection:
    from rpi_runtime.tflite_file import read

    graph = read(path)
    operators = Counter(operator.name for subgraph in graph.subgraphs for operator in subgraph.operators)
    kinds: dict[int, tuple[str, int]] = {}  # buffer -> dtype and numbers of the first tensor that uses it
    for subgraph in graph.subgraphs:
        for tensor in subgraph.tensors:
            if graph.buffers[tensor.buffer].bytes:
                kinds.setdefault(tensor.buffer, (tensor.dtype, tensor.numbers))
    constants = []
    for dtype in {dtype for dtype, _ in kinds.values()}:
        held = [buffer for buffer, (kind, _) in kinds.items() if kind == dtype]
        numbers = sum(kinds[buffer][1] for buffer in held)
        constants.append(Constants(dtype, len(held), numbers, sum(graph.buffers[b].bytes for b in held)))
    return GraphInspection(
        kind="tflite",
        path=str(path),
        bytes=graph.bytes,
        description=graph.description,
        metadata=graph.metadata,
        signatures=graph.signatures,
        operators=dict(sorted(operators.items(), key=lambda pair: (-pair[1], pair[0]))),
        constants=tuple(sorted(constants, key=lambda c: (-c.bytes, c.dtype))),
        structure_bytes=graph.bytes - sum(c.bytes for c in constants),
    )


def _checkpoint(path: Path) -> CheckpointInspection:
    from hypervl.config import HyperVLConfig
    from hypervl.safetensors_header import Entry, read_headers
    from hypervl.text_files import TEXT_FILES, read_json

    config = HyperVLConfig.from_dict(read_json(path / "config.json"))
    files, entries = read_headers(path)
    parts: dict[str, list[Entry]] = {name: [] for name in COMPONENTS}
    for name, entry in entries.items():
        parts.setdefault(name.partition(".")[0], []).append(entry)
    shapes = {
        "vrc": f"{config.vrc.image_size} px, {len(config.vrc.scales)} scales",
        **{f"vision_{branch}": _shape(config.vision(branch)) for branch in ("base", "large")},
        "decoder": _shape(config.decoder),
    }
    texts = [path / name for name in TEXT_FILES if (path / name).is_file()]
    return CheckpointInspection(
        kind="checkpoint",
        path=str(path),
        name=config.name,
        parts=tuple(
            Part(
                name=name,
                tensors=len(held),
                parameters=sum(entry.numbers for entry in held if entry.dtype != "I64"),
                dtypes=tuple(sorted({entry.dtype for entry in held if entry.dtype != "I64"})),
                bytes=sum(entry.bytes for entry in held),
                shape=shapes.get(name, ""),
            )
            for name, held in parts.items()
        ),
        files={file.name: file.stat().st_size for file in (*files, *texts)},
        tile_sides=config.tiling.tile_sides,
        max_tiles=config.tiling.max_tiles,
    )


def _shape(part: VisionConfig | DecoderConfig) -> str:
    return f"{part.num_hidden_layers} layers, d {part.hidden_size}, {part.num_attention_heads} heads"
