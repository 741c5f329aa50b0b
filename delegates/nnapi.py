"""Which operators TFLite's NNAPI delegate takes, at each feature level, and why not.

NNAPI is the legacy path: Android 15 deprecates it. The rules are those of `NNAPIDelegateKernel::Validate` in
TensorFlow Lite 2.14.1 (`SOURCE`), for an accelerator that takes every operation: what a driver refuses itself
nobody knows beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from delegates import halves
from delegates.graph import GraphTensor, Node, Subgraph
from delegates.rules import (
    QUANTIZE,
    Check,
    Refusal,
    between,
    constant,
    input_count,
    input_is,
    no_activation,
    output_is,
    output_rank,
    rank,
    since,
    told,
    until,
)

# Feature level: Android's API level up to 31 (Android 12), then one of NNAPI's own, which a driver may bring.
LEVELS = {
    27: "Android 8.1, NNAPI 1.0",
    28: "Android 9, NNAPI 1.1",
    29: "Android 10, NNAPI 1.2",
    30: "Android 11, NNAPI 1.3",
    31: "Android 12, NNAPI feature level 5",
    1_000_006: "NNAPI feature level 6",
    1_000_007: "NNAPI feature level 7",
    1_000_008: "NNAPI feature level 8",
}
ANDROID_LEVELS = tuple(level for level in LEVELS if level <= 31)
LEVEL_6, LEVEL_7 = 1_000_006, 1_000_007
SOURCE = "tensorflow/lite/delegates/nnapi/nnapi_delegate.cc, 2.14.1"
# StatefulNnApiDelegate::Options::max_number_delegated_partitions, unless an application sets another.
MOST_PARTITIONS = 3

_QUANT8 = ("uint8", "int8")
_FLOAT_OR_QUANT8 = ("float32", *_QUANT8)
_NUMBERS = (*_FLOAT_OR_QUANT8, "int32")
_WRITTEN = "Convert with --delegate nnapi, which writes a vision branch without it."
_FLOAT = "Keep this operator in float32, or quantise the whole graph."


@dataclass(frozen=True)
class Rule:
    version: int | None = None  # the largest of the operator that is known; None: any
    since: int = 27  # feature level
    checks: tuple[Check, ...] = ()


def verdicts(subgraph: Subgraph, level: int) -> dict[int, tuple[Refusal, ...]]:
    """Number of each operator -> why the delegate leaves it to the CPU at feature level `level`, empty where
    it takes it."""
    return halves.verdicts(subgraph, lambda node: refusals(node, level))


def refusals(node: Node, level: int) -> tuple[Refusal, ...]:
    """Why the delegate leaves this operator to the CPU at feature level `level`; empty when it takes it."""
    rule = RULES.get(node.name)
    if rule is None:
        fix = _WRITTEN if node.name == "GELU" else "Replace it by others when exporting."
        return (Refusal("NNAPI has no such operation", fix),)
    try:
        return tuple(_refusals(rule, node, level))
    except IndexError:
        return (Refusal("it lacks an input, an output or a dimension", "Export it again."),)


def faults(node: Node) -> tuple[Refusal, ...]:
    """What NNAPI's specification does not allow, and the delegate hands to the driver all the same."""
    weights = node.inputs[1] if node.name == "FULLY_CONNECTED" and len(node.inputs) > 1 else None
    quantization = weights.quantization if weights else None
    static = node.inputs[0] is not None and node.inputs[0].dtype in _QUANT8 if node.inputs else False
    if quantization is None or quantization.channels <= 1 or not static:
        return ()
    reason = f"its weights have {quantization.channels} scales, and NNAPI's specification gives them one"
    return (Refusal(reason, "Convert with --delegate nnapi, whose w8a8 has one."),)


