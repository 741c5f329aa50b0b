"""Operators as a graph may have them, well formed, and so chosen that every rule of an NPU plugin is met and
missed once."""

from __future__ import annotations

from typing import Any

from tests.delegates.graph_file import Single, Value


def numbers(*values: int, dtype: str = "int32", shape: tuple[int, ...] | None = None) -> Value:
    return Value((len(values),), dtype, values) if shape is None else Value(shape, dtype, values[0])


def given(*shape: int, dtype: str = "int32") -> Value:
    return Value(shape, dtype)


def constant(*shape: int, dtype: str = "float32", scales: int = 0, block: int = 0) -> Value:
    return Value(shape, dtype, 0, STEP * scales, block=block)


STEP = (0.1,)
IMAGE = Value((1, 4, 4, 8))
ROWS = Value((4, 8))
SCALED = Value((1, 4, 4, 8), "int8", scales=STEP)
PER_CHANNEL = Value((1, 4, 4, 8), "int8", scales=STEP * 8)
MASK = Value((1, 4, 4, 8), "bool")
SCALAR = Value(())
DTYPES = ("float32", "float16", "int32", "int64", "uint8", "int8", "int16", "bool", "float64", "uint32")
WEIGHTS = ("float32", "float16", "uint8", "int8", "int4", "int2", "int16")
AXIS_OPERATORS = ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "REDUCE_ANY", "REDUCE_ALL")


def _case(operator: str, *inputs: Value | None, output: Value = IMAGE, **options: Any) -> Single:
    return Single(operator, inputs, (output,), options=options)


def _typed() -> list[Single]:
    values = [Value((1, 4, 4, 8), d, scales=STEP * s) for d in (*DTYPES, "int4", "uint16") for s in (0, 1, 8)]
    same = [_case("RESHAPE", v, output=v) for v in values]
    layers = [
        _case(
            "FULLY_CONNECTED", Value((4, 8), i, scales=STEP * i.startswith("int")), w, output=Value((4, 8), i)
        )
        for i in ("float32", "float16", "int8", "int16")
        for d in WEIGHTS
        for w in (constant(8, 8, dtype=d, scales=s) for s in (0, 1, 8))
    ]
    leaky = [_case("LEAKY_RELU", v, output=v) for v in values]
    constants = [_case("ADD", IMAGE, constant(8, dtype=d)) for d in DTYPES]
    return [*same, *layers, *leaky, *constants]


def _padded() -> list[Single]:
    pads, wide, free = constant(4, 2, dtype="int32"), constant(4, 2, dtype="int64"), given(4, 2)
    zero = constant()
    dtypes = [Value((1, 4, 4, 8), d, scales=STEP * s) for d in DTYPES for s in (0, 1)]
    return [
        *(_case(o, IMAGE, p) for o in ("PAD", "MIRROR_PAD") for p in (pads, wide, free)),
        *(_case("PADV2", IMAGE, p, v) for p in (pads, free) for v in (zero, SCALAR)),
        *(_case("PAD", v, pads, output=v) for v in (*dtypes, PER_CHANNEL)),
        *(
            _case(o, IMAGE, block, crops)
            for o in ("BATCH_TO_SPACE_ND", "SPACE_TO_BATCH_ND")
            for block in (numbers(1, 1), given(2))
            for crops in (constant(2, 2, dtype="int32"), given(2, 2))
        ),
    ]


def _sliced() -> list[Single]:
    begin, end, ones = numbers(0, 0, 0, 0), numbers(1, 4, 4, 8), numbers(1, 1, 1, 1)
    wide = numbers(0, 0, 0, 0, dtype="int64")
    two = Value((4, 4))
    halves = (two, two)
    return [
        *(_case("SLICE", IMAGE, b, e) for b in (begin, wide, given(4)) for e in (end, given(4))),
        _case("SLICE", IMAGE, begin, numbers(1, 4, 4, 8, dtype="int64")),
        *(_case("STRIDED_SLICE", IMAGE, b, e, ones) for b in (begin, given(4)) for e in (end, given(4))),
        _case("STRIDED_SLICE", IMAGE, begin, end, given(4)),
        *(
            _case("STRIDED_SLICE", IMAGE, begin, end, ones, **{mask: 1})
            for mask in ("ellipsis_mask", "new_axis_mask", "begin_mask", "end_mask")
        ),
        *(_case("TILE", IMAGE, n) for n in (ones, numbers(1, 1, 1, 1, dtype="int64"), given(4))),
        *(_case("TRANSPOSE", IMAGE, n) for n in (numbers(0, 1, 2, 3), given(4))),
        *(
            Single("SPLIT", (axis, ROWS), halves, options={"num_splits": 2})
            for axis in (numbers(1, shape=()), numbers(1, dtype="int64", shape=()), given())
        ),
        *(
            Single("SPLIT_V", (ROWS, sizes, axis), halves, options={"num_splits": 2})
            for sizes in (numbers(4, 4), numbers(4, 4, dtype="int64"), given(2))
            for axis in (numbers(1, shape=()), numbers(1, dtype="int64", shape=()))
        ),
        Single("UNPACK", (ROWS,), (Value((8,)),) * 4, options={"num": 4, "axis": 0}),
        Single("PACK", (Value((8,)),) * 4, (ROWS,), options={"values_count": 4, "axis": 0}),
    ]


