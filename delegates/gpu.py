"""Which operators LiteRT's GPU accelerator takes, and why not.

The accelerator is ML Drift under ai-edge-litert 2.3.0; the rules are those of its operation parsers
(`SOURCE`), each tried on the accelerator itself. Not all that it accepts runs on the GPU (`taken`), nor is
all of it computed right (`delegates.gpu_faults`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from delegates import gpu_checks as checks
from delegates import halves
from delegates.gpu_checks import FOLD, STATIC
from delegates.gpu_tensors import tensors, words
from delegates.graph import Node, Subgraph
from delegates.partition import largest, partitions
from delegates.rules import Check, Refusal

SOURCE = "ml_drift_delegate/tflite/model_builder.cc of LiteRT, ai-edge-litert 2.3.0"

MOST_PARTITIONS = 1

NEWER = "Leave out what needs the newer version."

_ABSENT = {
    "SQUEEZE": "Export it as RESHAPE.",
    "EXPAND_DIMS": "Export it as RESHAPE.",
    "BROADCAST_TO": "Leave it out: what follows broadcasts by itself. Or export it as TILE.",
    "L2_NORMALIZATION": "Export it as MUL, SUM, RSQRT and MUL.",
    "LOG_SOFTMAX": "Export it as SOFTMAX and LOG.",
    "RELU_0_TO_1": "Export it as MAXIMUM and MINIMUM.",
    "ARG_MIN": "Export it as NEG and ARG_MAX.",
    "GATHER_ND": "Export it as GATHER on flat indices.",
    "DENSIFY": "Store the weights dense.",
    "SHAPE": STATIC,
    "RANGE": FOLD,
    "FILL": FOLD,
}


@dataclass(frozen=True)
class Rule:
    version: int | None = None  # the largest of the operator that is known; None: any
    checks: tuple[Check, ...] = ()


def verdicts(subgraph: Subgraph) -> dict[int, tuple[Refusal, ...]]:
    """Number of each operator -> why the accelerator leaves it to the CPU, empty where it accepts it."""
    return halves.verdicts(subgraph, refusals)


def taken(subgraph: Subgraph) -> frozenset[int]:
    """Numbers of the operators that run on the GPU: all when all are accepted, else those of the largest part
    that hangs together. The accelerator takes no second part."""
    accepted = {number for number, why in verdicts(subgraph).items() if not why}
    if len(accepted) == len(subgraph.operators):
        return frozenset(accepted)
    return largest(partitions(subgraph, accepted), MOST_PARTITIONS)


def refusals(node: Node) -> tuple[Refusal, ...]:
    """Why the accelerator leaves this operator to the CPU; empty when it accepts it."""
    rule = RULES.get(node.name)
    if rule is None:
        fix = _ABSENT.get(node.name, "Replace it by others when exporting, or run it on the host.")
        return (Refusal("the GPU accelerator has no such operation", fix),)
    try:
        return tuple(_refusals(rule, node))
    except IndexError:
        return (Refusal("it lacks an input, an output or a dimension", "Export it again."),)


def _refusals(rule: Rule, node: Node) -> Iterator[Refusal]:
    version = node.operator.version
    if rule.version is not None and version > rule.version:
        yield Refusal(
            f"version {version} of the operator is newer than {rule.version}, the last one known", NEWER
        )
    for check in (*rule.checks, tensors):
        refusal = check(node, 0)
        if refusal is not None:
            yield refusal


_UNARY = (checks.inputs(1, 0), checks.value(0))
_BINARY = (checks.two_operands, checks.activation)
_POOLED = (
    checks.inputs(1),
    checks.positive("filter_width", "filter_height"),
    checks.STRIDES,
    checks.activation,
    checks.value(0),
)
_REDUCED = (checks.inputs(1, 1), checks.int32_constant(1, "the axes"), checks.dimensions(0), checks.value(0))
_RESIZED = (checks.inputs(1), checks.one_corner_rule, checks.value(0))
_PADDED = (checks.inputs(1), checks.padded, checks.value(0))
_BLOCKS = (checks.inputs(1, 0), checks.blocks, checks.value(0))
_MATCHED = (checks.inputs(2), checks.values)

RULES: dict[str, Rule] = {
    **dict.fromkeys(
        words("CEIL COS ELU EXP FLOOR LOG LOGICAL_NOT LOGISTIC NEG ROUND RSQRT SIGN SIN SQRT SQUARE TANH"),
        Rule(2, _UNARY),
    ),
    "ABS": Rule(5, _UNARY),
    "GELU": Rule(3, _UNARY),
    "HARD_SWISH": Rule(checks=(checks.inputs(1), checks.value(0))),
    **dict.fromkeys(words("RELU RELU6 RELU_N1_TO_1 LEAKY_RELU"), Rule(2, _UNARY)),
    "PRELU": Rule(1, (checks.slopes, checks.value(0))),
    "CAST": Rule(checks=_UNARY),
    **dict.fromkeys(
        words(
            "ATAN2 BITWISE_XOR DIV EQUAL FLOOR_MOD GREATER GREATER_EQUAL LESS LESS_EQUAL LOGICAL_AND "
            "LOGICAL_OR NOT_EQUAL POW RIGHT_SHIFT SQUARED_DIFFERENCE STABLEHLO_SHIFT_LEFT SUB ADD_N"
        ),
        Rule(2, _BINARY),
    ),
    "ADD": Rule(6, _BINARY),
    "MUL": Rule(8, _BINARY),
    "FLOOR_DIV": Rule(3, _BINARY),
    "MAXIMUM": Rule(4, _BINARY),
    "MINIMUM": Rule(4, _BINARY),
    "CONV_2D": Rule(
        6,
        (
            checks.at_most_two_computed,
            checks.not_constant,
            checks.STRIDES,
            checks.DILATIONS,
            checks.activation,
            checks.value(0),
        ),
    ),
    "DEPTHWISE_CONV_2D": Rule(
        6,
        (
            checks.at_most_two_computed,
            checks.STRIDES,
            checks.DILATIONS,
            checks.activation,
            checks.value(0),
            checks.depthwise,
        ),
    ),
    "TRANSPOSE_CONV": Rule(
        3, (checks.at_most_two_computed, checks.STRIDES, checks.value(2), checks.transposed_weights)
    ),
    "FULLY_CONNECTED": Rule(
        14,
        (
            checks.at_most_two_computed,
            checks.plain_weights,
            checks.kept_dimensions,
            checks.activation,
            checks.value(0),
            checks.weights,
        ),
    ),
    "BATCH_MATMUL": Rule(checks=(checks.matrices,)),
    "AVERAGE_POOL_2D": Rule(2, _POOLED),
    "MAX_POOL_2D": Rule(2, _POOLED),
    "SOFTMAX": Rule(4, (*_UNARY, checks.unscaled)),
    "MEAN": Rule(checks=_REDUCED),
    **dict.fromkeys(
        words("SUM REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD"), Rule(None, _REDUCED)
    ),
    "ARG_MAX": Rule(
        checks=(
            checks.inputs(1, 1),
            checks.int32_constant(1, "the axis"),
            checks.dimensions(0),
            checks.value(0),
        )
    ),
    "TOPK_V2": Rule(1, (checks.inputs(1, outputs=2), checks.largest, checks.value(0))),
    "CUMSUM": Rule(1, (checks.int32_constant(1, "the axis"), checks.cumulated, checks.value(0))),
    "RESHAPE": Rule(1, (checks.inputs(1), checks.value(0))),
    "TRANSPOSE": Rule(
        9, (checks.inputs(1), checks.int32_constant(1, "the permutation"), checks.permuted, checks.value(0))
    ),
    "CONCATENATION": Rule(6, (checks.values, checks.activation)),
    "PACK": Rule(checks=(checks.values, checks.packed)),
    "UNPACK": Rule(checks=(checks.unpacked, checks.value(0))),
    "SPLIT": Rule(checks=(checks.split, checks.value(1))),
    "SPLIT_V": Rule(checks=(checks.inputs(1, 2, outputs=None), checks.dimensions(0), checks.value(0))),
    "SLICE": Rule(
        8,
        (
            checks.not_constant,
            checks.int32_constant(1, "where it starts"),
            checks.int32_constant(2, "its size"),
            checks.sliced,
            checks.value(0),
        ),
    ),
    "STRIDED_SLICE": Rule(
        2,
        (
            checks.strided,
            *(checks.int32_constant(at, what) for at, what in ((1, "start"), (2, "end"), (3, "stride"))),
        ),
    ),
    "REVERSE_V2": Rule(checks=_REDUCED),
    "TILE": Rule(checks=(checks.inputs(1), checks.value(0))),
    "PAD": Rule(5, _PADDED),
    "PADV2": Rule(5, (*_PADDED, checks.pad_value)),
    "MIRROR_PAD": Rule(5, (checks.reflecting, *_PADDED)),
    "RESIZE_BILINEAR": Rule(3, _RESIZED),
    "RESIZE_NEAREST_NEIGHBOR": Rule(3, _RESIZED),
    "DEPTH_TO_SPACE": Rule(checks=_BLOCKS),
    "SPACE_TO_DEPTH": Rule(2, _BLOCKS),
    "SELECT": Rule(1, (checks.selected,)),
    "SELECT_V2": Rule(1, (checks.selected,)),
    "GATHER": Rule(checks=(checks.gathered, checks.values)),
    "EMBEDDING_LOOKUP": Rule(checks=(checks.looked_up, checks.value(0))),
    "ONE_HOT": Rule(1, (checks.one_hot, checks.value(0))),
    "DYNAMIC_UPDATE_SLICE": Rule(checks=(checks.updated, checks.values)),
    "DEQUANTIZE": Rule(3, (checks.dequantized,)),
    "QUANTIZE": Rule(2, (checks.inputs(1), checks.quantized, checks.value(0))),
    "Convolution2DTransposeBias": Rule(checks=(checks.value(0), checks.readable(1, "its weights", 4))),
    "MaxPoolingWithArgmax2D": Rule(checks=(checks.inputs(1, outputs=2), checks.value(0))),
    "MaxUnpooling2D": Rule(checks=_MATCHED),
    "Resampler": Rule(checks=_MATCHED),
}