def _refusals(rule: Rule, node: Node, level: int) -> Iterator[Refusal]:
    if node.name == "DEQUANTIZE" and level >= 30 and _is_half_activation(node.input(0)):
        return
    version = node.operator.version
    if rule.version is not None and version > rule.version:
        yield Refusal(
            f"version {version} of the operator is newer than {rule.version}, the last one known",
            "Leave out what needs the newer version: 4-bit weights, int16 activations, more dimensions.",
        )
    if level < rule.since:
        fix = _WRITTEN if node.name == "BATCH_MATMUL" else f"Ask for {_level(rule.since)} or later."
        yield Refusal(f"it is known from {_level(rule.since)} on", fix)
    for check in rule.checks:
        refusal = check(node, level)
        if refusal is not None:
            yield refusal


def _level(level: int) -> str:
    return f"feature level {level} ({LEVELS[level]})"


def _is_half_activation(tensor: GraphTensor) -> bool:
    return tensor.dtype == "float16" and not tensor.is_constant


def _is_hybrid(node: Node, weights: int) -> bool:
    """Weights of 8 bits under activations of float32: dynamic quantisation."""
    return node.input(0).dtype == "float32" and node.input(weights).dtype in _QUANT8


def _not_hybrid(weights: int = 1) -> Check:
    def check(node: Node, level: int) -> Refusal | None:
        if not _is_hybrid(node, weights):
            return None
        return Refusal("its weights have 8 bits and its input is float32", QUANTIZE)

    return check


def _restricted_scales(node: Node, level: int) -> Refusal | None:
    """Of uint8 before NNAPI 1.2."""
    scales = [t.quantization.scale if t.quantization else 0.0 for t in (*_two(node), node.outputs[0])]
    if node.input(0).dtype != "uint8" or scales[0] * scales[1] < scales[2]:
        return None
    return Refusal(
        f"scale of input times scale of weights, {scales[0] * scales[1]:g}, is not below that of the output, "
        f"{scales[2]:g}",
        f"Ask for {_level(29)} or later.",
    )


def _two(node: Node) -> tuple[GraphTensor, GraphTensor]:
    return node.input(0), node.input(1)


def _per_tensor_weights(node: Node, level: int) -> Refusal | None:
    quantization = node.input(1).quantization
    if quantization is None or quantization.channels <= 1:
        return None
    return Refusal(
        f"its weights have {quantization.channels} scales, one per channel", f"Ask for {_level(29)} or later."
    )


def _not_dilated(node: Node, level: int) -> Refusal | None:
    factors = node.option("dilation_w_factor", 1), node.option("dilation_h_factor", 1)
    return None if factors == (1, 1) else Refusal(f"it is dilated by {factors}", f"Ask for {_level(29)}.")


def _not_grouped(node: Node, level: int) -> Refusal | None:
    channels, of_weights = node.input(0).shape[3], node.input(1).shape[3]
    if channels == of_weights:
        return None
    return Refusal(f"it is grouped: {channels} channels, weights for {of_weights}", f"Ask for {_level(29)}.")


def _with_bias(node: Node, level: int) -> Refusal | None:
    return None if len(node.inputs) == 3 else Refusal("it has no bias", "Export it with a bias of zeros.")


def _not_resized_by_corners(node: Node, level: int) -> Refusal | None:
    used = [name for name in ("align_corners", "half_pixel_centers") if node.option(name)]
    if not used:
        return None
    return Refusal(f"it has {used[0]}", f"Ask for {_level(30)} or later, or resize on the host.")


def _square(node: Node, level: int) -> Refusal | None:
    height, width = node.outputs[0].shape[1:3]
    return None if height == width else Refusal("its output is not square", f"Ask for {_level(29)}.")


def _softmax_rank(node: Node, level: int) -> Refusal | None:
    rank = len(node.input(0).shape)
    return None if rank in (2, 4) else Refusal(f"its input has {rank} dimensions, not 2 or 4", "Reshape.")


def _reshape_to_what(node: Node, level: int) -> Refusal | None:
    if len(node.inputs) >= 2:
        return constant(1, "the shape")(node, level)
    shape = node.option("new_shape", ())
    if len(shape) > 0 and shape != (0,):
        return None
    return Refusal("it makes a scalar", "Keep one dimension.")


def _no_empty_input(node: Node, level: int) -> Refusal | None:
    return None if math.prod(node.input(0).shape) else Refusal("its input is empty", "Leave it out.")


