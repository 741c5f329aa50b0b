"""What single operators must be like for the GPU accelerator to accept them. The rules are made of these."""

from __future__ import annotations

import math

from delegates.gpu_tensors import FLOATS, QUANTIZED, RESHAPE
from delegates.graph import GraphTensor, Node
from delegates.rules import Check, Refusal, told

STATIC = "Export with static shapes."
FOLD = "Fold it into a constant when exporting."


# Inputs


def _runtime_count(node: Node) -> int:
    """Of its inputs, how many are computed; one without numbers needs none."""
    return sum(t is not None and not t.is_constant and t.numbers > 0 for t in node.inputs)


def inputs(runtime: int, constants: int | None = None, outputs: int | None = 1) -> Check:
    """How many are computed, how many stand in the file; None: any."""

    def check(node: Node, level: int) -> Refusal | None:
        computed = _runtime_count(node)
        if outputs is not None and len(node.outputs) != outputs:
            return Refusal(f"it has {len(node.outputs)} outputs, not {outputs}", "Export it again.")
        if computed < runtime:
            return Refusal("its input is constant", FOLD)
        if computed > runtime:
            return Refusal(f"{computed} of its inputs are computed, and {runtime} may be", STATIC)
        if constants is not None and len(node.inputs) - computed != constants:
            return Refusal(
                f"{len(node.inputs) - computed} of its inputs are constant, not {constants}",
                "Export it again.",
            )
        return None

    return check


def two_operands(node: Node, level: int) -> Refusal | None:
    computed = _runtime_count(node)
    if len(node.inputs) != 2 or len(node.outputs) != 1:
        return Refusal(f"it has {len(node.inputs)} inputs, not 2", "Export it pair by pair.")
    left, right = node.input(0), node.input(1)
    if computed == 0:
        return Refusal("both inputs are constant", FOLD)
    if computed == 1:
        return _constant_operand(node)
    if node.operator.inputs[0] == node.operator.inputs[1]:
        if node.name in ("MUL", "ADD", "ADD_N"):
            return None
        return Refusal("both inputs are the same tensor", "Export it as MUL, or as a constant.")
    if len(left.shape) == len(right.shape):
        return None
    for tensor in (left, right, node.outputs[0]):
        if not 1 <= len(tensor.shape) <= 4:
            return Refusal(f"{told(tensor)} is broadcast, and must have 1 to 4 dimensions", "Reshape it.")
    return None


def _constant_operand(node: Node) -> Refusal | None:
    constant = next(t for t in node.inputs if t is not None and t.is_constant)
    if constant.numbers != 1 or constant.dtype in (*FLOATS, "int32"):
        return None
    if constant.dtype in (*QUANTIZED, "int4") and constant.quantization is not None:
        return None
    return Refusal(f"its constant is one {constant.dtype}", "Export the constant as float32 or int32.")


def value(*inputs: int) -> Check:
    """Tensors that are read as they are: with one scale, where they are quantised."""

    def check(node: Node, level: int) -> Refusal | None:
        for at in inputs:
            refusal = _one_scale(f"input {at}", node.input(at))
            if refusal is not None:
                return refusal
        return None

    return check


def values(node: Node, level: int) -> Refusal | None:
    return value(*range(len(node.inputs)))(node, level)


def _one_scale(which: str, tensor: GraphTensor) -> Refusal | None:
    quantization = tensor.quantization
    if tensor.dtype not in QUANTIZED or quantization is None or quantization.channels <= 1:
        return None
    return Refusal(
        f"{which} is {told(tensor)} with {quantization.channels} scales, and may have one",
        "Quantise it per tensor, or keep it in float32.",
    )


def readable(at: int, what: str, *ranks: int) -> Check:
    """A constant that is made float32 of."""

    def check(node: Node, level: int) -> Refusal | None:
        tensor = node.input(at)
        if not tensor.is_constant:
            return Refusal(f"{what} (input {at}) must be a constant", STATIC)
        if len(tensor.shape) not in ranks:
            counted = " or ".join(map(str, ranks))
            return Refusal(f"{what} is {told(tensor)}, and may have {counted} dimensions", RESHAPE)
        if tensor.dtype not in (*FLOATS, "int4", *QUANTIZED, "int32"):
            return Refusal(f"{what} is {told(tensor)}, and cannot be made float32 of", "Store it as float32.")
        return None

    return check


def int32_constant(at: int, what: str) -> Check:
    """In one dimension: all others are 1."""

    def check(node: Node, level: int) -> Refusal | None:
        tensor = node.input(at)
        if tensor.is_constant and tensor.dtype == "int32" and math.prod(tensor.shape[:-1]) == 1:
            return None
        return Refusal(f"{what} (input {at}) is {told(tensor)}, and must be a constant of int32", STATIC)

    return check


