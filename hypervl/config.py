"""The shape of a HyperVL model: dataclasses that mirror `config.json`, and the presets.

Field names are those of Hugging Face configs, so that a SigLIP2, Qwen3 or Llama `config.json` maps onto them
name by name. `docs/checkpoint.md` shows a whole file.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from rpi_runtime.errors import CheckpointError, nearest

BRANCHES = ("base", "large")
_CORRECT = "Correct the field and try again."


@dataclass(frozen=True)
class VRCConfig:
    """Visual Resolution Compressor: EfficientNet-Lite style CNN -> pooling -> MLP -> one logit per scale.

    `stages` rows are (expand ratio, output channels, repeats, stride, kernel side).
    """

    image_size: int = 224  # side in px of the square picture it looks at
    scales: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)  # ascending; share of the tile side to encode at
    stem_channels: int = 32
    stages: tuple[tuple[int, int, int, int, int], ...] = (  # EfficientNet-Lite0
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    head_channels: int = 1280
    hidden_size: int = 128  # of the MLP behind the pooling


@dataclass(frozen=True)
class VisionConfig:
    """One SigLIP/SigLIP2 branch. `image_size // patch_size` is the side of the learned position grid."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int = 448
    patch_size: int = 16
    layer_norm_eps: float = 1e-6
    # How positions reach another grid: SigLIP2 (NaFlex) "bilinear" with antialias, SigLIP "bicubic" without.
    position_interpolation: str = "bilinear"
    pixel_shuffle: int = 2  # side of the square of patches that becomes one visual token
    # Channels of 3x3 convolutions of stride 2 in front of the patch embedding; SigLIP has none.
    stem_channels: tuple[int, ...] = ()
    stem_dilations: tuple[int, ...] = ()  # of each residual 3x3 convolution behind them
    # Whether attention also turns queries and keys by row and column of their patch; SigLIP's does not.
    rotary: bool = False