def _pad_value(node: Node, level: int) -> Refusal | None:
    if len(node.inputs) < 2:
        return Refusal("it has no paddings", "Export it again.")
    if len(node.inputs) == 3:
        return None if level >= 29 else Refusal("it has a padding value", f"Ask for {_level(29)} or later.")
    return None if level >= 29 else input_is("float32")(node, level)


def _same_scales(node: Node, level: int) -> Refusal | None:
    tensors = [tensor for tensor in node.inputs if tensor is not None]
    scales = {(t.quantization.scale, t.quantization.zero_point) for t in tensors if t.quantization}
    if tensors[0].dtype != "uint8" or len(scales) <= 1:
        return None
    return Refusal("its inputs have different scales", f"Ask for {_level(29)} or later.")


def _symmetric_int8(node: Node, level: int) -> Refusal | None:
    tensor = node.input(0)
    zero_point = tensor.quantization.zero_point if tensor.quantization else 0
    if tensor.dtype != "int8" or zero_point == 0:
        return None
    return Refusal(f"its int8 input has the zero point {zero_point}", f"Ask for {_level(30)} or later.")


def _float_or(since: int) -> Check:
    """float32, or 8 bits from the feature level `since` on."""

    def check(node: Node, level: int) -> Refusal | None:
        return input_is(*(_FLOAT_OR_QUANT8 if level >= since else ("float32",)), fix=_FLOAT)(node, level)

    return check


def _subtracted(node: Node, level: int) -> Refusal | None:
    dtypes = [
        d for d, since in (("float32", 28), ("uint8", 29), ("int8", 29), ("int32", 30)) if level >= since
    ]
    return input_is(*dtypes)(node, level)


def _squared_difference(node: Node, level: int) -> Refusal | None:
    dtypes = ("float32",) if level < 29 else ("float32", "uint8") if level == 29 else _NUMBERS
    return input_is(*dtypes)(node, level)


def _cast(node: Node, level: int) -> Refusal | None:
    dtypes = _NUMBERS if level >= 30 else ("float32", "uint8", "int32")
    fix = "Cast on the host."
    return input_is(*dtypes, fix=fix)(node, level) or output_is(*dtypes, fix=fix)(node, level)


def _axis_of_arg(node: Node, level: int) -> Refusal | None:
    axis = node.input(1)
    if axis.dtype == "int32" or (axis.dtype == "int64" and axis.is_constant):
        return None
    return Refusal(f"its axis is {told(axis)}, and may be int32", "Export with static shapes.")


def _int32_result(node: Node, level: int) -> Refusal | None:
    return output_is("int32", fix="Ask for int32 indices.")(node, level)


def _constant_scalars(node: Node, level: int) -> Refusal | None:
    for tensor in _two(node):
        if not tensor.shape and not tensor.is_constant:
            return Refusal("a scalar operand is not constant", "Give it one dimension.")
    return None


def _same_shapes(node: Node, level: int) -> Refusal | None:
    condition, value = _two(node)
    if condition.shape == value.shape:
        return None
    return Refusal(f"condition {told(condition)} and value {told(value)} differ", "Broadcast them before.")


def _positive_scale(node: Node, level: int) -> Refusal | None:
    sides = [node.outputs[0], *([node.input(0)] if node.input(0).dtype in _QUANT8 else [])]
    if all(t.quantization and t.quantization.scale > 0 for t in sides):
        return None
    return Refusal("a scale is not above 0", "Calibrate on more pictures.")


def _packed(node: Node, level: int) -> Refusal | None:
    if level >= LEVEL_6:
        return input_is(*_NUMBERS)(node, level)
    if node.option("axis") in (-1, len(node.input(0).shape)):
        return Refusal("it packs along the last dimension", "Reshape and concatenate.")
    return input_is("float32", "int8")(node, level)


def _unpacked(node: Node, level: int) -> Refusal | None:
    if node.option("axis") not in (-1, len(node.input(0).shape) - 1):
        return None
    return Refusal("it unpacks along the last dimension", "Slice instead.")


