"""The rules of LiteRT's compiler plugins, by vendor and operator: the checks that an operator must pass.

Found by asking the plugins of ai-edge-litert 2.3.0 for every operator (`scripts/npu_plugin.py`); the public
source of LiteRT has older lists.
"""

from __future__ import annotations

from collections.abc import Mapping

from delegates.graph import GraphTensor, Node, Subgraph
from delegates.rules import QUANTIZE, Check, Refusal, constant, input_is, told

Rules = Mapping[str, tuple[Check, ...]]

_STATIC = "Export with static shapes."
# What LiteRT's own model loader does not read.
_UNLOADABLE = ("complex128", "variant")
# What QNN has no type for.
_NOT_QNN = ("string", "complex64", "resource", "bfloat16", "uint4", "float8_e4m3fn", "float8_e5m2")


def whole(subgraph: Subgraph, vendor: str) -> tuple[Refusal, ...]:
    """What makes the plugin give up the whole graph."""
    used = [tensor for node in subgraph.nodes() for tensor in (*node.inputs, *node.outputs) if tensor]
    foreign = _UNLOADABLE + (_NOT_QNN if vendor == "qualcomm" else ())
    found = [
        Refusal(f"{tensor.name!r} is {told(tensor)}, and the whole graph is refused", "Use another type.")
        for tensor in used
        if tensor.dtype in foreign
    ]
    if vendor == "qualcomm":
        found += [
            Refusal(
                f"{tensor.name!r} is quantised by blocks of {tensor.block}, and the whole graph is refused",
                "Convert with one scale per channel.",
            )
            for tensor in used
            if tensor.block
        ]
    if vendor == "openvino":
        found += [
            Refusal(
                f"the graph's input {tensor.name!r} is {told(tensor)}, and the whole graph is refused",
                "Give it at most 5 dimensions.",
            )
            for tensor in (subgraph.tensors[i] for i in subgraph.inputs)
            if len(tensor.shape) >= 6
        ]
    return tuple(found[:1])


def unreadable(vendor: str) -> tuple[Check, ...]:
    """Checks of the types of an operator's tensors, whichever operator it is."""
    return (_neuron_types,) if vendor == "mediatek" else ()


def _neuron_types(node: Node, level: int) -> Refusal | None:
    for tensor in (*node.inputs, *node.outputs):
        if tensor is not None and not _is_neuron_type(tensor):
            scaled = "with" if tensor.quantization else "without"
            return Refusal(
                f"{tensor.name!r} is {told(tensor)} {scaled} a scale, for which Neuron has no type",
                "Quantise it per tensor or per channel, or keep it in float32.",
            )
    return None


def _is_neuron_type(tensor: GraphTensor) -> bool:
    if tensor.dtype in ("float32", "float16", "int32", "uint8", "bool"):
        return True
    if tensor.dtype in ("int8", "int4", "int2"):
        return tensor.quantization is not None
    if tensor.dtype in ("int16", "uint16"):
        return tensor.quantization is not None and tensor.quantization.channels == 1
    return tensor.dtype == "int64" and tensor.is_constant


def _narrow_weights(node: Node, level: int) -> Refusal | None:
    weights = node.input(1)
    is_float = node.input(0).dtype == node.outputs[0].dtype == "float32"
    if not is_float or weights.dtype not in ("int4", "int2"):
        return None
    return Refusal(f"its weights are {weights.dtype} and its input is float32", QUANTIZE)


def _unbatched(node: Node, level: int) -> Refusal | None:
    batches = node.option("batch_dims")
    return Refusal(f"batch_dims is {batches}", "Gather without batches.") if batches else None


def _no_ellipsis(node: Node, level: int) -> Refusal | None:
    return Refusal("it has an ellipsis", "Name every dimension.") if node.option("ellipsis_mask") else None


def _numbers(at: int, count: int, what: str) -> Check:
    def check(node: Node, level: int) -> Refusal | None:
        found = node.input(at).numbers
        return None if found == count else Refusal(f"{what} has {found} numbers, not {count}", _STATIC)

    return check


def _unquantised(node: Node, level: int) -> Refusal | None:
    if not any(t.quantization for t in (*node.inputs, *node.outputs) if t):
        return None
    return Refusal("it adds quantised numbers", "Add two at a time.")


def _per_tensor_input(node: Node, level: int) -> Refusal | None:
    quantization = node.input(0).quantization
    if quantization is None or quantization.channels == 1 or node.input(0).dtype.startswith("float"):
        return None
    return Refusal(f"its input has {quantization.channels} scales", "Quantise activations per tensor.")


def _padded_input(node: Node, level: int) -> Refusal | None:
    tensor = node.input(0)
    scaled = tensor.quantization is not None and tensor.dtype in ("int8", "uint8", "int16", "uint16")
    if scaled or tensor.dtype in ("float32", "float16"):
        return None
    return Refusal(f"its input is {told(tensor)}, which has no padding value", "Pad before casting.")


def _leaky_input(node: Node, level: int) -> Refusal | None:
    tensor = node.input(0)
    if tensor.quantization is None or tensor.dtype in ("int8", "int16", "uint8", "uint16"):
        return None
    return Refusal(f"its input is {told(tensor)} with a scale", "Leave the scale out.")


def _one_hot_values(node: Node, level: int) -> Refusal | None:
    on, off, output = node.input(2), node.input(3), node.outputs[0]
    if on.dtype == off.dtype == output.dtype:
        return None
    return Refusal(f"its values are {on.dtype} and {off.dtype}, its output {output.dtype}", "Cast after it.")


