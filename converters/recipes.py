"""Quantisation recipes as data: which weights become how small, and how close the graph must stay.

A recipe is an ordered list of rules. For each operator with weights the last rule that matches wins; what no
rule matches stays float32. Rules address operators by the name of their weights in the checkpoint without the
component: `layers.3.mlp.down_proj`, `lm_head`, `encoder.layers.0.self_attn.q_proj`, `projector.linear_1`
(linear layers; a convolution only by its TFLite operator).

    fp32          nothing is changed
    fp16          weights stored as float16, computed in float32: half the size, the same answers
    int8          int8 weights, one scale per output channel; activations quantised on the fly
    int4          4-bit weights where the component bears it, int8 elsewhere; decoder: with block offsets
    int4-small    the same with a 4-bit head; decoder only
    int4-channel  4-bit weights, one scale per output channel: smallest, fastest, coarsest
    int4-block32  4-bit weights, one scale per 32 inputs
    w8a8          int8 weights and activations, ranges fixed by calibration: for integer hardware, so a fully
                  connected layer's weights have one scale; not the decoder
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rpi_runtime.errors import UsageError, nearest
from rpi_runtime.manifest import COMPONENTS, DECODER, VISION_BASE, VISION_LARGE, VRC

DEFAULT = "int8"
BRANCHES = (VISION_BASE, VISION_LARGE)


@dataclass(frozen=True)
class Rule:
    """How the weights of the matching operators are stored and multiplied."""

    weights: str  # "float32" (left alone), "float16", "int8" or "int4"
    scope: str = ""  # regular expression, searched in the name of the weights; "" matches every operator
    op: str = (
        ""  # TFLite operator, "FULLY_CONNECTED", ...; "" for all with weights, "*" for those without, too
    )
    # One scale per output "channel", per "tensor", or per "block_32", "block_64", ... inputs.
    granularity: str = "channel"
    activations: str = "dynamic"  # "dynamic": quantised on the fly; "int8": in ranges found by calibration
    method: str = "min_max"  # how scales are found: "min_max", "octav", "mse", "hadamard", "recover", "gptq"


@dataclass(frozen=True)
class Limits:
    """What parity must show at least. None: not asked.

    Measured were nano with random weights (all components) and SmolLM2-135M (decoder). The limits leave room
    for other models, and still catch a graph that is wrong, or a model that a recipe ruins.

    - float32 differs by rounding alone: 115 to 124 dB. At 80 dB errors are 100 times as large; any mistake
      is far worse.
    - float16 weights have 11 bits: 59 to 65 dB.
    - int8 keeps 26 to 30 dB, and on SmolLM2 a KL of 0.018 with 93 % of the likeliest tokens. Vision was
      measured on random weights only; trained ones have outliers, so their limits leave 9 dB.
    - 4 bits keep 5 to 15 dB: the angle of a tensor says little then, so the decoder is judged by KL. A KL of
      1 nat is another text: then the recipe does not suit the model, and the convert says so.
    - top-1 agreement is asked where the noise is small against the gap between the two likeliest tokens.
      Random weights make flat distributions with hardly a gap: 4 bits then agree on a third of the tokens,
      which is no fault of the graph.
    """

    cosine: float
    snr_db: float | None = None
    kl_divergence: float | None = None  # nats per token, at most; decoder only
    top1_agreement: float | None = None  # share of tokens; decoder only

    def with_kv(self, dtype: str) -> Limits:
        """As far as this or the KV cache's type lets a decoder be. What this does not ask is not asked."""
        other = _KV_LIMITS[dtype]
        return Limits(
            min(self.cosine, other.cosine),
            None if self.snr_db is None else min(self.snr_db, other.snr_db or 0),
            None if self.kl_divergence is None else max(self.kl_divergence, other.kl_divergence or 0),
            None if self.top1_agreement is None else min(self.top1_agreement, other.top1_agreement or 0),
        )


# Measured on the trained nano, everything else in float32: float16 keeps 70 to 73 dB, int8 40 to 44 with a KL
# of 0.0009 at most.
_KV_LIMITS = {
    "float32": Limits(1.0, snr_db=1000, kl_divergence=0.0, top1_agreement=1.0),
    "float16": Limits(0.9999, snr_db=50, kl_divergence=1e-4, top1_agreement=0.95),
    "int8": Limits(0.998, snr_db=28, kl_divergence=0.01, top1_agreement=0.9),
}


@dataclass(frozen=True)
class Recipe:
    name: str
    rules: tuple[Rule, ...]
    limits: Limits
    # Layers (a regular expression, searched in their names) that are split before the export into a 4-bit
    # grid and offsets (`converters.block_offsets`); "" for none.
    block_offsets: str = ""
    # Whether a decoder's activations are evened out before the export (`converters.smoothing`).
    smoothed: bool = False

    @property
    def kv_dtype(self) -> str:
        """Of a decoder's KV cache, unless another is asked for: 8 bits where the weights are quantised,
        beside which they cost next to nothing."""
        quantized = any(rule.weights in ("int4", "int8") for rule in self.rules)
        return "int8" if quantized else "float32"

    @property
    def head_dtype(self) -> str:
        """Of a decoder's head whose numbers are kept one by one: "float32", "float16" or "int8"; else ""."""
        fitting = [rule for rule in self.rules if re.search(rule.scope, "lm_head")]
        if not fitting:
            return "float32"
        last = fitting[-1]
        is_plain = last.weights != "int4" and (last.granularity, last.method) == ("channel", "min_max")
        return last.weights if is_plain else ""

    @property
    def needs_calibration(self) -> bool:
        return any(r.activations == "int8" or r.method == "gptq" for r in self.rules)


