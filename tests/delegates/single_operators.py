"""Single operators in many variants, to ask a real delegate about: types, ranks, versions, options, what is
constant, what is quantised. All of them are operators that the CPU runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from tests.delegates.graph_file import Single, Value


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


UNARY = _words(
    "ABS CEIL COS ELU EXP FLOOR LOG LOGISTIC NEG ROUND RSQRT SIGN SIN SQRT SQUARE TANH GELU HARD_SWISH RELU "
    "RELU6 RELU_N1_TO_1 RELU_0_TO_1 LEAKY_RELU SOFTMAX LOG_SOFTMAX L2_NORMALIZATION ZEROS_LIKE"
)
BINARY = _words("ADD SUB MUL DIV MAXIMUM MINIMUM POW SQUARED_DIFFERENCE FLOOR_DIV FLOOR_MOD ATAN2")
COMPARING = _words("EQUAL NOT_EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL")
REDUCING = _words("MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD")
SHAPES = ((), (4,), (3, 4), (2, 3, 4), (1, 2, 3, 4), (1, 1, 2, 3, 4), (1, 1, 1, 2, 3, 4))
# The last version of an operator that ai-edge-litert 2.3.0 runs itself, where that is not 1.
LAST_VERSION = {
    **dict.fromkeys(
        _words(
            "COS EXP LOG SIGN SIN SQRT LEAKY_RELU LOG_SOFTMAX L2_NORMALIZATION DIV SQUARED_DIFFERENCE "
            "FLOOR_MOD"
        ),
        2,
    ),
    **dict.fromkeys(_words("LOGISTIC RSQRT TANH GELU RELU RELU6 FLOOR_DIV"), 3),
    **dict.fromkeys(_words("SOFTMAX MAXIMUM MINIMUM"), 4),
    **{"ABS": 5, "SUB": 5, "ADD": 6, "MUL": 8},
}
IMAGE = Value((1, 8, 8, 4))
NO_ACTIVATION = {"fused_activation_function": 0}
CONV = {"stride_w": 1, "stride_h": 1, "dilation_w_factor": 1, "dilation_h_factor": 1, "padding": 0}
POOL = {"stride_w": 2, "stride_h": 2, "filter_width": 2, "filter_height": 2, "padding": 0}


def all_of_them() -> list[Single]:
    found: list[Single] = []
    for make in (
        elementwise,
        compared,
        layers,
        grouped,
        reduced,
        shaped,
        sliced,
        gathered,
        converted,
        attended,
        chosen,
        resized,
    ):
        found += make()
    return found


def ints(*numbers: int) -> Value:
    return Value((len(numbers),), "int32", list(numbers))


def like(value: Value, dtype: str) -> Value:
    return Value(value.shape, dtype, value.data, (0.1,) if dtype in ("int8", "uint8", "int16") else ())


def elementwise() -> Iterator[Single]:
    for name in UNARY:
        options = _options_of_unary(name)
        for shape in SHAPES:
            if name in ("SOFTMAX", "LOG_SOFTMAX", "L2_NORMALIZATION") and not shape:
                continue
            value = Value(shape)
            yield Single(name, (value,), (value,), 1, options)
        value = Value((2, 4))
        constant = Value((2, 4), data=0.5)
        yield Single(name, (constant,), (value,), 1, options)
        for version in range(2, LAST_VERSION.get(name, 1) + 1):
            yield Single(name, (value,), (value,), version, options)
    for name in ("RELU", "RELU6", "LOGISTIC", "TANH", "ABS", "LEAKY_RELU"):
        made = Value((2, 4), "int8", scales=(1 / 256 if name == "LOGISTIC" else 1 / 128,))
        options = _options_of_unary(name)
        yield Single(name, (Value((2, 4), "int8", scales=(0.1,)),), (made,), 2, options)
    for name in ("ABS", "NEG", "SIGN"):
        yield Single(name, (Value((2, 4), "int32"),), (Value((2, 4), "int32"),), 4 if name == "ABS" else 1)
    yield Single("NEG", (Value((2, 4), "int64"),), (Value((2, 4), "int64"),), 1)
    yield Single("LOGICAL_NOT", (Value((2, 4), "bool"),), (Value((2, 4), "bool"),), 1)
    for beta in (1.0, 0.5):
        yield Single("SOFTMAX", (Value((2, 4)),), (Value((2, 4)),), 1, {"beta": beta})
    for alpha in (Value((4,), data=0.1), Value((1, 1, 4), data=0.1), Value((1,), data=0.1)):
        yield Single("PRELU", (IMAGE, alpha), (IMAGE,))
    yield Single("PRELU", (IMAGE, Value((8, 8, 4), data=0.1)), (IMAGE,))
    yield Single("PRELU", (IMAGE, Value((1, 8, 4), data=0.1)), (IMAGE,))
    yield Single("PRELU", (IMAGE, Value((1, 1, 4))), (IMAGE,))
    for name in BINARY:
        yield from _binary(name)
    for name in ("LOGICAL_AND", "LOGICAL_OR"):
        flags = Value((2, 4), "bool")
        yield Single(name, (flags, flags), (flags,))
        yield Single(name, (flags, Value((2, 4), "bool", True)), (flags,))
        yield Single(name, (flags, Value((), "bool", True)), (flags,))
        yield Single(name, (flags, Value((4,), "bool", [True, False, False, True])), (flags,))
    yield Single("ADD_N", (Value((2, 4)), Value((2, 4))), (Value((2, 4)),))
    yield Single("ADD_N", (Value((2, 4)), Value((2, 4)), Value((2, 4))), (Value((2, 4)),))


def _options_of_unary(name: str) -> dict[str, object]:
    if name == "GELU":
        return {"approximate": False}
    if name == "LEAKY_RELU":
        return {"alpha": 0.1}
    if name == "SOFTMAX":
        return {"beta": 1.0}
    return NO_ACTIVATION if name == "L2_NORMALIZATION" else {}


def _binary(name: str) -> Iterator[Single]:
    options = NO_ACTIVATION if name in ("ADD", "SUB", "MUL", "DIV") else {}

    def single(left: Value, right: Value, made: Value, version: int = 1, **more: object) -> Single:
        return Single(name, (left, right), (made,), version, {**options, **more})

    for shape in SHAPES:
        value = Value(shape)
        yield single(value, value, value)
        yield single(value, Value(shape, data=0.5), value)
        yield single(Value(shape, data=0.5), value, value)
        if name != "ATAN2":  # it does not broadcast
            yield single(value, Value((), data=0.5), value)
    big = Value((1, 2, 3, 4))
    for shape in (
        ()
        if name == "ATAN2"
        else ((), (4,), (1,), (3, 4), (1, 4), (2, 3, 4), (2, 1, 4), (1, 1, 1, 4), (1, 2, 1, 1), (2, 3, 1))
    ):
        yield single(big, Value(shape), big)
        yield single(Value(shape), big, big)
        yield single(big, Value(shape, data=0.5), big)
    pair = Value((2, 4))
    yield Single(name, (pair, pair), (pair,), 1, options, same_input=True)
    for dtype in ("int32", "int64"):
        if dtype == "int32" and name in ("POW", "ATAN2"):
            continue
        if name in ("ATAN2", "SQUARED_DIFFERENCE", "POW", "DIV", "SUB", "FLOOR_DIV") and dtype == "int64":
            continue
        whole = Value((2, 4), dtype)
        yield single(whole, whole, whole)
        counted = np.arange(1, 9).reshape(2, 4)
        yield single(whole, Value((2, 4), dtype, counted), whole)
        yield single(whole, Value((4,), dtype, counted[0]), whole)
        cube, image = Value((2, 3, 4), dtype), Value((1, 2, 3, 4), dtype)
        more = np.arange(1, 25).reshape(2, 3, 4)
        if name != "ATAN2":
            yield single(cube, Value((2, 3, 4), dtype, more), cube)
            yield single(cube, Value((3, 4), dtype, more[0]), cube)
            yield single(cube, Value((1, 3, 4), dtype, more[:1]), cube)
            yield single(image, Value((4,), dtype, more[0, 0]), image)
            yield single(image, Value((2, 3, 4), dtype, more), image)
        yield single(whole, Value((), dtype, 2), whole)
    for version in range(2, LAST_VERSION.get(name, 1) + 1):
        yield single(pair, pair, pair, version)
    if name in ("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM"):
        for dtype in ("int8", "uint8"):
            q = Value((2, 4), dtype, scales=(0.1,))
            yield single(q, q, q, 2)
            yield single(q, Value((2, 4), dtype, 2, (0.1,)), q, 2)
    if name != "ATAN2":
        yield single(Value((3, 4)), Value((2, 3, 4)), Value((2, 3, 4)))
        yield single(Value((2, 3, 4)), _counted((3, 4)), Value((2, 3, 4)))
        yield single(Value((2, 3, 4)), _counted((2, 3, 4)), Value((2, 3, 4)))
        yield single(Value((2, 3, 4)), _counted((1, 3, 4)), Value((2, 3, 4)))
        yield single(Value((2, 3, 4)), _counted((2, 1, 4)), Value((2, 3, 4)))
        yield single(Value((3, 4)), _counted((3, 1)), Value((3, 4)))
        yield single(Value((2, 4)), _counted((2, 4)), Value((2, 4)))
        yield single(Value((2, 1, 1, 4)), Value((2, 3, 5, 4)), Value((2, 3, 5, 4)))
        yield single(Value((2, 3, 5, 4)), _counted((2, 1, 1, 4)), Value((2, 3, 5, 4)))
        yield single(Value((3, 1)), Value((1, 4)), Value((3, 4)))
    if options:
        for activation in (1, 2, 3):
            yield single(pair, pair, pair, fused_activation_function=activation)


def compared() -> Iterator[Single]:
    for name in COMPARING:
        for shape in ((2, 4), (2, 3, 4), (1, 3, 4), (2, 3, 5, 4)):
            yield Single(name, (Value(shape), Value(shape, data=1.0)), (Value(shape, "bool"),))
        yield Single(name, (Value((2, 3, 4)), Value((3, 4), data=1.0)), (Value((2, 3, 4), "bool"),))
        yield Single(name, (Value((2, 3, 4)), Value((4,))), (Value((2, 3, 4), "bool"),))
        for dtype in ("float32", "int32", "int64", "int8", "uint8"):
            value = like(Value((2, 4)), dtype)
            yield Single(name, (value, value), (Value((2, 4), "bool"),), 2 if "int8" in dtype else 1)
            constant = Value((2, 4), dtype, 1, value.scales)
            yield Single(name, (value, constant), (Value((2, 4), "bool"),), 2 if "int8" in dtype else 1)
            scalar = Value((), dtype, 1, value.scales)
            yield Single(name, (value, scalar), (Value((2, 4), "bool"),), 2 if "int8" in dtype else 1)
    for name in ("SELECT", "SELECT_V2"):
        for condition in ("bool",):
            for dtype in ("float32", "int32", "int64", "bool", "int8"):
                value = like(Value((2, 4)), dtype)
                flags = Value((2, 4), condition)
                yield Single(name, (flags, value, value), (value,))
                yield Single(name, (flags, value, Value((2, 4), dtype, 1, value.scales)), (value,))
    flags, value = Value((2, 4), "bool"), Value((2, 4))
    yield Single("SELECT", (Value((2,), "bool"), value, value), (value,))
    for shape in ((), (1,), (4,), (1, 4), (2, 1)):
        yield Single("SELECT_V2", (flags, value, Value(shape)), (value,))
        yield Single("SELECT_V2", (flags, value, Value(shape, data=1.0)), (value,))
        yield Single("SELECT_V2", (flags, Value(shape, data=1.0), value), (value,))
    yield Single("SELECT_V2", (Value((1, 4), "bool"), value, value), (value,))
    cube = Value((2, 3, 4))
    flags_3 = Value((2, 3, 4), "bool")
    yield Single("SELECT_V2", (flags_3, cube, Value((2, 3, 4), data=1.0)), (cube,))
    yield Single("SELECT_V2", (flags_3, cube, cube), (cube,))
    yield Single("SELECT_V2", (Value((1, 3, 4), "bool"), cube, cube), (cube,))
    yield Single("SELECT_V2", (Value((2, 3, 1), "bool"), cube, cube), (cube,))
    yield Single("SELECT_V2", (Value((4,), "bool"), cube, cube), (cube,))
    yield Single("SELECT_V2", (Value((2, 4), "bool", True), value, value), (value,))
    yield Single("SELECT_V2", (flags, value, value), (value,), 2)


def layers() -> Iterator[Single]:
    weights = Value((6, 3, 3, 4), data=0.1)
    made = Value((1, 8, 8, 6))
    conv = {**CONV, **NO_ACTIVATION}
    bias = Value((6,), data=0.1)
    yield Single("CONV_2D", (IMAGE, weights, bias), (made,), 1, conv)
    yield Single("CONV_2D", (IMAGE, Value((6, 3, 3, 4)), bias), (made,), 1, conv)
    yield Single("CONV_2D", (Value(IMAGE.shape, data=1.0), weights, bias), (made,), 1, conv)
    for version in (2, 3, 5, 6, 7, 8):
        yield Single("CONV_2D", (IMAGE, weights, bias), (made,), version, conv)
    for activation in (1, 2, 3, 4):
        yield Single(
            "CONV_2D", (IMAGE, weights, bias), (made,), 1, {**conv, "fused_activation_function": activation}
        )
    yield Single(
        "CONV_2D",
        (IMAGE, weights, bias),
        (made,),
        2,
        {**conv, "dilation_w_factor": 2, "dilation_h_factor": 2},
    )
    yield Single(
        "CONV_2D", (IMAGE, weights, bias), (Value((1, 4, 4, 6)),), 1, {**conv, "stride_w": 2, "stride_h": 2}
    )
    yield Single("CONV_2D", (IMAGE, Value((6, 3, 3, 2), data=0.1), bias), (made,), 1, conv)
    for side in (1, 3):
        of = (6, side, side, 4)
        for scales in ((0.1,), (0.1,) * 6):
            small = Value(of, "int8", 1, scales)
            yield Single("CONV_2D", (IMAGE, small, bias), (made,), 3, conv)
            q = Value(IMAGE.shape, "int8", scales=(0.1,))
            whole = Value((6,), "int32", 1, tuple(0.01 for _ in scales))
            yield Single("CONV_2D", (q, small, whole), (Value((1, 8, 8, 6), "int8", scales=(0.1,)),), 3, conv)
    depth = {**conv, "depth_multiplier": 1}
    by_channel = Value((1, 3, 3, 4), data=0.1)
    four = Value((4,), data=0.1)
    yield Single("DEPTHWISE_CONV_2D", (IMAGE, by_channel, four), (IMAGE,), 1, depth)
    yield Single("DEPTHWISE_CONV_2D", (IMAGE, Value((1, 3, 3, 4)), four), (IMAGE,), 1, depth)
    twice = Value((1, 3, 3, 8), data=0.1)
    eight = (Value((8,), data=0.1), Value((1, 8, 8, 8)))
    yield Single(
        "DEPTHWISE_CONV_2D", (IMAGE, twice, eight[0]), (eight[1],), 1, {**depth, "depth_multiplier": 2}
    )
    for version in (2, 3, 6, 7):
        yield Single("DEPTHWISE_CONV_2D", (IMAGE, by_channel, four), (IMAGE,), version, depth)
    for scales in ((0.1,), (0.1,) * 4):
        small = Value((1, 3, 3, 4), "int8", 1, scales, 3)
        q = Value(IMAGE.shape, "int8", scales=(0.1,))
        yield Single("DEPTHWISE_CONV_2D", (q, small, Value((4,), "int32", 1, scales)), (q,), 3, depth)
    dense = {**NO_ACTIVATION, "weights_format": 0, "keep_num_dims": False}
    matrix = Value((6, 4), data=0.1)
    for shape in ((2, 4), (1, 2, 4), (1, 1, 2, 4), (4,), (1, 1, 1, 2, 4)):
        rows = 2 if len(shape) > 1 else 1
        yield Single("FULLY_CONNECTED", (Value(shape), matrix, bias), (Value((rows, 6)),), 1, dense)
        if len(shape) > 1:
            kept = Value((*shape[:-1], 6))
            yield Single(
                "FULLY_CONNECTED", (Value(shape), matrix, bias), (kept,), 5, {**dense, "keep_num_dims": True}
            )
    flat, row = Value((2, 4)), Value((2, 6))
    yield Single("FULLY_CONNECTED", (flat, matrix, None), (row,), 1, dense)
    yield Single("FULLY_CONNECTED", (flat, Value((6, 4)), None), (row,), 1, dense)
    yield Single("FULLY_CONNECTED", (flat, matrix, Value((6,))), (row,), 1, dense)
    for version in (2, 4, 9, 12, 13, 14):
        yield Single("FULLY_CONNECTED", (flat, matrix, bias), (row,), version, dense)
    for dtype in ("int8", "int4"):
        for scales in ((0.1,), (0.1,) * 6):
            small = Value((6, 4), dtype, 1, scales)
            yield Single("FULLY_CONNECTED", (flat, small, bias), (row,), 9, dense)
            yield Single("FULLY_CONNECTED", (flat, small, None), (row,), 9, dense)
            q = Value((2, 4), "int8", scales=(0.1,))
            whole = Value((6,), "int32", 1, tuple(0.01 for _ in scales))
            made_q = Value((2, 6), "int8", scales=(0.1,))
            yield Single("FULLY_CONNECTED", (q, small, whole), (made_q,), 9, dense)
    u8 = Value((2, 4), "uint8", scales=(0.1,))
    yield Single(
        "FULLY_CONNECTED",
        (u8, Value((6, 4), "uint8", 1, (0.1,)), Value((6,), "int32", 1, (0.01,))),
        (Value((2, 6), "uint8", scales=(0.1,)),),
        1,
        dense,
    )
    up = {"padding": 0, "stride_w": 2, "stride_h": 2}
    large = Value((1, 16, 16, 6))
    yield Single("TRANSPOSE_CONV", (ints(1, 16, 16, 6), weights, IMAGE), (large,), 1, up)
    yield Single("TRANSPOSE_CONV", (ints(1, 16, 16, 6), weights, IMAGE, bias), (large,), 3, up)
    yield Single("TRANSPOSE_CONV", (ints(1, 16, 16, 6), Value((6, 3, 3, 4)), IMAGE), (large,), 1, up)
    yield Single("TRANSPOSE_CONV", (ints(1, 16, 16, 6), weights, IMAGE, bias), (large,), 4, up)
    for name in ("AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D"):
        pooled = Value((1, 4, 4, 4))
        yield Single(name, (IMAGE,), (pooled,), 1, {**POOL, **NO_ACTIVATION})
        yield Single(name, (IMAGE,), (pooled,), 1, {**POOL, "fused_activation_function": 1})
        if name != "L2_POOL_2D":
            q = Value(IMAGE.shape, "int8", scales=(0.1,))
            yield Single(
                name, (q,), (Value((1, 4, 4, 4), "int8", scales=(0.1,)),), 2, {**POOL, **NO_ACTIVATION}
            )
            yield Single(name, (IMAGE,), (pooled,), 3, {**POOL, **NO_ACTIVATION})
        yield Single(name, (Value(IMAGE.shape, data=1.0),), (pooled,), 1, {**POOL, **NO_ACTIVATION})


def grouped() -> Iterator[Single]:
    """Convolutions in groups, by (channels, groups, channels made)."""
    options = {**CONV, **NO_ACTIVATION}
    for channels, groups, made in (
        (4, 2, 6),
        (8, 2, 8),
        (8, 2, 6),
        (8, 4, 8),
        (4, 4, 4),
        (4, 4, 8),
        (16, 4, 16),
        (12, 3, 12),
        (8, 8, 8),
        (6, 2, 4),
    ):
        weights = _counted((made, 3, 3, channels // groups))
        image, result = Value((1, 8, 8, channels)), Value((1, 8, 8, made))
        yield Single("CONV_2D", (image, weights, _counted((made,))), (result,), 1, options)


def _counted(shape: tuple[int, ...]) -> Value:
    """A constant whose numbers all differ."""
    return Value(shape, data=np.linspace(-1, 1, math.prod(shape)).reshape(shape))


def reduced() -> Iterator[Single]:
    for name in REDUCING:
        for shape in SHAPES[1:]:
            for keep in (True, False):
                last = (*shape[:-1], 1) if keep else shape[:-1]
                yield Single(name, (Value(shape), ints(-1)), (Value(last),), 1, {"keep_dims": keep})
        value = Value((1, 2, 3, 4))
        yield Single(name, (value, ints(1, 2)), (Value((1, 1, 1, 4)),), 1, {"keep_dims": True})
        yield Single(name, (value, Value((), "int32", 1)), (Value((1, 1, 3, 4)),), 1, {"keep_dims": True})
        cube = Value((2, 3, 4))
        yield Single(name, (cube, ints(1)), (Value((2, 4)),), 1, {"keep_dims": False})
        yield Single(name, (cube, ints(0, 2)), (Value((3,)),), 1, {"keep_dims": False})
        yield Single(name, (Value((3, 4)), ints(0)), (Value((4,)),), 1, {"keep_dims": False})
        yield Single(name, (Value((2, 4), data=1.0), ints(1)), (Value((2, 1)),), 1, {"keep_dims": True})
        for dtype in ("int32", "int64"):
            whole = Value((2, 4), dtype)
            yield Single(name, (whole, ints(1)), (Value((2, 1), dtype),), 1, {"keep_dims": True})
        yield Single(name, (value, ints(-1)), (Value((1, 2, 3, 1)),), 2, {"keep_dims": True})
        if name in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"):
            q = Value((2, 4), "int8", scales=(0.1,))
            yield Single(name, (q, ints(1)), (Value((2, 1), "int8", scales=(0.1,)),), 2, {"keep_dims": True})
    for name in ("REDUCE_ANY", "REDUCE_ALL"):
        flags = Value((2, 4), "bool")
        yield Single(name, (flags, ints(1)), (Value((2, 1), "bool"),), 1, {"keep_dims": True})
    for name in ("ARG_MAX", "ARG_MIN"):
        for shape in SHAPES[1:5]:
            yield Single(name, (Value(shape), ints(-1)), (Value(shape[:-1], "int32"),), 1, {"output_type": 2})
        yield Single(
            name, (Value((2, 4)), Value((1,), "int64", 1)), (Value((2,), "int32"),), 1, {"output_type": 2}
        )
        yield Single(name, (Value((2, 4)), ints(1)), (Value((2,), "int64"),), 1, {"output_type": 4})
        yield Single(name, (Value((2, 3, 4)), ints(1)), (Value((2, 4), "int32"),), 1, {"output_type": 2})
        yield Single(name, (Value((2, 4), "int32"), ints(1)), (Value((2,), "int32"),), 1, {"output_type": 2})
        for dtype, version in (("int8", 2), ("uint8", 1), ("bool", 3)):
            value = like(Value((6, 4)), dtype)
            yield Single(name, (value, ints(1)), (Value((6,), "int32"),), version, {"output_type": 2})
    for shape in SHAPES[1:5]:
        two = Value((*shape[:-1], 2)), Value((*shape[:-1], 2), "int32")
        yield Single("TOPK_V2", (Value(shape), Value((), "int32", 2)), two)
        yield Single("TOPK_V2", (Value(shape), ints(2)), two)
    yield Single(
        "TOPK_V2", (Value((2, 4)), Value((), "int32", 2)), (Value((2, 2)), Value((2, 2), "int32")), 2
    )
    for shape in SHAPES[1:6]:
        options = {"exclusive": False, "reverse": False}
        yield Single(
            "CUMSUM", (Value(shape), Value((), "int32", len(shape) - 1)), (Value(shape),), 1, options
        )
    yield Single(
        "CUMSUM", (Value((2, 4), "int32"), Value((), "int32", 1)), (Value((2, 4), "int32"),), 1, options
    )
    for flag in ("exclusive", "reverse"):
        chosen_options = {**options, flag: True}
        yield Single("CUMSUM", (Value((2, 4)), Value((), "int32", 1)), (Value((2, 4)),), 1, chosen_options)


def shaped() -> Iterator[Single]:
    for made in ((24,), (4, 6), (2, 3, 4), (1, 2, 3, 4), (1, 1, 2, 3, 4), (1, 1, 1, 2, 3, 4)):
        for dtype in ("float32", "int32", "bool", "int8", "int64", "uint8", "int16"):
            source, result = like(Value((1, 6, 4)), dtype), like(Value(made), dtype)
            yield Single("RESHAPE", (source, ints(*made)), (result,), 1, {"new_shape": list(made)})
    yield Single("RESHAPE", (Value((1,)), Value((0,), "int32", ())), (Value(()),), 1, {"new_shape": []})
    yield Single("RESHAPE", (Value((2, 4), data=1.0), ints(8)), (Value((8,)),), 1, {"new_shape": [8]})
    yield Single("RESHAPE", (Value((2, 4)),), (Value((8,)),), 1, {"new_shape": [8]})
    yield Single("SQUEEZE", (Value((1, 2, 4)),), (Value((2, 4)),), 1, {"squeeze_dims": [0]})
    yield Single("EXPAND_DIMS", (Value((2, 4)), ints(0)), (Value((1, 2, 4)),))
    yield Single("BROADCAST_TO", (Value((1, 4)), ints(2, 4)), (Value((2, 4)),), 2)
    yield Single("SHAPE", (Value((2, 4)),), (Value((2,), "int32"),), 1, {"out_type": 2})
    yield Single("RANK", (Value((2, 4)),), (Value((), "int32"),))
    for shape in SHAPES[1:]:
        perm = tuple(reversed(range(len(shape))))
        flipped = tuple(reversed(shape))
        for dtype in ("float32", "int32", "int8", "int64", "bool"):
            source, result = like(Value(shape), dtype), like(Value(flipped), dtype)
            yield Single("TRANSPOSE", (source, ints(*perm)), (result,))
    yield Single("TRANSPOSE", (Value((2, 4), data=1.0), ints(1, 0)), (Value((4, 2)),))
    for version in (2, 5, 6):
        yield Single("TRANSPOSE", (Value((2, 4)), ints(1, 0)), (Value((4, 2)),), version)
    for shape in SHAPES[1:]:
        for axis in {0, len(shape) - 1}:
            made = list(shape)
            made[axis] *= 2
            options = {"axis": axis, **NO_ACTIVATION}
            for dtype in ("float32", "int32", "int64"):
                value = Value(shape, dtype)
                yield Single("CONCATENATION", (value, value), (Value(tuple(made), dtype),), 1, options)
            pair = (Value(shape), Value(shape, data=1.0))
            yield Single("CONCATENATION", pair, (Value(tuple(made)),), 1, options)
            different = list(shape)
            different[axis] += 1
            longer = [*shape]
            longer[axis] = 2 * shape[axis] + 1
            parts = (Value(shape), Value(tuple(different)))
            yield Single("CONCATENATION", parts, (Value(tuple(longer)),), 1, options)
            packed = [*shape]
            packed.insert(axis, 2)
            options = {"axis": axis, "values_count": 2}
            for dtype in ("float32", "int32"):
                value = Value(shape, dtype)
                yield Single("PACK", (value, value), (Value(tuple(packed), dtype),), 1, options)
            count = shape[axis]
            rest = Value((*shape[:axis], *shape[axis + 1 :]))
            unpacked = {"axis": axis, "num": count}
            yield Single("UNPACK", (Value(shape),), (rest,) * count, 1, unpacked)
    yield Single("PACK", (Value(()), Value(())), (Value((2,)),), 1, {"axis": 0, "values_count": 2})
    yield Single("PACK", (Value((4,)),), (Value((1, 4)),), 1, {"axis": 0, "values_count": 1})
    yield Single(
        "PACK", (Value((4,)), Value((4,), data=1.0)), (Value((2, 4)),), 1, {"axis": 0, "values_count": 2}
    )
    yield Single("UNPACK", (Value((2, 4), "int32"),), (Value((4,), "int32"),) * 2, 1, {"axis": 0, "num": 2})
    for dtype in ("int8", "uint8"):
        q = Value((2, 4), dtype, scales=(0.1,))
        yield Single(
            "CONCATENATION", (q, q), (Value((4, 4), dtype, scales=(0.1,)),), 2, {"axis": 0, **NO_ACTIVATION}
        )
    for shape in SHAPES[1:]:
        half = Value((*shape[:-1], 2))
        axis = Value((), "int32", len(shape) - 1)
        yield Single("SPLIT", (axis, Value(shape)), (half, half), 1, {"num_splits": 2})
        sizes = ints(1, 3)
        parts = Value((*shape[:-1], 1)), Value((*shape[:-1], 3))
        yield Single("SPLIT_V", (Value(shape), sizes, axis), parts, 1, {"num_splits": 2})
    axis = Value((), "int32", 1)
    for dtype in ("int32", "int64", "int8"):
        q = like(Value((2, 4)), dtype)
        half = like(Value((2, 2)), dtype)
        yield Single("SPLIT", (axis, q), (half, half), 2, {"num_splits": 2})
    yield Single("SPLIT", (axis, Value((2, 4))), (Value((2, 4)),), 1, {"num_splits": 1})
    yield Single("SPLIT", (axis, Value((2, 4), data=1.0)), (Value((2, 2)),) * 2, 1, {"num_splits": 2})
    for shape in SHAPES[1:]:
        made = Value(tuple(2 * n for n in shape))
        yield Single("TILE", (Value(shape), ints(*(2,) * len(shape))), (made,))
    for dtype in ("int32", "int64", "bool"):
        yield Single("TILE", (Value((2, 4), dtype), ints(1, 2)), (Value((2, 8), dtype),))
    for shape in SHAPES[1:]:
        yield Single("REVERSE_V2", (Value(shape), ints(len(shape) - 1)), (Value(shape),))


def sliced() -> Iterator[Single]:
    for shape in SHAPES[1:]:
        rank = len(shape)
        for dtype in ("float32", "int32", "int64", "bool"):
            half = Value((*shape[:-1], 2), dtype)
            start, size = ints(*(0,) * rank), ints(*(-1,) * (rank - 1), 2)
            yield Single("SLICE", (Value(shape, dtype), start, size), (half,))
        half = Value((*shape[:-1], 2))
        yield Single("SLICE", (Value(shape, data=1.0), start, size), (half,))
        wide = [Value((rank,), "int64", [0] * rank), Value((rank,), "int64", [-1] * (rank - 1) + [2])]
        yield Single("SLICE", (Value(shape), *wide), (half,))
        end, stride = ints(*shape[:-1], 2), ints(*(1,) * rank)
        masks = {
            "begin_mask": 0,
            "end_mask": 0,
            "ellipsis_mask": 0,
            "new_axis_mask": 0,
            "shrink_axis_mask": 0,
        }
        for dtype in ("float32", "int32", "int64"):
            made = Value((*shape[:-1], 2), dtype)
            yield Single("STRIDED_SLICE", (Value(shape, dtype), start, end, stride), (made,), 1, masks)
        made = Value((*shape[:-1], 2))
        yield Single(
            "STRIDED_SLICE",
            (Value(shape), start, end, stride),
            (Value(shape),),
            1,
            {**masks, "end_mask": 2**rank - 1},
        )
        first = Value(shape[1:])
        one = ints(1, *shape[1:])
        yield Single(
            "STRIDED_SLICE", (Value(shape), start, one, stride), (first,), 1, {**masks, "shrink_axis_mask": 1}
        )
        by_two = ints(*(1,) * (rank - 1), 2)
        yield Single("STRIDED_SLICE", (Value(shape), start, ints(*shape), by_two), (made,), 1, masks)
        back = ints(*(1,) * (rank - 1), -1)
        from_end = ints(*(0,) * (rank - 1), 3)
        stop = ints(*shape[:-1], 0)
        backwards = Value((*shape[:-1], 3))
        yield Single("STRIDED_SLICE", (Value(shape), from_end, stop, back), (backwards,), 1, masks)
        yield Single(
            "STRIDED_SLICE", (Value(shape), start, ints(*(99,) * rank), stride), (Value(shape),), 1, masks
        )
        tail = ints(*(0,) * (rank - 1), -2)
        yield Single("STRIDED_SLICE", (Value(shape), tail, ints(*shape), stride), (made,), 1, masks)
    yield Single(
        "STRIDED_SLICE", (Value((2, 4)), ints(0, 0), ints(2, 2), ints(1, 1)), (Value((2, 2)),), 2, masks
    )
    yield Single(
        "STRIDED_SLICE", (Value((2, 4)), ints(0, 0), ints(2, 2), ints(1, 1)), (Value((2, 2)),), 3, masks
    )
    yield Single("STRIDED_SLICE", (Value((2, 4)), ints(1), ints(2), ints(1)), (Value((1, 4)),), 1, masks)
    yield Single(
        "STRIDED_SLICE",
        (Value((2, 4)), ints(0, 0), ints(2, 2), ints(1, 1)),
        (Value((1, 2, 2)),),
        1,
        {**masks, "new_axis_mask": 1},
    )
    for rank in (1, 2, 3, 4, 5):
        shape = (4,) * rank
        paddings = Value((rank, 2), "int32", 1)
        made = Value((6,) * rank)
        yield Single("PAD", (Value(shape), paddings), (made,))
        yield Single("PADV2", (Value(shape), paddings, Value((), data=1.0)), (made,))
        for mode in (0, 1):
            yield Single("MIRROR_PAD", (Value(shape), paddings), (made,), 1, {"mode": mode})
    for batch in (1, 2):
        for around in ((0, 0), (1, 1), (0, 1)):
            paddings = Value((4, 2), "int32", [around, (1, 2), (0, 1), (0, 0)])
            made = Value((batch + sum(around), 7, 5, 4))
            yield Single("PAD", (Value((batch, 4, 4, 4)), paddings), (made,))
            yield Single("PADV2", (Value((batch, 4, 4, 4)), paddings, Value((), data=1.0)), (made,))
    first = Value((3, 2), "int32", [(1, 0), (0, 0), (0, 0)])
    yield Single("PAD", (Value((1, 4, 4)), first), (Value((2, 4, 4)),))
    q = Value((1, 4, 4, 4), "int8", scales=(0.1,))
    fill, inner = Value((), "int8", 1, (0.1,)), Value((4, 2), "int32", [(0, 0), (1, 1), (1, 1), (0, 0)])
    yield Single("PADV2", (q, inner, fill), (Value((1, 6, 6, 4), "int8", scales=(0.1,)),), 2)
    whole = Value((1, 4, 4, 4), "int32")
    yield Single("PAD", (whole, inner), (Value((1, 6, 6, 4), "int32"),))
    yield Single("PADV2", (whole, inner, Value((), "int32", 1)), (Value((1, 6, 6, 4), "int32"),))
    rows = Value((3, 2), "int32", [(0, 0), (1, 2), (0, 0)])
    yield Single("PAD", (Value((1, 4, 4)), rows), (Value((1, 7, 4)),))
    yield Single("PAD", (Value((2, 4, 4)), rows), (Value((2, 7, 4)),))
    channels = Value((4, 2), "int32", [(0, 0), (0, 0), (0, 0), (1, 2)])
    yield Single("PAD", (Value((1, 4, 4, 4)), channels), (Value((1, 4, 4, 7)),))
    four = Value((4, 2), "int32", 1)
    image = Value((1, 4, 4, 4))
    for dtype in ("int32", "int8"):
        yield Single("PAD", (like(image, dtype), four), (like(Value((3, 6, 6, 6)), dtype),), 2)
    yield Single("PAD", (image, Value((4, 2), "int64", 1)), (Value((3, 6, 6, 6)),))
    yield Single("PADV2", (image, four, Value((1,), data=1.0)), (Value((3, 6, 6, 6)),))
    yield Single(
        "PADV2", (Value((1, 4, 4, 4), "int32"), four, Value((), "int32", 1)), (Value((3, 6, 6, 6), "int32"),)
    )


def gathered() -> Iterator[Single]:
    for shape in SHAPES[1:]:
        for axis in {0, len(shape) - 1}:
            made = list(shape)
            made[axis] = 2
            options = {"axis": axis, "batch_dims": 0}
            for dtype in ("float32", "int32", "int64", "bool"):
                value = Value(shape, dtype)
                yield Single("GATHER", (value, ints(0, 0)), (Value(tuple(made), dtype),), 1, options)
            if shape[axis] < 2:
                continue
            indices = Value((2,), "int32")
            yield Single("GATHER", (Value(shape), indices), (Value(tuple(made)),), 1, options)
            yield Single("GATHER", (Value(shape, data=1.0), indices), (Value(tuple(made)),), 1, options)
    options = {"axis": 0, "batch_dims": 0}
    table = Value((5, 4), data=1.0)
    yield Single("GATHER", (table, Value((), "int32")), (Value((4,)),), 1, options)
    yield Single("GATHER", (table, Value((1, 2), "int32")), (Value((1, 2, 4)),), 1, options)
    yield Single("GATHER", (table, Value((2,), "int64")), (Value((2, 4)),), 1, options)
    yield Single("GATHER", (table, ints(0, 1)), (Value((2, 4)),), 1, options)
    small = Value((5, 4), "int8", 1, (0.1,))
    yield Single("GATHER", (small, Value((2,), "int32")), (Value((2, 4), "int8", scales=(0.1,)),), 2, options)
    yield Single("GATHER_ND", (Value((5, 4)), Value((2, 1), "int32", 1)), (Value((2, 4)),))
    yield Single("EMBEDDING_LOOKUP", (Value((2,), "int32"), table), (Value((2, 4)),))
    yield Single("EMBEDDING_LOOKUP", (Value((2,), "int32"), small), (Value((2, 4)),), 3)
    by_row = Value((5, 4), "int8", 1, (0.1,) * 5)
    yield Single("EMBEDDING_LOOKUP", (Value((2,), "int32"), by_row), (Value((2, 4)),), 3)
    yield Single(
        "EMBEDDING_LOOKUP", (Value((2,), "int32"), Value((5, 4), "int4", 1, (0.1,) * 5)), (Value((2, 4)),), 4
    )
    cube = Value((5, 2, 4), data=1.0)
    yield Single("EMBEDDING_LOOKUP", (Value((2,), "int32"), cube), (Value((2, 2, 4)),))
    on, off, depth = Value((), data=1.0), Value((), data=0.0), Value((), "int32", 5)
    for shape in ((2,), (1, 2), (2, 2), (1, 1, 2), (2, 1, 2), (1, 2, 2), (2, 2, 2)):
        yield Single(
            "ONE_HOT", (Value(shape, "int32"), depth, on, off), (Value((*shape, 5)),), 1, {"axis": -1}
        )
    yield Single("ONE_HOT", (Value((2,), "int64"), depth, on, off), (Value((2, 5)),), 1, {"axis": -1})
    whole = Value((), "int32", 1), Value((), "int32", 0)
    yield Single("ONE_HOT", (Value((2,), "int32"), depth, *whole), (Value((2, 5), "int32"),), 1, {"axis": -1})
    yield Single("ONE_HOT", (Value((2,), "int32"), depth, on, off), (Value((5, 2)),), 1, {"axis": 0})
    for shape in SHAPES[1:]:
        operand = Value(shape)
        update = Value((*shape[:-1], 2))
        start = Value((len(shape),), "int32")
        yield Single("DYNAMIC_UPDATE_SLICE", (operand, update, start), (operand,))
        constant = ints(*(0,) * len(shape))
        yield Single("DYNAMIC_UPDATE_SLICE", (operand, update, constant), (operand,))
    for dtype in ("int32", "int8", "int64"):
        operand, update = Value((2, 4), dtype), Value((2, 2), dtype)
        yield Single("DYNAMIC_UPDATE_SLICE", (operand, update, Value((2,), "int32")), (operand,))
    yield Single(
        "DYNAMIC_UPDATE_SLICE", (Value((2, 4)), Value((2, 2)), Value((2,), "int64")), (Value((2, 4)),), 2
    )
    yield Single(
        "DYNAMIC_UPDATE_SLICE",
        (Value((2, 4)), Value((2, 2), data=1.0), Value((2,), "int32")),
        (Value((2, 4)),),
    )
    yield Single(
        "DYNAMIC_UPDATE_SLICE",
        (Value((2, 4), data=1.0), Value((2, 2)), Value((2,), "int32")),
        (Value((2, 4)),),
    )


def converted() -> Iterator[Single]:
    for source in ("float32", "int32", "int64", "bool", "int8", "uint8"):
        for made in ("float32", "int32", "int64", "bool", "int8", "uint8"):
            yield Single("CAST", (Value((2, 4), source),), (Value((2, 4), made),))
    yield Single("CAST", (Value((2, 4), data=1.0),), (Value((2, 4), "int32"),))
    for dtype in ("int8", "uint8", "int16"):
        q = Value((2, 4), dtype, scales=(0.1,))
        yield Single("QUANTIZE", (Value((2, 4)),), (q,), 2 if dtype == "int16" else 1)
        yield Single("DEQUANTIZE", (q,), (Value((2, 4)),), 2 if dtype != "uint8" else 1)
        yield Single("QUANTIZE", (Value((2, 4)),), (q,), 3)
    q = Value((2, 4), "int8", scales=(0.1,))
    yield Single("QUANTIZE", (q,), (Value((2, 4), "int8", scales=(0.2,)),), 2)
    yield Single("QUANTIZE", (q,), (Value((2, 4), "uint8", scales=(0.2,)),), 2)
    for shape in SHAPES[1:5]:
        yield Single("DEQUANTIZE", (Value(shape, "int8", 1, (0.1,)),), (Value(shape),), 2)
        yield Single("DEQUANTIZE", (Value(shape, "float16", 1),), (Value(shape),), 3)
        yield Single("DEQUANTIZE", (Value(shape, "int8", 1, (0.1,) * shape[0]),), (Value(shape),), 5)
    yield Single("DEQUANTIZE", (Value((2, 4), "float16"),), (Value((2, 4)),), 3)


def attended() -> Iterator[Single]:
    options = {"adj_x": False, "adj_y": False}
    for batch in ((), (2,), (1, 2), (1, 1, 2)):
        left, right, made = Value((*batch, 3, 4)), Value((*batch, 4, 5)), Value((*batch, 3, 5))
        yield Single("BATCH_MATMUL", (left, right), (made,), 1, options)
        yield Single("BATCH_MATMUL", (left, Value((*batch, 4, 5), data=1.0)), (made,), 1, options)
        yield Single("BATCH_MATMUL", (Value((*batch, 3, 4), data=1.0), right), (made,), 1, options)
        turned = Value((*batch, 5, 4))
        yield Single("BATCH_MATMUL", (left, turned), (made,), 1, {**options, "adj_y": True})
        upright = Value((*batch, 4, 3))
        yield Single("BATCH_MATMUL", (upright, right), (made,), 1, {**options, "adj_x": True})
    left, made = Value((1, 2, 3, 4)), Value((1, 2, 3, 5))
    yield Single("BATCH_MATMUL", (left, Value((1, 1, 4, 5))), (made,), 1, options)
    yield Single("BATCH_MATMUL", (left, Value((4, 5))), (made,), 1, options)
    yield Single("BATCH_MATMUL", (left, Value((4, 5), data=1.0)), (made,), 1, options)
    many, one = Value((3, 2, 3, 4)), Value((1, 1, 4, 5))
    yield Single("BATCH_MATMUL", (many, one), (Value((3, 2, 3, 5)),), 1, options)
    yield Single("BATCH_MATMUL", (many, _counted((1, 2, 4, 5))), (Value((3, 2, 3, 5)),), 1, options)
    yield Single("BATCH_MATMUL", (left, _counted((1, 1, 4, 5))), (made,), 1, options)
    yield Single("BATCH_MATMUL", (Value((2, 3, 4)), _counted((4, 5))), (Value((2, 3, 5)),), 1, options)
    yield Single("BATCH_MATMUL", (Value((1, 1, 3, 4)), Value((1, 2, 4, 5))), (made,), 1, options)
    small = Value((1, 2, 4, 5), "int8", 1, (0.1,))
    yield Single("BATCH_MATMUL", (left, small), (made,), 2, options)
    q = Value((1, 2, 3, 4), "int8", scales=(0.1,)), Value((1, 2, 4, 5), "int8", scales=(0.1,))
    yield Single("BATCH_MATMUL", q, (Value((1, 2, 3, 5), "int8", scales=(0.1,)),), 2, options)


def chosen() -> Iterator[Single]:
    yield Single("RANGE", tuple(Value((), "int32", n) for n in (0, 4, 1)), (Value((4,), "int32"),))
    yield Single("FILL", (ints(2, 4), Value((), data=1.0)), (Value((2, 4)),))
    yield Single("FILL", (ints(2, 4), Value(())), (Value((2, 4)),))
    yield Single(
        "LOCAL_RESPONSE_NORMALIZATION",
        (IMAGE,),
        (IMAGE,),
        1,
        {"radius": 1, "bias": 1.0, "alpha": 1.0, "beta": 0.5},
    )
    yield Single("SPACE_TO_BATCH_ND", (IMAGE, ints(2, 2), Value((2, 2), "int32", 0)), (Value((4, 4, 4, 4)),))
    yield Single("BATCH_TO_SPACE_ND", (Value((4, 4, 4, 4)), ints(2, 2), Value((2, 2), "int32", 0)), (IMAGE,))


def resized() -> Iterator[Single]:
    for name in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"):
        for corners, centers in ((False, False), (True, False), (False, True)):
            options = {"align_corners": corners, "half_pixel_centers": centers}
            yield Single(name, (IMAGE, ints(16, 16)), (Value((1, 16, 16, 4)),), 3, options)
            yield Single(
                name, (Value(IMAGE.shape, data=1.0), ints(16, 16)), (Value((1, 16, 16, 4)),), 3, options
            )
        q = Value(IMAGE.shape, "int8", scales=(0.1,))
        yield Single(name, (q, ints(16, 16)), (Value((1, 16, 16, 4), "int8", scales=(0.1,)),), 2, {})
        yield Single(name, (IMAGE, ints(16, 16)), (Value((1, 16, 16, 4)),), 4, {})
    for version in (1, 2):
        for size in (1, 2):
            wide, deep = Value((1, 8, 8, 4)), Value((1, 8 // size, 8 // size, 4 * size * size))
            yield Single("SPACE_TO_DEPTH", (wide,), (deep,), version, {"block_size": size})
            yield Single("DEPTH_TO_SPACE", (deep,), (wide,), version, {"block_size": size})
