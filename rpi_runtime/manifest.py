"""`manifest.json`: what a bundle holds. One definition, written by `converters`, read here.

Same checkpoint and options give the same bytes, so nothing in it is a time, a host or a random number.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rpi_runtime.errors import BundleError

SCHEMA_VERSION = 4
MANIFEST_FILE = "manifest.json"
# What the graphs took in memory where the bundle was made (`rpi_runtime.footprint`). Each machine has figures
# of its own, so the manifest leaves it out.
FOOTPRINT_FILE = "footprint.json"

VRC = "vrc"
VISION_BASE = "vision_base"
VISION_LARGE = "vision_large"
DECODER = "decoder"
COMPONENTS = (VRC, VISION_BASE, VISION_LARGE, DECODER)


@dataclass(frozen=True)
class File:
    """One file of the bundle. `path` is relative, inside the folder, with forward slashes."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str  # NumPy's name: "float32", "int8"


@dataclass(frozen=True)
class Signature:
    name: str  # "tile_448", "prefill_128", "decode", "route"
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Parity:
    """How close one signature is to PyTorch on real inputs; decoder rows also compare distributions."""

    signature: str
    samples: int
    cosine: float
    snr_db: float
    max_abs_error: float
    passed: bool
    threshold: str  # the rule that was applied, readable: "cosine >= 0.99"
    kl_divergence: float | None = None  # nats per token, PyTorch to graph
    top1_agreement: float | None = None  # share of positions with the same most likely token


@dataclass(frozen=True)
class Variant:
    """Another graph of a component, for a delegate, with the same signatures."""

    file: File
    recipe: str
    bits_per_weight: float
    delegate: str  # as `Component.delegate`
    parity: tuple[Parity, ...]  # on the CPU where it was made
    least_cosine: float  # as `Component.least_cosine`


@dataclass(frozen=True)
class Component:
    name: str  # one of COMPONENTS
    file: File
    recipe: str
    bits_per_weight: float
    delegate: str  # what it was lowered for: "cpu", "gpu", "nnapi:30"; the CPU runs it as well
    signatures: tuple[Signature, ...]
    parity: tuple[Parity, ...]
    # For a device to see whether its delegate computes the same: an input with what PyTorch made of it
    # (`rpi_runtime.samples`), and the cosine between that and what is computed, at least.
    sample: File
    least_cosine: float
    variants: tuple[Variant, ...] = ()  # in the order in which a device tries them

    @property
    def graphs(self) -> tuple[Component | Variant, ...]:
        """Its own, and those for delegates."""
        return (self, *self.variants)


@dataclass(frozen=True)
class Embedding:
    """The token table: `rows` x `columns` numbers, row by row from byte `offset` of `file`. That may be the
    decoder graph, whose head has the same numbers.

    An int8 number is to be multiplied with its row's scale and its column's: `scales` holds `rows`, then
    `columns` float32, little-endian.
    """

    file: File
    dtype: str  # one of `TABLE_BYTES`
    rows: int
    columns: int
    offset: int = 0
    scales: File | None = None

    @property
    def bytes(self) -> int:
        """Of the numbers, without their scales."""
        return self.rows * self.columns * TABLE_BYTES[self.dtype]

    @property
    def stored_bytes(self) -> int:
        """With their scales."""
        return self.bytes + (self.scales.bytes if self.scales else 0)


# Types of the token table, and bytes of a number.
TABLE_BYTES = {"float32": 4, "float16": 2, "int8": 1}


