"""What the GPU accelerator asks of the tensors of every operator: dimensions and data types."""

from __future__ import annotations

from collections.abc import Iterator

from delegates.graph import GraphTensor, Node
from delegates.rules import Refusal, told

RESHAPE = "Reshape around it to at most 4 dimensions."


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FLOATS = ("float32", "float16")
QUANTIZED = ("int8", "uint8")
_IN = (*FLOATS, "bool", "int2", "int4", *QUANTIZED)
_OUT = (*FLOATS, *QUANTIZED)
_INTS = ("int8", "int16", "int32")
_UINTS = ("uint8", "uint16", "uint32")
_LOGIC = ("bool", *_INTS)

_COMPARING = frozenset(("GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "EQUAL", "NOT_EQUAL"))
_LOGICAL = frozenset(("LOGICAL_AND", "LOGICAL_OR", "LOGICAL_NOT", "BITWISE_XOR"))
_OF_BOOLS = frozenset(("REDUCE_ALL", "REDUCE_ANY"))
_WITH_INDICES = frozenset(("EMBEDDING_LOOKUP", "ONE_HOT", "DYNAMIC_UPDATE_SLICE", "ARG_MAX"))
_OF_ALL = frozenset(
    words(
        "STABLEHLO_BROADCAST_IN_DIM BITCAST CAST CONCATENATION DYNAMIC_UPDATE_SLICE GATHER PACK PAD PADV2 "
        "RESHAPE REVERSE_V2 SELECT SELECT_V2 SLICE STRIDED_SLICE TRANSPOSE"
    )
)
_OF_INTS = frozenset(
    words(
        "ABS ADD ATAN2 COS DIV FLOOR_DIV FLOOR_MOD MAXIMUM MINIMUM MUL NEG REDUCE_MAX REDUCE_MIN REDUCE_PROD "
        "RIGHT_SHIFT SIGN SIN STABLEHLO_CLAMP SUB SUM STABLEHLO_REMAINDER TILE STABLEHLO_SHIFT_LEFT"
    )
)
_OF_BFLOATS = frozenset(
    words(
        "ABS ADD ATAN2 STABLEHLO_CBRT CEIL STABLEHLO_CLAMP CONV_2D COS DIV EXP FLOOR GATHER LOG LOGISTIC "
        "MAXIMUM MINIMUM MUL NEG POW ROUND RSQRT SIGN SIN SQRT SUB TANH"
    )
)


def input_dtypes(name: str) -> tuple[str, ...]:
    """What an operator may read that is not constant."""
    if name in _OF_BOOLS:
        return ("bool",)
    if name in _LOGICAL:
        return _LOGIC
    dtypes = [*_IN]
    if name in _WITH_INDICES:
        dtypes += ["int32"]
    if name in _COMPARING:
        dtypes += [*_INTS, *_UINTS]
    return tuple(dict.fromkeys([*dtypes, *_more_dtypes(name)]))


def output_dtypes(name: str) -> tuple[str, ...]:
    """What an operator may write."""
    if name in _OF_BOOLS:
        return ("bool",)
    if name in _LOGICAL:
        return _LOGIC
    if name == "ARG_MAX":
        return ("int32",)
    dtypes = [*_OUT]
    if name in _COMPARING:
        dtypes += ["bool"]
    if name == "TOPK_V2":
        dtypes += ["int32"]
    return tuple(dict.fromkeys([*dtypes, *_more_dtypes(name)]))


def _more_dtypes(name: str) -> Iterator[str]:
    if name in _OF_INTS:
        yield from _INTS
    if name in _OF_BFLOATS:
        yield "bfloat16"
    if name in _OF_ALL:
        yield from (*_INTS, *_UINTS, "bool", "bfloat16")


def tensors(node: Node, level: int) -> Refusal | None:
    may_read, may_write = input_dtypes(node.name), output_dtypes(node.name)
    sides = [(f"input {at}", t, may_read) for at, t in enumerate(node.inputs) if t is not None]
    sides += [(f"output {at}", t, may_write) for at, t in enumerate(node.outputs)]
    for which, tensor, dtypes in sides:
        if len(tensor.shape) > 4:
            return Refusal(f"{which} is {told(tensor)}, and may have at most 4 dimensions", RESHAPE)
        if not tensor.is_constant and tensor.dtype not in dtypes:
            return Refusal(f"{which} is {told(tensor)}, and may be {', '.join(dtypes)}", _dtype_fix(tensor))
    return None


def _dtype_fix(tensor: GraphTensor) -> str:
    if tensor.dtype == "int64":
        return "Export it with int32."
    if tensor.dtype in ("int32", "int16"):
        return "Compute in float32, or keep integers out of the graph."
    return "Keep this operator in float32."