def _same_dtypes(node: Node, level: int) -> Refusal | None:
    left, right = _two(node)
    if left.dtype == right.dtype:
        return None
    return Refusal(f"its inputs are {left.dtype} and {right.dtype}", QUANTIZE)


def _not_broadcast(node: Node, level: int) -> Refusal | None:
    left, right = (tensor.shape for tensor in _two(node))
    if len(left) == len(right) and left[:-2] == right[:-2]:
        return None
    return Refusal(f"{list(left)} and {list(right)} are broadcast", "Give both the same batches.")


def _int32_axis(at: int) -> Check:
    return constant(at, "the axis", "int32")


def _not_keeping_dimensions(node: Node, level: int) -> Refusal | None:
    if not node.option("keep_num_dims"):
        return None
    return Refusal(
        "it keeps more than two dimensions", f"Ask for {_level(30)} or later, or reshape around it."
    )


def _with_dimensions(node: Node, level: int) -> Refusal | None:
    return None if node.option("squeeze_dims", ()) else Refusal("it names no dimensions", "Reshape instead.")


_BINARY = (
    until(29, input_is(*_FLOAT_OR_QUANT8)),
    since(30, input_is(*_NUMBERS)),
    since(30, no_activation("int32")),
    rank(4, 0, 1),
)
_UNARY_FLOAT = (input_is("float32", fix=_FLOAT),)
_COMPARED = Rule(2, 29, (input_is(*_NUMBERS, "bool"),))
_LOGICAL = Rule(1, 29, (input_is("bool"),))
_ACTIVATION = Rule(2, checks=(input_is(*_FLOAT_OR_QUANT8),))
_REDUCED_FLOAT = Rule(1, 29, (output_rank(least=1), input_is("float32", fix=_FLOAT)))
_RESIZED = (
    input_is(*_FLOAT_OR_QUANT8),
    constant(1, "the size"),
    until(29, _not_resized_by_corners),
)