def dimensions(at: int) -> Check:
    """1 to 4, for an axis to be named."""

    def check(node: Node, level: int) -> Refusal | None:
        tensor = node.input(at)
        if 1 <= len(tensor.shape) <= 4:
            return None
        return Refusal(f"input {at} is {told(tensor)}, and may have 1 to 4 dimensions", RESHAPE)

    return check


# Options

_SIGN_BIT = 5


def activation(node: Node, level: int) -> Refusal | None:
    if node.option("fused_activation_function") != _SIGN_BIT:
        return None
    return Refusal("the activation fused into it is SIGN_BIT", "Keep the activation apart.")


def positive(*names: str, default: int = 0) -> Check:
    def check(node: Node, level: int) -> Refusal | None:
        for name in names:
            if node.option(name, default) <= 0:
                return Refusal(f"its {name} is {node.option(name, default)}", "Export it again.")
        return None

    return check


STRIDES = positive("stride_w", "stride_h")
DILATIONS = positive("dilation_w_factor", "dilation_h_factor", default=1)


def blocks(node: Node, level: int) -> Refusal | None:
    size = node.option("block_size")
    return None if size >= 2 else Refusal(f"its block_size is {size}", "Leave it out.")


def unscaled(node: Node, level: int) -> Refusal | None:
    beta = node.option("beta", 0.0)
    return None if beta == 1 else Refusal(f"its beta is {beta:g}, not 1", "Multiply before it.")


def one_corner_rule(node: Node, level: int) -> Refusal | None:
    if not (node.option("align_corners") and node.option("half_pixel_centers")):
        return None
    return Refusal("it has align_corners and half_pixel_centers", "Use one of them.")


# Operators of their own kind


def at_most_two_computed(node: Node, level: int) -> Refusal | None:
    if len(node.outputs) != 1:
        return Refusal(f"it has {len(node.outputs)} outputs", "Export it again.")
    computed = _runtime_count(node)
    if computed <= 2:
        return None
    return Refusal(f"{computed} of its inputs are computed, and 2 may be", "Make the bias a constant.")


def not_constant(node: Node, level: int) -> Refusal | None:
    return Refusal("its input is constant", FOLD) if node.input(0).is_constant else None


def depthwise(node: Node, level: int) -> Refusal | None:
    image, weights, made = node.input(0), node.input(1), node.outputs[0]
    if {len(image.shape), len(weights.shape), len(made.shape)} != {4}:
        return Refusal(f"{told(image)}, {told(weights)} do not have 4 dimensions each", "Reshape around it.")
    multiplier = node.option("depth_multiplier")
    if made.shape[3] != image.shape[3] * multiplier:
        return Refusal(
            f"its depth_multiplier is {multiplier}, with {image.shape[3]} channels made {made.shape[3]}",
            "Export it again.",
        )
    if _runtime_count(node) == 2:
        return value(1)(node, level)
    return readable(1, "its weights", 4)(node, level)


def matrices(node: Node, level: int) -> Refusal | None:
    if len(node.inputs) != 2 or len(node.outputs) != 1:
        return Refusal(f"it has {len(node.inputs)} inputs", "Export it again.")
    if _runtime_count(node) == 2:
        return values(node, level)
    if not node.input(1).is_constant or node.input(0).is_constant:
        return Refusal("its first input is constant", "Transpose, to have the constant second.")
    return value(0)(node, level) or readable(1, "the matrix", 2, 3, 4)(node, level)


def weights(node: Node, level: int) -> Refusal | None:
    weights = node.input(1)
    if weights.quantization is None:
        return None  # also those in blocks, whose scales are another tensor
    if weights.dtype not in ("int8", "int4", "int2"):
        return Refusal(
            f"its weights are quantised {told(weights)}, and may be int8, int4, int2", "Use int8 weights."
        )
    shape = weights.shape
    if len(shape) == 2 or (len(shape) == 4 and shape[1:3] == (1, 1)):
        return None
    return Refusal(f"its weights are {told(weights)}, and may have 2 dimensions", "Reshape them.")


def plain_weights(node: Node, level: int) -> Refusal | None:
    if not node.option("weights_format"):
        return None
    return Refusal("its weights are shuffled", "Export with the default weights_format.")


def kept_dimensions(node: Node, level: int) -> Refusal | None:
    source, made = node.input(0), node.outputs[0]
    if not node.option("keep_num_dims") or len(source.shape) == len(made.shape):
        return None
    return Refusal(f"it keeps dimensions, and makes {told(made)} of {told(source)}", "Export it again.")


def dequantized(node: Node, level: int) -> Refusal | None:
    source = node.input(0)
    if source.dtype == "int16":
        return Refusal(f"its input is {told(source)}", "Quantise to int8.")
    if source.is_constant:
        return readable(0, "its constant", 2, 3, 4)(node, level)
    if source.quantization is None:
        return Refusal(f"its input, {told(source)}, has no scale", "Store the weights dense and constant.")
    if source.quantization.channels > 1:
        return Refusal(f"its input has {source.quantization.channels} scales", "Quantise per tensor.")
    return None