def _indexed() -> list[Single]:
    three, picked = given(3), Value((3, 8))
    on, off = constant(), constant()
    whole = constant(dtype="int32")
    best = (Value((4, 2)), Value((4, 2), "int32"))
    update = Value((1, 8))
    return [
        _case("GATHER", ROWS, three, output=picked),
        _case("GATHER", ROWS, given(3, dtype="int64"), output=picked),
        _case("GATHER", ROWS, given(4, 2), output=Value((4, 2)), axis=1, batch_dims=1),
        _case("GATHER_ND", ROWS, given(3, 1), output=picked),
        *(_case("EMBEDDING_LOOKUP", three, constant(4, 8, dtype=d), output=picked) for d in WEIGHTS),
        *(
            _case("ONE_HOT", given(4), depth, on, off, output=ROWS, axis=-1)
            for depth in (numbers(8, shape=()), numbers(8, dtype="int64", shape=()), given())
        ),
        _case("ONE_HOT", given(4), numbers(8, shape=()), whole, whole, output=ROWS),
        _case("ONE_HOT", given(4), numbers(8, shape=()), whole, whole, output=Value((4, 8), "int32")),
        _case("ONE_HOT", given(4), numbers(8, shape=()), SCALAR, off, output=ROWS),
        *(
            Single("TOPK_V2", (ROWS, k), best)
            for k in (numbers(2, shape=()), numbers(2), numbers(2, dtype="int64", shape=()), given())
        ),
        *(
            _case(operator, IMAGE, axis, output=Value((1, 4, 4), "int32"))
            for operator in ("ARG_MAX", "ARG_MIN")
            for axis in (numbers(3, shape=()), numbers(3), numbers(3, dtype="int64"), given())
        ),
        *(
            _case("CUMSUM", IMAGE, axis)
            for axis in (numbers(1, shape=()), numbers(1, dtype="int64", shape=()), given())
        ),
        *(
            _case("REVERSE_V2", IMAGE, axis)
            for axis in (numbers(1), numbers(1, 2), numbers(1, dtype="int64"), given(1))
        ),
        *(
            _case("SCATTER_ND", given(2, 1), Value((2, 8)), shape, output=ROWS)
            # With an int64 shape Qualcomm's plugin reads what it never wrote: taken or not by chance.
            for shape in (numbers(4, 8), given(2))
        ),
        _case("DYNAMIC_UPDATE_SLICE", ROWS, update, given(2), output=ROWS),
        _case("DYNAMIC_UPDATE_SLICE", ROWS, update, given(2, dtype="int64"), output=ROWS),
        _case("DYNAMIC_UPDATE_SLICE", ROWS, Value((8,)), given(2), output=ROWS),
        _case("DYNAMIC_UPDATE_SLICE", Value((8,)), Value((2,)), given(1), output=Value((8,))),
        *(_case("EXPAND_DIMS", IMAGE, a, output=Value((1, 1, 4, 4, 8))) for a in (numbers(0), given(1))),
        *(_case("BROADCAST_TO", update, s, output=ROWS) for s in (numbers(4, 8), given(2))),
        *(_case("FILL", s, constant(), output=ROWS) for s in (numbers(4, 8), given(2))),
    ]


def _computed() -> list[Single]:
    bias = constant(16)
    kernel = constant(16, 3, 3, 8)
    wide = Value((1, 4, 4, 16))
    return [
        *(
            _case(operator, value, axes, output=Value((1, 8), value.dtype))
            for operator in AXIS_OPERATORS
            for value in (IMAGE, Value(IMAGE.shape, "int32"), MASK)
            for axes in (numbers(1, 2), numbers(1, shape=()), numbers(1, 2, dtype="int64"), given(2))
        ),
        *(
            _case("CONV_2D", IMAGE, k, b, output=wide)
            for k in (kernel, Value(kernel.shape), constant(16, 3, 3, 8, dtype="int8", scales=16))
            for b in (bias, None)
        ),
        *(_case("ADD", IMAGE, IMAGE, fused_activation_function=activation) for activation in range(6)),
        _case("ADD_N", IMAGE, IMAGE),
        _case("ADD_N", SCALED, SCALED, output=SCALED),
        _case("BATCH_MATMUL", Value((2, 4, 8)), Value((1, 8, 4)), output=Value((2, 4, 4))),
        _case("SELECT_V2", MASK, IMAGE, IMAGE),
        _case("QUANTIZE", IMAGE, output=SCALED),
        _case("DEQUANTIZE", SCALED),
        _case("DEQUANTIZE", constant(8, dtype="float16"), output=Value((8,))),
        *(_case("RESHAPE", Value((2,) * n), output=Value((2**n,))) for n in range(6)),
        *(_case("RESHAPE", Value((2**n,)), output=Value((2,) * n)) for n in range(9)),
    ]


CASES = (*_typed(), *_padded(), *_sliced(), *_indexed(), *_computed())

# Each of these has a plugin give up the graph that it is in.
REFUSED_WHOLE = (
    *(
        _case("RESHAPE", Value((4,), dtype), output=Value((4,), dtype))
        for dtype in ("bfloat16", "uint4", "float8_e5m2", "complex64", "complex128")
    ),
    _case("FULLY_CONNECTED", Value((4, 64)), constant(8, 64, dtype="int4", block=32), output=ROWS),
    _case("RESHAPE", Value((2,) * 6), output=Value((64,))),
)
