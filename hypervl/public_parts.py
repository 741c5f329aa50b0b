"""Public model folders as parts of a HyperVL: SigLIP and SigLIP2 towers, Qwen3 and Llama decoders.

A part is a config in our words and its tensors under our names. What our modules do not compute is refused
by name: weights that load and mean something else are worse than none. Defaults are those of transformers'
config classes, which a `config.json` may leave out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hypervl.config import DecoderConfig, VisionConfig
from hypervl.safetensors_files import Stored, TensorFiles
from hypervl.text_files import read_json
from hypervl.vision import patch_convolution_weight
from rpi_runtime.errors import CheckpointError

_PATCH_WEIGHT = "embeddings.patch_embedding.weight"
_TOWER_TYPES = ("siglip_vision_model", "siglip2_vision_model")
_DECODER_TYPES = ("qwen3", "llama")


Triple = tuple[float, float, float]  # one number per channel, red, green, blue


@dataclass(frozen=True)
class Part:
    """Tensors of one folder or file. `tensors` maps names, as in a component of ours, to what is stored."""

    path: Path
    tensors: Mapping[str, Stored]
    read: Callable[[str], Tensor]  # by our name, in our shape, in the stored dtype


@dataclass(frozen=True)
class VisionPart(Part):
    config: VisionConfig
    mean_std: tuple[Triple, Triple] | None  # None where the folder does not say


@dataclass(frozen=True)
class DecoderPart(Part):
    config: DecoderConfig


def open_vision(folder: Path) -> VisionPart:
    """A SigLIP or SigLIP2 folder, whole or the vision tower alone. Text tower and pooling head are left out.

    Raises `CheckpointError` for another architecture and for features that our branch does not have.
    """
    data = read_json(folder / "config.json")
    data = {"model_type": f"{data.get('model_type')}_vision_model", **_object(data, "vision_config", data)}
    kind = data["model_type"]
    if kind not in _TOWER_TYPES:
        raise _refused(folder, f"model_type {kind!r}", "A vision branch is a SigLIP or SigLIP2 vision tower.")
    _refuse_unless(folder, data, {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3})
    get = _Fields(folder, data)
    patch = get.whole("patch_size", 16)
    naflex = kind == "siglip2_vision_model"
    grid = math.isqrt(get.whole("num_patches", 256)) if naflex else get.whole("image_size", 224) // patch
    config = VisionConfig(
        hidden_size=get.whole("hidden_size", 768),
        intermediate_size=get.whole("intermediate_size", 3072),
        num_hidden_layers=get.whole("num_hidden_layers", 12),
        num_attention_heads=get.whole("num_attention_heads", 12),
        image_size=grid * patch,
        patch_size=patch,
        layer_norm_eps=get.number("layer_norm_eps", 1e-6),
        position_interpolation="bilinear" if naflex else "bicubic",
    )
    files = TensorFiles.open(folder)
    prefix = "vision_model." if any(n.startswith("vision_model.") for n in files.tensors) else ""
    names = {
        n.removeprefix(prefix): n
        for n in files.tensors
        if n.startswith(prefix)
        and not n.startswith((f"{prefix}head.", "text_model.", "logit_"))
        and not n.endswith(".position_ids")
    }
    tensors = {ours: files.tensors[theirs] for ours, theirs in names.items()}
    # A NaFlex tower reads flattened patches: its patch embedding is a linear layer of the same numbers.
    linear = _PATCH_WEIGHT in tensors and tensors[_PATCH_WEIGHT].shape == (
        config.hidden_size,
        3 * patch * patch,
    )
    if linear:
        shape = (config.hidden_size, 3, patch, patch)
        tensors[_PATCH_WEIGHT] = dataclasses.replace(tensors[_PATCH_WEIGHT], shape=shape)

    def read(name: str) -> Tensor:
        tensor = files.tensor(names[name])
        return patch_convolution_weight(tensor, patch) if linear and name == _PATCH_WEIGHT else tensor

    return VisionPart(folder, tensors, read, config, _mean_std(folder))


def open_decoder(folder: Path) -> DecoderPart:
    """A Qwen3 or Llama folder (`...ForCausalLM` or the bare model).

    Raises `CheckpointError` for another architecture and for features that our decoder does not have.
    """
    data = read_json(folder / "config.json")
    kind = data.get("model_type")
    if kind not in _DECODER_TYPES:
        raise _refused(folder, f"model_type {kind!r}", f"A decoder is one of: {', '.join(_DECODER_TYPES)}.")
    rope = {**_object(data, "rope_scaling", {}), **_object(data, "rope_parameters", {})}
    features = {
        **data,
        "rope type": rope.get("rope_type", rope.get("type", "default")),
        "partial_rotary_factor": rope.get("partial_rotary_factor", data.get("partial_rotary_factor", 1.0)),
        "layer_types": sorted(set(data.get("layer_types") or ["full_attention"])),
    }
    _refuse_unless(
        folder,
        features,
        {
            "attention_bias": False,
            "mlp_bias": False,
            "use_sliding_window": False,
            "layer_types": ["full_attention"],
            "rope type": "default",
            "partial_rotary_factor": 1.0,
            "hidden_act": "silu",
            "quantization_config": None,
        },
    )
    get = _Fields(folder, data)
    llama = kind == "llama"
    hidden, heads = get.whole("hidden_size"), get.whole("num_attention_heads")
    config = DecoderConfig(
        hidden_size=hidden,
        intermediate_size=get.whole("intermediate_size"),
        num_hidden_layers=get.whole("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=get.whole("num_key_value_heads", heads if llama else 32),
        head_dim=get.whole("head_dim", hidden // heads if llama else 128),
        vocab_size=get.whole("vocab_size"),
        rms_norm_eps=get.number("rms_norm_eps", 1e-6),
        rope_theta=_Fields(folder, {**data, **rope}).number("rope_theta", 10000.0),
        qk_norm=not llama,
        tie_word_embeddings=bool(data.get("tie_word_embeddings", False)),
        max_position_embeddings=get.whole("max_position_embeddings", 2048 if llama else 32768),
    )
    files = TensorFiles.open(folder)
    names = {n.removeprefix("model."): n for n in files.tensors if not n.endswith("rotary_emb.inv_freq")}
    head, embedding = names.get("lm_head.weight"), names.get("embed_tokens.weight")
    if config.tie_word_embeddings and head and embedding:
        # Some files repeat a tied head. One that differs is a head of its own, as transformers 5 reads it.
        if torch.equal(files.tensor(head), files.tensor(embedding)):
            del names["lm_head.weight"]
        else:
            config = dataclasses.replace(config, tie_word_embeddings=False)
    tensors = {ours: files.tensors[theirs] for ours, theirs in names.items()}
    return DecoderPart(folder, tensors, lambda name: files.tensor(names[name]), config)


def open_tensors(path: Path, prefixes: tuple[str, ...]) -> Part:
    """A `.safetensors` file with tensors of ours, behind the first of `prefixes` that fits any name."""
    files = TensorFiles.open(path)
    prefix = next((p for p in prefixes if any(n.startswith(p) for n in files.tensors)), "")
    tensors = {n.removeprefix(prefix): s for n, s in files.tensors.items()}
    return Part(path, tensors, lambda name: files.tensor(prefix + name))


@dataclass(frozen=True)
class _Fields:
    """Numbers of a foreign `config.json`, named when they are missing or of another type."""

    folder: Path
    data: Mapping[str, Any]

    def whole(self, name: str, default: int | None = None) -> int:
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._misfit(name, value, "a whole number above 0")
        return value

    def number(self, name: str, default: float) -> float:
        value = self._value(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self._misfit(name, value, "a number above 0")
        return float(value)

    def _value(self, name: str, default: float | None) -> Any:
        value = self.data.get(name)
        return default if value is None else value

    def _misfit(self, name: str, value: Any, wanted: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}/config.json: {name} is {value!r}, expected {wanted}", "Is this the right folder?"
        )


def _object(data: Mapping[str, Any], name: str, default: Mapping[str, Any]) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, dict) else default


def _refuse_unless(folder: Path, data: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Raises for the first feature that `data` sets to anything but what is supported."""
    for name, value in supported.items():
        found = data.get(name)
        if found is not None and found != value:
            raise _refused(folder, f"{name} {found!r}", f"Only {value!r} is supported.")


def _refused(folder: Path, what: str, remedy: str) -> CheckpointError:
    return CheckpointError(f"{folder}/config.json: {what} is not supported", remedy)


def _mean_std(folder: Path) -> tuple[Triple, Triple] | None:
    if not (folder / "preprocessor_config.json").is_file():
        return None
    data = read_json(folder / "preprocessor_config.json")
    found = []
    for key in ("image_mean", "image_std"):
        match data.get(key):
            case [float() | int() as red, float() | int() as green, float() | int() as blue]:
                found.append((float(red), float(green), float(blue)))
            case _:
                return None
    return found[0], found[1]