def quantized(node: Node, level: int) -> Refusal | None:
    made = node.outputs[0]
    if made.quantization is None:
        return Refusal(f"its output, {told(made)}, has no scale", "Export it again.")
    return _one_scale("its output", made)


def updated(node: Node, level: int) -> Refusal | None:
    operand, update, start = node.input(0), node.input(1), node.input(2)
    if operand.dtype != update.dtype:
        return Refusal(f"it writes {told(update)} into {told(operand)}", "Give both one type.")
    if start.dtype != "int32" or len(start.shape) != 1:
        return Refusal(f"where it starts is {told(start)}, and must be int32 in one dimension", STATIC)
    if start.is_constant:
        return Refusal("where it starts is constant", "Export it as SLICE and CONCATENATION.")
    for tensor in (operand, update):
        if not 1 <= len(tensor.shape) <= 4:
            return Refusal(f"{told(tensor)} must have 1 to 4 dimensions", RESHAPE)
    return None


def looked_up(node: Node, level: int) -> Refusal | None:
    ids, table, made = node.input(0), node.input(1), node.outputs[0]
    if table.dtype not in ("int8", "int4", "float32"):
        return Refusal(f"its table is {told(table)}, and may be int8, int4, float32", "Use int8.")
    if len(ids.shape) != 1 or len(table.shape) < 2 or len(made.shape) != len(table.shape):
        return Refusal(f"it looks {told(ids)} up in {told(table)}", "Flatten the ids.")
    if table.dtype == "float32":
        return None
    if table.quantization is None:
        return Refusal(f"its table, {told(table)}, has no scale", "Export it again.")
    return weights(node, level)


def gathered(node: Node, level: int) -> Refusal | None:
    values, indices, made = node.input(0), node.input(1), node.outputs[0]
    if _runtime_count(node) == 0:
        return Refusal("both inputs are constant", FOLD)
    if len(indices.shape) != 1 or indices.dtype != "int32":
        return Refusal(
            f"its indices are {told(indices)}, and must be int32 in one dimension", "Flatten them."
        )
    if values.dtype != made.dtype:
        return Refusal(f"it makes {made.dtype} of {values.dtype}", "Cast after it.")
    return None


def padded(node: Node, level: int) -> Refusal | None:
    paddings = node.input(1)
    if paddings.shape in ((3, 2), (4, 2)) and paddings.dtype == "int32" and paddings.is_constant:
        return None
    return Refusal(
        f"its paddings are {told(paddings)}, and must be a constant of int32 [3, 2] or [4, 2]",
        "Reshape around it to 3 or 4 dimensions.",
    )


def pad_value(node: Node, level: int) -> Refusal | None:
    if len(node.inputs) < 3:
        return None
    value = node.input(2)
    if value.numbers == 1 and value.dtype in (*FLOATS, "int4", *QUANTIZED, "int32"):
        return None
    return Refusal(f"it pads with {told(value)}", "Pad with a float32 constant.")


def reflecting(node: Node, level: int) -> Refusal | None:
    return Refusal("its mode is SYMMETRIC", "Use REFLECT.") if node.option("mode") else None


def slopes(node: Node, level: int) -> Refusal | None:
    alpha, shape = node.input(1), _bhwc(node.input(0))
    if not alpha.is_constant:
        return Refusal("its slopes are computed", "Export them as a constant.")
    if math.prod(alpha.shape[:-1]) == 1 and alpha.shape:
        fits = alpha.shape[-1] == shape[3]
    else:
        fits = len(alpha.shape) == 3 and alpha.shape == shape[1:]
    return None if fits else Refusal(f"its slopes are {told(alpha)}", "Give one slope per channel.")


def _bhwc(tensor: GraphTensor) -> tuple[int, int, int, int]:
    """The four dimensions that the accelerator makes of fewer: batch first, channels last."""
    match tensor.shape:
        case ():
            return 1, 1, 1, 1
        case (b,):
            return b, 1, 1, 1
        case (b, c):
            return b, 1, 1, c
        case (b, w, c):
            return b, 1, w, c
        case (b, h, w, c, *_):
            return b, h, w, c
    raise IndexError(tensor.shape)


def selected(node: Node, level: int) -> Refusal | None:
    condition, made = node.input(0), node.outputs[0]
    if condition.dtype not in ("bool", *FLOATS):
        return Refusal(f"its condition is {told(condition)}, and may be bool, float32", "Compare before.")
    for tensor in (node.input(1), node.input(2)):
        shape = tensor.shape
        if shape and shape != made.shape and (len(shape) > 1 or shape[0] > 1):
            return Refusal(f"{told(tensor)} is broadcast to {list(made.shape)}", "Broadcast it before.")
    return None