def parse_recipes(text: str) -> dict[str, Recipe]:
    """Reads `--recipe`: `int8` for all components, or `vision=int8,decoder=int4`; component -> recipe.

    `vision` stands for both branches, and a later entry wins. Components not named get `DEFAULT`. Raises
    `UsageError` for an unknown component or recipe, naming the nearest right one.
    """
    defaults = {component: RECIPES[component][DEFAULT] for component in COMPONENTS}
    return defaults | named_recipes(text)


def named_recipes(text: str) -> dict[str, Recipe]:
    """Those of `parse_recipes` that `text` names."""
    chosen: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, given, recipe = (part.strip() for part in entry.rpartition("="))
        for component in _meant(name) if given else COMPONENTS:
            chosen[component] = recipe
    return {component: _recipe(component, name) for component, name in chosen.items()}


def _meant(name: str) -> tuple[str, ...]:
    if name == "vision":
        return BRANCHES
    if name not in COMPONENTS:
        raise nearest(name, (*COMPONENTS, "vision"), "component in --recipe")
    return (name,)


def _recipe(component: str, name: str) -> Recipe:
    known = RECIPES[component]
    if name in known:
        return known[name]
    if any(name in recipes for recipes in RECIPES.values()):
        fits = ", ".join(c for c in COMPONENTS if name in RECIPES[c])
        raise UsageError(
            f"{component} has no recipe {name!r}, which is for {fits}",
            f"Give each component its own, such as --recipe vision={name},decoder=int8. "
            f"Known for {component}: {', '.join(known)}.",
        )
    raise nearest(name, known, "recipe")


def _recipes(
    **fields: tuple[tuple[Rule, ...], Limits]
    | tuple[tuple[Rule, ...], Limits, str]
    | tuple[tuple[Rule, ...], Limits, str, bool],
) -> Mapping[str, Recipe]:
    names = {name: name.replace("_", "-") for name in fields}
    return {names[name]: Recipe(names[name], *given) for name, given in fields.items()}


_FC = "FULLY_CONNECTED"
_FP16 = (Rule("float16"),)
_INT8 = (Rule("int8"),)
_DYNAMIC_INT8 = Limits(cosine=0.99, snr_db=17)
# Integer hardware has scales per channel for convolutions alone: TFLite's own specification of int8 gives a
# fully connected layer one scale, and NNAPI's allows no other.
_STATIC_FC = Rule("int8", op=_FC, granularity="tensor", activations="int8")

RECIPES: Mapping[str, Mapping[str, Recipe]] = {
    VRC: _recipes(
        fp32=((), Limits(0.99999, snr_db=80)),
        fp16=(_FP16, Limits(0.9999, snr_db=40)),
        int8=(_INT8, _DYNAMIC_INT8),
        # Nearly all of it is convolutions, which have no fast kernels at 4 bits and lose 25 dB there.
        int4=(_INT8, _DYNAMIC_INT8),
        int4_channel=(_INT8, _DYNAMIC_INT8),
        int4_block32=(_INT8, _DYNAMIC_INT8),
        w8a8=((Rule("int8", op="*", activations="int8"), _STATIC_FC), Limits(0.98, snr_db=14)),
    ),
    **dict.fromkeys(
        BRANCHES,
        _recipes(
            fp32=((), Limits(0.99999, snr_db=80)),
            fp16=(_FP16, Limits(0.9999, snr_db=40)),
            int8=(_INT8, _DYNAMIC_INT8),
            int4=(
                (*_INT8, Rule("int4", r"encoder\.layers", granularity="block_32")),
                Limits(0.95, snr_db=10),
            ),
            int4_channel=((*_INT8, Rule("int4", op=_FC)), Limits(0.85, snr_db=5)),
            int4_block32=((*_INT8, Rule("int4", op=_FC, granularity="block_32")), Limits(0.93, snr_db=8)),
            # Norms and softmax stay float32: in int8 they cost 4 dB and have no kernels in XNNPACK.
            w8a8=((Rule("int8", activations="int8"), _STATIC_FC), Limits(0.98, snr_db=14)),
        ),
    ),
    DECODER: _recipes(
        fp32=((), Limits(0.99999, 80, kl_divergence=1e-6, top1_agreement=0.98)),
        fp16=(_FP16, Limits(0.9999, 40, kl_divergence=1e-4, top1_agreement=0.95)),
        int8=(_INT8, Limits(0.98, 15, kl_divergence=0.1, top1_agreement=0.75), "", True),
        int4=(
            (Rule("int4", granularity="block_32", method="recover"), Rule("int8", r"lm_head|\.offsets")),
            Limits(0.8, 4, kl_divergence=0.6),
            r"layers\.",
        ),
        int4_small=(
            (Rule("int4", granularity="block_32", method="recover"), Rule("int8", r"\.offsets")),
            Limits(0.7, 3, kl_divergence=0.8),
            r"layers\.|lm_head",
        ),
        int4_channel=((Rule("int4"),), Limits(0.5, kl_divergence=1.0)),
        int4_block32=((Rule("int4", granularity="block_32"),), Limits(0.7, kl_divergence=1.0)),
    ),
}