RULES: dict[str, Rule] = {
    "ADD": Rule(2, checks=_BINARY),
    "MUL": Rule(3, checks=_BINARY),
    "SUB": Rule(3, checks=(_subtracted, no_activation("int32"), rank(4, 0, 1))),
    "DIV": Rule(1, 28, (input_is("float32", fix=_FLOAT), rank(4, 0, 1))),
    "ARG_MAX": Rule(2, 29, (input_is("float16", *_NUMBERS), _axis_of_arg, _int32_result)),
    "ARG_MIN": Rule(2, 29, (input_is("float16", *_NUMBERS), _axis_of_arg, _int32_result)),
    "AVERAGE_POOL_2D": Rule(2, checks=(input_is(*_FLOAT_OR_QUANT8),)),
    "MAX_POOL_2D": Rule(2, checks=(input_is(*_FLOAT_OR_QUANT8),)),
    "L2_POOL_2D": Rule(1, checks=(*_UNARY_FLOAT, until(28, no_activation()))),
    "CONV_2D": Rule(
        5,
        checks=(
            until(28, _not_hybrid()),
            until(28, input_is("float32", "uint8")),
            until(28, _per_tensor_weights),
            until(28, _restricted_scales),
            until(28, _not_dilated),
            until(28, _not_grouped),
            _with_bias,
        ),
    ),
    "DEPTHWISE_CONV_2D": Rule(
        3,
        checks=(
            until(28, input_is("float32", "uint8")),
            until(28, _restricted_scales),
            until(28, _not_dilated),
        ),
    ),
    "FULLY_CONNECTED": Rule(
        5,
        checks=(
            output_is("float32", "uint8", "int8", "int32", "float16", "bool", "int64"),
            until(28, _not_hybrid()),
            until(28, input_is("float32", "uint8")),
            until(28, _restricted_scales),
            until(29, _not_keeping_dimensions),
        ),
    ),
    "HARD_SWISH": Rule(checks=(input_is(*_FLOAT_OR_QUANT8),)),
    "SOFTMAX": Rule(
        2,
        checks=(
            input_is(*_FLOAT_OR_QUANT8),
            output_is(*_FLOAT_OR_QUANT8),
            rank(4, 0),
            until(28, _softmax_rank),
        ),
    ),
    "RESHAPE": Rule(
        1,
        checks=(
            until(LEVEL_6 - 1, input_is(*_FLOAT_OR_QUANT8)),
            since(LEVEL_6, input_is(*_NUMBERS)),
            rank(4, 0),
            output_rank(4),
            _reshape_to_what,
        ),
    ),
    "RESIZE_BILINEAR": Rule(
        3, checks=(rank(4, 0, least=4), *_RESIZED, until(28, _square), until(28, input_is("float32")))
    ),
    "RESIZE_NEAREST_NEIGHBOR": Rule(3, 29, _RESIZED),
    "SQUEEZE": Rule(1, 28, (between(28, 28, _with_dimensions),)),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": Rule(
        2, 29, (_not_hybrid(2), input_count(20, 24, why="it has neither 20 nor 24 inputs", fix="Unroll it."))
    ),
    "L2_NORMALIZATION": Rule(
        2,
        checks=(
            until(28, input_is("float32", fix=_FLOAT)),
            until(28, rank(4, 0, least=4)),
            no_activation(),
        ),
    ),
    "LOCAL_RESPONSE_NORMALIZATION": Rule(1),
    "CONCATENATION": Rule(
        2,
        checks=(
            no_activation(),
            rank(4, 0),
            input_is("float16", *_FLOAT_OR_QUANT8),
            until(28, _same_scales),
        ),
    ),
    "DEQUANTIZE": Rule(
        2,
        checks=(
            until(28, input_is("uint8")),
            since(29, input_is(*_QUANT8)),
            between(29, 29, _symmetric_int8),
        ),
    ),
    "DENSIFY": Rule(since=30, checks=(constant(0, "its input"),)),
    "FLOOR": Rule(1),
    "RELU": _ACTIVATION,
    "RELU_N1_TO_1": _ACTIVATION,
    "RELU6": _ACTIVATION,
    "LOGISTIC": _ACTIVATION,
    "TANH": Rule(2, checks=(_float_or(29),)),
    "PAD": Rule(2, 28, (input_is(*_FLOAT_OR_QUANT8), _no_empty_input, _pad_value)),
    "PADV2": Rule(2, 28, (input_is(*_FLOAT_OR_QUANT8), _no_empty_input, _pad_value)),
    "UNIDIRECTIONAL_SEQUENCE_RNN": Rule(1, 29, (_not_hybrid(),)),
    "SPACE_TO_BATCH_ND": Rule(2, 28),
    "BATCH_TO_SPACE_ND": Rule(2, 28, (constant(2, "the crops"),)),
    "STRIDED_SLICE": Rule(2, 28, (input_is(*_FLOAT_OR_QUANT8),)),
    "TRANSPOSE": Rule(2, 28, (constant(1, "the permutation"),)),
    "ABS": Rule(1, 29, _UNARY_FLOAT),
    "EXP": Rule(1, 29, _UNARY_FLOAT),
    "LOG": Rule(1, 29, _UNARY_FLOAT),
    "POW": Rule(1, 29, _UNARY_FLOAT),
    "RSQRT": Rule(2, 29, (_float_or(LEVEL_7),)),
    "SLICE": Rule(2, 29, (input_is(*_NUMBERS), input_is("int32", at=1), input_is("int32", at=2))),
    "COS": Rule(1, 29, _UNARY_FLOAT),
    "SIN": Rule(1, 29, _UNARY_FLOAT),
    "TRANSPOSE_CONV": Rule(3, 29, (constant(0, "the shape"), constant(1, "the weights"))),
    "SQRT": Rule(1, 29, _UNARY_FLOAT),
    "SPACE_TO_DEPTH": Rule(2, checks=(input_is(*_FLOAT_OR_QUANT8),)),
    "MEAN": Rule(2, 28, (_float_or(29), output_rank(least=1), rank(4, 0))),
    "EMBEDDING_LOOKUP": Rule(1, checks=(input_is("float32", at=1),)),
    "HASHTABLE_LOOKUP": Rule(1, checks=(output_is("float32"),)),
    "MAXIMUM": Rule(3, 29, (input_is(*_NUMBERS), _constant_scalars)),
    "MINIMUM": Rule(3, 29, (input_is(*_NUMBERS), _constant_scalars)),
    "CAST": Rule(1, 29, (_cast,)),
    "LEAKY_RELU": Rule(1, 29, (input_is(*_FLOAT_OR_QUANT8),)),
    "PRELU": Rule(1, 29, (input_is(*_FLOAT_OR_QUANT8),)),
    "TILE": Rule(1, 29, (input_is(*_NUMBERS), input_is("int32", at=1))),
    "LOGICAL_OR": _LOGICAL,
    "LOGICAL_AND": _LOGICAL,
    "LOGICAL_NOT": _LOGICAL,
    "LESS": _COMPARED,
    "LESS_EQUAL": _COMPARED,
    "GREATER": _COMPARED,
    "GREATER_EQUAL": _COMPARED,
    "EQUAL": _COMPARED,
    "NOT_EQUAL": _COMPARED,
    "NEG": Rule(2, 29, (input_is("float32", "int32"),)),
    "TOPK_V2": Rule(2, 29, (input_is(*_NUMBERS), constant(1, "k", "int32"))),
    "SELECT": Rule(2, 29, (input_is(*_NUMBERS, at=1), _same_shapes)),
    "GATHER": Rule(2, 29, (input_is("float16", *_NUMBERS), input_is("int32", at=1), rank(99, 1, least=1))),
    "BIDIRECTIONAL_SEQUENCE_LSTM": Rule(1, 29, (_not_hybrid(2),)),
    "EXPAND_DIMS": Rule(1, 29, (input_is("float16", *_NUMBERS), _int32_axis(1))),
    "SPLIT": Rule(
        3,
        29,
        (
            between(29, 29, input_is("float32", "uint8", "int32", at=1)),
            since(30, input_is(*_NUMBERS, at=1)),
            _int32_axis(0),
        ),
    ),
    "SPLIT_V": Rule(2, 30, (input_is(*_NUMBERS), constant(1, "the sizes", "int32"), _int32_axis(2))),
    "LOG_SOFTMAX": Rule(1, 29, _UNARY_FLOAT),
    "QUANTIZE": Rule(
        2,
        29,
        (
            input_is(*_FLOAT_OR_QUANT8),
            until(29, output_is("uint8", fix=f"Ask for {_level(30)} or later.")),
            since(30, output_is(*_QUANT8)),
            _positive_scale,
        ),
    ),
    "REDUCE_ANY": Rule(2, 29, (output_rank(least=1),)),
    "REDUCE_MIN": Rule(2, 29, (input_is(*_FLOAT_OR_QUANT8), rank(99, 0, least=1))),
    "REDUCE_MAX": Rule(2, 29, (input_is(*_FLOAT_OR_QUANT8), rank(99, 0, least=1))),
    "DEPTH_TO_SPACE": Rule(checks=(input_is(*_FLOAT_OR_QUANT8),)),
    "REDUCE_PROD": _REDUCED_FLOAT,
    "SUM": _REDUCED_FLOAT,
    "ELU": Rule(1, 30, _UNARY_FLOAT),
    "FILL": Rule(1, 30, (constant(0, "the shape"), input_is("float32", "int32", "int64", at=1))),
    "PACK": Rule(2, 30, (_packed,)),
    "UNPACK": Rule(2, 30, (input_is(*_FLOAT_OR_QUANT8), rank(4, 0, least=2), _unpacked)),
    "SQUARED_DIFFERENCE": Rule(2, 28, (_squared_difference, rank(4, 0, 1))),
    "BATCH_MATMUL": Rule(
        2, LEVEL_6, (input_is("float32", "int32", "int8"), _same_dtypes, rank(4, 0, least=2), _not_broadcast)
    ),
    "MIRROR_PAD": Rule(2, LEVEL_7, (input_is(*_NUMBERS), _no_empty_input)),
    "REVERSE_V2": Rule(3, LEVEL_7, (input_is(*_NUMBERS),)),
}