@dataclass(frozen=True)
class DecoderConfig:
    """Qwen3- or Llama-like decoder."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    qk_norm: bool = True  # Qwen3 yes, Llama no
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 32768


@dataclass(frozen=True)
class TilingConfig:
    """How a picture becomes tiles, and which sides the graphs are exported for."""

    tile_side: int = 448  # px, a full-resolution tile
    tile_sides: tuple[int, ...] = (448, 320, 224)  # px, sides a tile may be encoded at, descending
    max_tiles: int = 12  # without the thumbnail
    thumbnail: bool = True  # the whole picture as one more tile, last, when there is more than one
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ImageTokensConfig:
    """Tokens around visual tokens, by their spelling in the tokenizer; "" where the model has none."""

    image_start: str = ""
    image_end: str = ""
    tile_start: str = ""  # before each tile of the grid
    row_end: str = ""  # after each row of tiles
    thumbnail_start: str = ""  # before the thumbnail


@dataclass(frozen=True)
class HyperVLConfig:
    """A whole model. `from_dict(to_dict(c)) == c`."""

    vrc: VRCConfig
    vision_base: VisionConfig
    vision_large: VisionConfig
    decoder: DecoderConfig
    tiling: TilingConfig = field(default_factory=TilingConfig)
    image_tokens: ImageTokensConfig = field(default_factory=ImageTokensConfig)
    name: str = "hypervl"
    # Branch policy "auto": large when at least this share of the grid's tiles is routed to the full side.
    auto_large_share: float = 0.5

    def vision(self, branch: str) -> VisionConfig:
        return self.vision_large if branch == "large" else self.vision_base

    def to_dict(self) -> dict[str, Any]:
        return {
            "architectures": ["HyperVLForConditionalGeneration"],
            "model_type": "hypervl",
            **dataclasses.asdict(self),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HyperVLConfig:
        """Reads what `to_dict` wrote; raises `CheckpointError` naming the field that is not right."""
        if data.get("model_type") != "hypervl":
            raise CheckpointError(
                f"config.json: model_type is {data.get('model_type')!r}, not 'hypervl'",
                "Build a HyperVL folder from public parts with `toolkit assemble`.",
            )
        plain = {k: v for k, v in data.items() if k not in ("architectures", "model_type")}
        config = _read(cls, plain, "")
        check(config)
        return config


_MOST_LAYERS = 1024  # ten times the deepest published; each takes time before the weights are looked at
_MOST_DILATION = 64  # a tile has fewer patches a side


def check(config: HyperVLConfig) -> None:
    """Raises `CheckpointError` for a shape that no graph could have."""

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise CheckpointError(f"config.json: {what}", _CORRECT)

    for part in PARTS:
        for f in dataclasses.fields(PARTS[part]):
            value = getattr(getattr(config, part), f.name)
            if f.type in ("int", "float"):
                need(value > 0, f"{part}.{f.name} is {value}, and must be above 0")
        layers = getattr(getattr(config, part), "num_hidden_layers", 0)
        need(layers <= _MOST_LAYERS, f"{part}.num_hidden_layers is {layers:,}, more than {_MOST_LAYERS}")
    d, t, r = config.decoder, config.tiling, config.vrc
    need(
        all(len(row) == 5 and min(row) > 0 for row in r.stages), "vrc.stages: a row is not 5 numbers above 0"
    )
    need(
        len(t.image_mean) == len(t.image_std) == 3 and 0 not in t.image_std,
        "tiling.image_mean and image_std need 3 numbers each, and no deviation may be 0",
    )
    need(
        d.num_attention_heads % d.num_key_value_heads == 0,
        f"decoder: {d.num_attention_heads} heads cannot share {d.num_key_value_heads} key/value heads",
    )
    need(d.head_dim % 2 == 0, f"decoder.head_dim {d.head_dim} is odd; RoPE turns pairs")
    need(
        bool(t.tile_sides) and list(t.tile_sides) == sorted(set(t.tile_sides), reverse=True),
        f"tiling.tile_sides {list(t.tile_sides)} is not a descending list",
    )
    need(t.tile_sides[0] == t.tile_side, f"tiling.tile_sides must begin with tile_side {t.tile_side}")
    need(
        bool(r.scales)
        and list(r.scales) == sorted(set(r.scales))
        and r.scales[0] > 0
        and r.scales[-1] == 1.0,
        f"vrc.scales {list(r.scales)} is not an ascending list that ends with 1.0",
    )
    for branch in BRANCHES:
        v = config.vision(branch)
        need(
            v.hidden_size % v.num_attention_heads == 0,
            f"vision_{branch}: hidden_size {v.hidden_size} is no multiple of {v.num_attention_heads} heads",
        )
        need(
            v.position_interpolation in ("bilinear", "bicubic"),
            f"vision_{branch}.position_interpolation {v.position_interpolation!r} is not bilinear or bicubic",
        )
        need(
            v.patch_size % 2 ** len(v.stem_channels) == 0 and min(v.stem_channels, default=1) > 0,
            f"vision_{branch}.stem_channels {list(v.stem_channels)} must be above 0, and halve patch_size "
            f"{v.patch_size} to a whole number",
        )
        need(
            len(v.stem_dilations) <= _MOST_LAYERS and all(0 < d <= _MOST_DILATION for d in v.stem_dilations),
            f"vision_{branch}.stem_dilations {list(v.stem_dilations)} must be 1 to {_MOST_DILATION}",
        )
        need(
            bool(v.stem_channels) or not v.stem_dilations,
            f"vision_{branch}.stem_dilations needs stem_channels",
        )
        need(
            not v.rotary or v.hidden_size // v.num_attention_heads % 4 == 0,
            f"vision_{branch}: heads of {v.hidden_size // v.num_attention_heads} numbers cannot be turned by "
            "row and column, which takes a multiple of 4",
        )
        for side in t.tile_sides:
            need(
                side % (v.patch_size * v.pixel_shuffle) == 0,
                f"tile side {side} px is not a multiple of {v.patch_size * v.pixel_shuffle} px "
                f"(vision_{branch}: patch {v.patch_size} x pixel shuffle {v.pixel_shuffle})",
            )


def _read(cls: type, data: dict[str, Any], path: str) -> Any:
    """Builds dataclass `cls` from JSON `data`, turning lists into tuples and naming what does not fit."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            raise CheckpointError(
                f"config.json: unknown field {path + key!r}", nearest(key, fields, "field").remedy
            )
    values: dict[str, Any] = {}
    for name, f in fields.items():
        if name not in data:
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise CheckpointError(f"config.json: field {path + name!r} is missing", _CORRECT)
            continue
        part = PARTS.get(name) if cls is HyperVLConfig else None
        if part is not None:
            if not isinstance(data[name], dict):
                raise CheckpointError(f"config.json: {path + name!r} is not an object", _CORRECT)
            values[name] = _read(part, data[name], f"{path}{name}.")
        else:
            values[name] = _value(data[name], str(f.type), path + name)
    return cls(**values)