def _updated_ranks(node: Node, level: int) -> Refusal | None:
    ranks = len(node.input(0).shape), len(node.input(1).shape)
    if ranks[0] == ranks[1] and ranks[0] >= 2:
        return None
    return Refusal(f"it updates {ranks[0]} dimensions with {ranks[1]}", "Give both the same, two or more.")


def _names(words: str) -> Rules:
    return dict.fromkeys(words.split(), ())


_AXES = (constant(1, "the axes", "int32"),)
_PADDED = (
    _padded_input,
    constant(1, "the paddings"),
    _per_tensor_input,
)
_BLOCKS = (constant(1, "the block"), constant(2, "the crops or paddings"))
_INDEX = (constant(1, "the axis", "int32", "int64"),)

_QUALCOMM: Rules = {
    **_names("""
        ABS ADD AVERAGE_POOL_2D BATCH_MATMUL BROADCAST_TO CAST CEIL CONCATENATION CONV_2D CONV_3D COS
        DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV ELU EMBEDDING_LOOKUP EQUAL EXP FLOOR FLOOR_DIV
        FLOOR_MOD GATHER_ND GELU GREATER GREATER_EQUAL HARD_SWISH L2_NORMALIZATION L2_POOL_2D LESS LESS_EQUAL
        LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM MAX_POOL_2D MINIMUM MUL NEG
        NOT_EQUAL PACK POW PRELU QUANTIZE REDUCE_ALL REDUCE_ANY RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE
        RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR ROUND RSQRT SELECT SELECT_V2 SIGN SIN SOFTMAX SPACE_TO_DEPTH
        SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE SUB TANH TRANSPOSE_CONV UNPACK
    """),
    "ADD_N": (_unquantised,),
    "ARG_MAX": _INDEX,
    "ARG_MIN": _INDEX,
    "BATCH_TO_SPACE_ND": _BLOCKS,
    "CUMSUM": (constant(1, "the axis", "int32"),),
    "DYNAMIC_UPDATE_SLICE": (input_is("int32", at=2, fix="Use int32 indices."), _updated_ranks),
    "FULLY_CONNECTED": (_narrow_weights,),
    "GATHER": (_unbatched,),
    "LEAKY_RELU": (_per_tensor_input, _leaky_input),
    "MEAN": _AXES,
    "MIRROR_PAD": (constant(1, "the paddings"),),
    "ONE_HOT": (
        constant(1, "the depth", "int32"),
        constant(2, "the value where it is", "float32"),
        constant(3, "the value elsewhere", "float32"),
        _one_hot_values,
    ),
    "PAD": _PADDED,
    "PADV2": (constant(1, "the paddings"), constant(2, "the padding value")),
    "REDUCE_MAX": _AXES,
    "REDUCE_MIN": _AXES,
    "REVERSE_V2": (constant(1, "the axis", "int32"), _numbers(1, 1, "the axis")),
    "SCATTER_ND": (constant(2, "the shape", "int32"),),
    "SLICE": (constant(1, "the begin", "int32"), constant(2, "the size", "int32")),
    "SPACE_TO_BATCH_ND": _BLOCKS,
    "SPLIT": (constant(0, "the axis", "int32"),),
    "SPLIT_V": (constant(1, "the sizes"), constant(2, "the axis", "int32")),
    "STRIDED_SLICE": (
        constant(1, "the begin", "int32"),
        constant(2, "the end", "int32"),
        constant(3, "the strides", "int32"),
        _no_ellipsis,
    ),
    "SUM": _AXES,
    "TILE": (constant(1, "the multiples"),),
    "TOPK_V2": (constant(1, "k", "int32", "uint32"), _numbers(1, 1, "k")),
    "TRANSPOSE": (constant(1, "the permutation"),),
}

_MEDIATEK = _names("""
    ABS ADD AVERAGE_POOL_2D BATCH_MATMUL CAST CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEQUANTIZE DIV
    FULLY_CONNECTED GELU GREATER HARD_SWISH L2_NORMALIZATION LEAKY_RELU LESS LOGISTIC MAXIMUM MAX_POOL_2D MEAN
    MINIMUM MUL PAD PADV2 PRELU QUANTIZE REDUCE_MAX RELU RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR RSQRT
    SLICE SOFTMAX SPLIT SQRT SQUARED_DIFFERENCE STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE TRANSPOSE_CONV
    UNPACK
""")

_OPENVINO: Rules = {
    **_names("""
        ABS ADD ARG_MAX AVERAGE_POOL_2D BATCH_MATMUL BROADCAST_TO CAST CONCATENATION CONV_2D CONV_3D COS
        CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV EMBEDDING_LOOKUP EQUAL EXP EXPAND_DIMS
        FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GELU GREATER GREATER_EQUAL HARD_SWISH
        L2_NORMALIZATION LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC MAXIMUM
        MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NOT_EQUAL ONE_HOT PACK PAD PADV2 POW PRELU QUANTIZE RANGE
        REDUCE_ALL REDUCE_MAX RELU RELU_0_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2
        RSQRT SELECT SELECT_V2 SIGN SIN SLICE SOFTMAX SPLIT SQRT SQUARE SQUARED_DIFFERENCE STRIDED_SLICE SUB
        SUM TANH TILE TRANSPOSE TRANSPOSE_CONV UNPACK
    """),
    "TOPK_V2": (constant(1, "k"),),
}

RULES: dict[str, Rules] = {"qualcomm": _QUALCOMM, "mediatek": _MEDIATEK, "openvino": _OPENVINO}
