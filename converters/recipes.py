"""Quantisation recipes as data: which weights become how small, and how close the graph must stay.

A recipe is an ordered list of rules; the last rule that matches an operator wins, and an operator that no rule
matches stays float32. Rules address operators by the name of their weight in the checkpoint, without the
component: `layers.3.mlp.down_proj`, `lm_head`, `encoder.layers.0.self_attn.q_proj`, `projector.linear_1`,
`blocks.2.depthwise`. `converters.names` puts these names into the graphs.

    fp32          nothing is changed
    fp16          weights stored as float16, computed in float32: half the size, the same answers
    int8          int8 weights, one scale per output channel; activations quantised on the fly
    int4          4-bit weights where the component bears it, int8 elsewhere (mixed)
    int4-channel  4-bit weights, one scale per output channel: smallest, fastest, coarsest
    int4-block32  4-bit weights, one scale per 32 inputs
    w8a8          int8 weights and int8 activations with ranges fixed by calibration
"""

from __future__ import annotations

from dataclasses import dataclass

from rpi_runtime.errors import UsageError, nearest
from rpi_runtime.manifest import COMPONENTS, DECODER, VISION_BASE, VISION_LARGE, VRC


@dataclass(frozen=True)
class Rule:
    """How the weights of the matching operators are stored and multiplied."""

    weights: str  # "float32" (left alone), "float16", "int8" or "int4"
    scope: str = ""  # regular expression, searched in the weight's name; "" matches every operator
    op: str = "*"  # TFLite operator, "FULLY_CONNECTED", "CONV_2D", ..., or "*"
    granularity: str = "channel"  # one scale per output "channel", or per "block_32", "block_64", ... inputs
    activations: str = "dynamic"  # "dynamic": quantised on the fly; "int8": fixed ranges, needs calibration
    method: str = "min_max"  # how the scale is found: "min_max", "gptq" (needs calibration), "octav", "hadamard"


@dataclass(frozen=True)
class Limits:
    """The least that parity may show. None: not asked."""

    cosine: float
    snr_db: float | None = None
    kl_divergence: float | None = None  # nats per token, decoder only
    top1_agreement: float | None = None  # decoder only


@dataclass(frozen=True)
class Recipe:
    name: str
    rules: tuple[Rule, ...]
    limits: Limits

    @property
    def needs_calibration(self) -> bool:
        return any(r.activations == "int8" or r.method == "gptq" for r in self.rules)


def parse_recipes(text: str) -> dict[str, Recipe]:
    """Reads `--recipe`: `int8` for all components, or `vision=int8,decoder=int4`; component -> recipe.

    `vision` stands for both branches; components not named get their default. Raises `UsageError` for an
    unknown component or recipe, naming the nearest right one.
    """
    raise NotImplementedError