_SCALARS = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def _value(value: Any, declared: str, path: str) -> Any:
    if declared.startswith("tuple"):
        if not isinstance(value, list | tuple):
            raise CheckpointError(f"config.json: {path!r} is {value!r}, expected a list", _CORRECT)
        inner = declared.removeprefix("tuple[").removesuffix("]")
        item = inner if inner.startswith("tuple") else inner.split(",")[0]
        item = item.removesuffix(", ...")
        return tuple(_value(v, item, f"{path}[{i}]") for i, v in enumerate(value))
    if not isinstance(value, _SCALARS[declared]) or (declared != "bool" and isinstance(value, bool)):
        raise CheckpointError(f"config.json: {path!r} is {value!r}, expected {declared}", _CORRECT)
    return value


PARTS: dict[str, type] = {
    "vrc": VRCConfig,
    "vision_base": VisionConfig,
    "vision_large": VisionConfig,
    "decoder": DecoderConfig,
    "tiling": TilingConfig,
    "image_tokens": ImageTokensConfig,
}

# The paper's branches (SigLIP2-Base and -Large, patch 16).
SIGLIP2_BASE = VisionConfig(768, 3072, 12, 12)
SIGLIP2_LARGE = VisionConfig(1024, 4096, 24, 16)
QWEN3_IMAGE_TOKENS = ImageTokensConfig(image_start="<|vision_start|>", image_end="<|vision_end|>")

# A cell of 8 px then sees the 127 px around it: letters of 24 px as well as small ones.
_NANO_STEM, _NANO_DILATIONS = (24, 48, 96), (1, 2, 4)


def _nano_branch(layers: int) -> VisionConfig:
    return VisionConfig(
        192,
        576,
        layers,
        6,
        image_size=384,
        stem_channels=_NANO_STEM,
        stem_dilations=_NANO_DILATIONS,
        rotary=True,
    )


PRESETS: dict[str, HyperVLConfig] = {
    # A few million parameters: tests and the demo.
    "nano": HyperVLConfig(
        name="hypervl-nano",
        vrc=VRCConfig(
            image_size=128,
            scales=(0.33, 0.66, 1.0),
            stem_channels=16,
            stages=((1, 8, 1, 1, 3), (4, 16, 2, 2, 3), (4, 24, 2, 2, 3), (4, 40, 2, 2, 3)),
            head_channels=128,
            hidden_size=64,
        ),
        # The base branch is the large one with half of its layers, and begins as a copy of it (training).
        vision_base=_nano_branch(2),
        vision_large=_nano_branch(4),
        decoder=DecoderConfig(
            # Heads of 64, and Qwen3's theta: half of a head's pairs turn by less than one radian over a
            # prompt of 800 positions, and can tell names from each other wherever they stand.
            192,
            512,
            4,
            4,
            2,
            64,
            vocab_size=768,
            rope_theta=1e6,
            max_position_embeddings=4096,
        ),
        # docs/training.md has what other sides and numbers of tiles were measured to show whole.
        tiling=TilingConfig(tile_side=384, tile_sides=(384, 256, 128), max_tiles=4),
        image_tokens=ImageTokensConfig("<image>", "</image>", "<tile>", "<row>", "<thumbnail>"),
    ),
    "0.6b": HyperVLConfig(
        name="hypervl-0.6b",
        vrc=VRCConfig(),
        vision_base=SIGLIP2_BASE,
        vision_large=SIGLIP2_LARGE,
        decoder=DecoderConfig(1024, 3072, 28, 16, 8, 128, vocab_size=151936),
        image_tokens=QWEN3_IMAGE_TOKENS,
    ),
    # The paper's model: SigLIP2-Base and -Large, Qwen3-1.7B.
    "1.7b": HyperVLConfig(
        name="hypervl-1.7b",
        vrc=VRCConfig(),
        vision_base=SIGLIP2_BASE,
        vision_large=SIGLIP2_LARGE,
        decoder=DecoderConfig(2048, 6144, 28, 16, 8, 128, vocab_size=151936),
        image_tokens=QWEN3_IMAGE_TOKENS,
    ),
}


def preset(name: str) -> HyperVLConfig:
    """The preset `name`; an unknown one raises `UsageError` with the nearest."""
    if name not in PRESETS:
        raise nearest(name, PRESETS, "preset")
    return PRESETS[name]