# Types of the KV cache, and bytes of a number. int8 has a float32 scale for each key and value of a head.
KV_BYTES = {"float32": 4, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class DecoderSpec:
    """What the host must know to feed the decoder graph and own its KV cache."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    rope_theta: float
    contexts: tuple[int, ...]  # slots that the KV cache may have, ascending: signatures of their own for each
    prefill_tokens: tuple[int, ...]  # ascending; a signature `prefill_<n>` each, where slots are as many
    kv_dtype: str  # of keys and values: one of `KV_BYTES`

    @property
    def context_tokens(self) -> int:
        """The most that an answer and all before it may take."""
        return self.contexts[-1]

    def signature(self, tokens: int, slots: int) -> str:
        """Of a call with `tokens` new ones behind a cache of `slots`, one of `contexts`."""
        name = "decode" if tokens == 1 else f"prefill_{tokens}"
        return name if slots == self.context_tokens else f"{name}_in_{slots}"

    def signatures(self, contexts: Sequence[int], sizes: Sequence[int]) -> tuple[str, ...]:
        """Names of all that feed chunks of `sizes`, or single tokens, behind caches of `contexts`."""
        return tuple(
            self.signature(n, slots)
            for slots in contexts
            for n in (1, *self.chunk_sizes(slots))
            if n in (1, *sizes)
        )

    def chunk_sizes(self, slots: int) -> tuple[int, ...]:
        """The prefill sizes that a cache of `slots` has signatures for, ascending."""
        return tuple(size for size in self.prefill_tokens if size <= slots)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers, with their scales."""
        scale = 4 if self.kv_dtype == "int8" else 0
        return 2 * self.layers * self.kv_heads * (self.head_dim * KV_BYTES[self.kv_dtype] + scale)


@dataclass(frozen=True)
class VisionSpec:
    """How pictures become tiles and tiles become visual tokens."""

    tile_side: int  # px
    tile_sides: tuple[int, ...]  # px, descending; one signature `tile_<side>` each
    max_tiles: int
    thumbnail: bool
    patch_px: int  # side of the square that becomes one visual token (patch x pixel shuffle)
    scales: tuple[float, ...]  # the VRC's classes, ascending
    vrc_side: int  # px, side of the picture the VRC sees
    auto_large_share: float  # branch "auto": large when this share of tiles or more gets the full side

    def tokens(self, side_px: int) -> int:
        """Visual tokens of one tile encoded at `side_px`."""
        return (side_px // self.patch_px) ** 2


@dataclass(frozen=True)
class ImageTokens:
    """Spellings of the tokens around visual tokens; "" where the model has none. See `hypervl.config`."""

    image_start: str = ""
    image_end: str = ""
    tile_start: str = ""
    row_end: str = ""
    thumbnail_start: str = ""


@dataclass(frozen=True)
class TextSpec:
    tokenizer: File
    chat_template: File | None
    eos_token_ids: tuple[int, ...]
    bos_token: str = ""  # spellings, as the chat template asks for them
    eos_token: str = ""
    image_tokens: ImageTokens = dataclasses.field(default_factory=ImageTokens)


@dataclass(frozen=True)
class Manifest:
    schema_version: int
    model: str
    source_sha256: str  # of the checkpoint's config, tensors and tokenizer
    tools: dict[str, str]  # package -> version that made the graphs
    components: tuple[Component, ...]
    text: TextSpec
    decoder: DecoderSpec | None
    embedding: Embedding | None
    vision: VisionSpec | None

    def component(self, name: str) -> Component | None:
        return next((c for c in self.components if c.name == name), None)

    @property
    def table_is_head(self) -> bool:
        """Whether the token table lies in the decoder graph, whose head it is."""
        decoder = self.component(DECODER)
        return bool(decoder and self.embedding and self.embedding.file == decoder.file)

    def files(self) -> tuple[File, ...]:
        """Every file the bundle lists, without the manifest itself."""
        found = []
        for component in self.components:
            found += [*(graph.file for graph in component.graphs), component.sample]
        found.append(self.text.tokenizer)
        found += [self.text.chat_template] if self.text.chat_template else []
        if self.embedding:
            # The graph of a decoder is there already.
            found += [f for f in (self.embedding.file, self.embedding.scales) if f and f not in found]
        return tuple(found)


def to_json(manifest: Manifest) -> str:
    """The manifest's text. Its field `manifest_sha256` covers the others, so that a changed byte shows."""
    return _sealed(dataclasses.asdict(manifest))


def from_json(text: str) -> Manifest:
    """Reads `to_json`'s text.

    Raises `BundleError` for a newer schema, a field that does not fit, or a text that was changed since.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST_FILE} is not JSON: {error}", _AGAIN) from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise BundleError(f"{MANIFEST_FILE} names no schema_version", _AGAIN)
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST_FILE} has schema {version}; this toolkit reads up to {SCHEMA_VERSION}",
            "Update hypervl-edge on this machine, or convert the bundle with this version.",
        )
    if version < SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST_FILE} has schema {version}, of an older toolkit; this one reads {SCHEMA_VERSION}",
            "Convert the checkpoint again.",
        )
    fields = {name: value for name, value in data.items() if name != _SEAL}
    manifest: Manifest = _build(Manifest, fields, "")
    if _sealed(fields) != text:
        raise BundleError(f"{MANIFEST_FILE} was changed: its {_SEAL} does not fit the rest of it", _AGAIN)
    return manifest


def _sealed(fields: dict[str, Any]) -> str:
    digest = hashlib.sha256(_text(fields).encode("utf-8", "surrogatepass")).hexdigest()
    return _text({**fields, _SEAL: digest})


def _text(fields: dict[str, Any]) -> str:
    return json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


_SEAL = "manifest_sha256"
_AGAIN = "Convert the checkpoint again, or copy the bundle again."


def _build(kind: Any, value: Any, path: str) -> Any:
    """Turns JSON `value` into `kind` (dataclass, tuple, dict, scalar, union with None), naming a misfit."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if value is None else _build(inner[0], value, path)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise _misfit(path, "an object", value)
        hints = typing.get_type_hints(kind)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise BundleError(f"{MANIFEST_FILE}: unknown field {path + unknown[0]!r}", _AGAIN)
        required = {
            f.name
            for f in dataclasses.fields(kind)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        absent = sorted(required - set(value))
        if absent:
            raise BundleError(f"{MANIFEST_FILE}: field {path + absent[0]!r} is missing", _AGAIN)
        return kind(**{k: _build(hints[k], v, f"{path}{k}.") for k, v in value.items()})  # type: ignore[operator]
    if origin is tuple:
        if not isinstance(value, list):
            raise _misfit(path, "a list", value)
        item = typing.get_args(kind)[0]
        return tuple(_build(item, v, f"{path}{i}.") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _misfit(path, "an object", value)
        return {str(k): _build(typing.get_args(kind)[1], v, f"{path}{k}.") for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _misfit(path, kind.__name__, value)
    return value


def _misfit(path: str, expected: str, value: Any) -> BundleError:
    return BundleError(f"{MANIFEST_FILE}: {path.rstrip('.')!r} is {value!r}, expected {expected}", _AGAIN)