def sliced(node: Node, level: int) -> Refusal | None:
    source, begin, size = node.input(0), node.input(1), node.input(2)
    if begin.shape != size.shape or begin.numbers != len(source.shape) or not source.shape:
        return Refusal(f"it starts at {told(begin)} in {told(source)}", "Export it again.")
    return None


def strided(node: Node, level: int) -> Refusal | None:
    for name in ("ellipsis_mask", "new_axis_mask", "shrink_axis_mask"):
        if node.option(name):
            return Refusal(f"its {name} is {node.option(name)}", "Slice without it, and reshape after.")
    source, start, end, stride = (node.input(at) for at in range(4))
    rank = len(source.shape)
    if start.numbers not in (rank, rank - 1):
        return Refusal(f"it starts at {told(start)} in {told(source)}", "Export it again.")
    if min(stride.values, default=1) <= 0:
        return Refusal(f"it goes backwards, by {list(stride.values)}", "Export it as REVERSE_V2 and SLICE.")
    if not start.values or rank > 4:
        return None  # more than 16 dimensions, or already refused
    # Without the batch, starts are taken for those of height, width and channels, whatever the rank.
    axes = _AXES[rank] if start.numbers == rank else (1, 2, 3)[3 - start.numbers :]
    shape = _bhwc(source)
    made = list(shape)
    for at, axis in enumerate(axes):
        size = shape[axis]
        first, last = (v + size if v < 0 else v for v in (start.values[at], end.values[at]))
        first, last = (
            (0 if _masked(node, "begin", axis, rank) else first),
            (size if _masked(node, "end", axis, rank) else last),
        )
        made[axis] = -(-(last - first) // stride.values[at])
    if tuple(made) == _bhwc(node.outputs[0]):
        return None
    return Refusal(
        f"from {list(start.values)} to {list(end.values)} of {list(source.shape)} it makes "
        f"{list(node.outputs[0].shape)}: it ends outside, or names only some dimensions",
        "Slice within the tensor, and name every dimension.",
    )


# Of a tensor of that many dimensions, those that the accelerator makes of them.
_AXES = {1: (0,), 2: (0, 3), 3: (0, 2, 3), 4: (0, 1, 2, 3)}


def _masked(node: Node, side: str, axis: int, rank: int) -> bool:
    bit = _AXES[rank].index(axis) if axis in _AXES[rank] else None
    return bit is not None and bool(node.option(f"{side}_mask") >> bit & 1)


def split(node: Node, level: int) -> Refusal | None:
    if node.option("num_splits") == 1:
        return None
    return int32_constant(0, "the axis")(node, level) or dimensions(1)(node, level)


def permuted(node: Node, level: int) -> Refusal | None:
    count = node.input(1).numbers
    return None if 2 <= count <= 4 else Refusal(f"it permutes {count} dimensions, not 2 to 4", RESHAPE)


def largest(node: Node, level: int) -> Refusal | None:
    k = node.input(1)
    if k.is_constant and k.numbers == 1:
        return None
    return Refusal(f"k (input 1) is {told(k)}, and must be a constant", STATIC)


def transposed_weights(node: Node, level: int) -> Refusal | None:
    if _runtime_count(node) == 2:
        return value(1)(node, level)
    return readable(1, "its weights", 4)(node, level)


def packed(node: Node, level: int) -> Refusal | None:
    made = node.outputs[0]
    if len(node.inputs) == 1 or 1 <= len(made.shape) <= 4:
        return None
    return Refusal(f"its output is {told(made)}, and may have 1 to 4 dimensions", RESHAPE)


def unpacked(node: Node, level: int) -> Refusal | None:
    return None if node.option("num") == 1 else dimensions(0)(node, level)


def one_hot(node: Node, level: int) -> Refusal | None:
    indices, on, off = node.input(0), node.input(2), node.input(3)
    if indices.dtype != "int32":
        return Refusal(f"its indices are {told(indices)}, and must be int32", "Export int32 indices.")
    axis = node.option("axis")
    if axis not in (-1, *indices.shape[-1:]):
        return Refusal(f"its axis is {axis}, not the last", "Transpose after it.")
    for value in (on, off):
        if value.dtype != "float32" or not value.is_constant or value.numbers != 1 or len(value.shape) > 1:
            return Refusal(f"it fills in {told(value)}, and may a float32 constant", "Cast after it.")
    return None


def cumulated(node: Node, level: int) -> Refusal | None:
    source, made = node.input(0), node.outputs[0]
    if source.dtype in FLOATS and made.dtype == source.dtype:
        return None
    return Refusal(f"its input is {told(source)}, and may be {', '.join(FLOATS)}", "Compute in float32.")
