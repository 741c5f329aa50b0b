"""What the numbers for operators and data types in a .tflite file mean (TFLite schema, version 3)."""

from __future__ import annotations

from dataclasses import dataclass

# In the order of the BuiltinOperator codes.
_NAMES = """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP
    FLOOR FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION
    LOGISTIC LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN
    SOFTMAX SPACE_TO_DEPTH SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD
    UNIDIRECTIONAL_SEQUENCE_RNN GATHER BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE
    UNIDIRECTIONAL_SEQUENCE_LSTM STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX
    DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2 GREATER
    GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL
    NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR
    ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY SQUARE ZEROS_LIKE FILL
    FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS SPLIT_V UNIQUE
    CEIL REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE
    MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND
    SELECT_V2 DENSIFY SEGMENT_SUM BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE
    BROADCAST_TO RFFT2D CONV_3D IMAG REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT
    HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS
    RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1
    UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX UNSORTED_SEGMENT_SUM ATAN2 UNSORTED_SEGMENT_MIN SIGN
    BITCAST BITWISE_XOR RIGHT_SHIFT STABLEHLO_LOGISTIC STABLEHLO_ADD STABLEHLO_DIVIDE STABLEHLO_MULTIPLY
    STABLEHLO_MAXIMUM STABLEHLO_RESHAPE STABLEHLO_CLAMP STABLEHLO_CONCATENATE STABLEHLO_BROADCAST_IN_DIM
    STABLEHLO_CONVOLUTION STABLEHLO_SLICE STABLEHLO_CUSTOM_CALL STABLEHLO_REDUCE STABLEHLO_ABS
    STABLEHLO_AND STABLEHLO_COSINE STABLEHLO_EXPONENTIAL STABLEHLO_FLOOR STABLEHLO_LOG STABLEHLO_MINIMUM
    STABLEHLO_NEGATE STABLEHLO_OR STABLEHLO_POWER STABLEHLO_REMAINDER STABLEHLO_RSQRT STABLEHLO_SELECT
    STABLEHLO_SUBTRACT STABLEHLO_TANH STABLEHLO_SCATTER STABLEHLO_COMPARE STABLEHLO_CONVERT
    STABLEHLO_DYNAMIC_SLICE STABLEHLO_DYNAMIC_UPDATE_SLICE STABLEHLO_PAD STABLEHLO_IOTA
    STABLEHLO_DOT_GENERAL STABLEHLO_REDUCE_WINDOW STABLEHLO_SORT STABLEHLO_WHILE STABLEHLO_GATHER
    STABLEHLO_TRANSPOSE DILATE STABLEHLO_RNG_BIT_GENERATOR REDUCE_WINDOW STABLEHLO_COMPOSITE
    STABLEHLO_SHIFT_LEFT STABLEHLO_CBRT STABLEHLO_CASE
"""
OPERATORS = tuple(_NAMES.split())

CUSTOM = 32  # the operator code whose name stands in the file
BLOCKWISE = 2  # the kind of quantisation details that has one scale per block of inputs

# By TensorType code: NumPy's name, or the schema's in lower case where NumPy has none, and bits per element.
DTYPES: tuple[tuple[str, int], ...] = (
    ("float32", 32),
    ("float16", 16),
    ("int32", 32),
    ("uint8", 8),
    ("int64", 64),
    ("string", 0),  # variable
    ("bool", 8),
    ("int16", 16),
    ("complex64", 64),
    ("int8", 8),
    ("float64", 64),
    ("complex128", 128),
    ("uint64", 64),
    ("resource", 0),
    ("variant", 0),
    ("uint32", 32),
    ("uint16", 16),
    ("int4", 4),
    ("bfloat16", 16),
    ("int2", 2),
    ("uint4", 4),
    ("float8_e4m3fn", 8),
    ("float8_e5m2", 8),
)
BITS = dict(DTYPES)

# By BuiltinOptions code, the fields of an operator's options that rules ask for: the schema's name, the
# field's number, its code as in `struct` ("[i" is a vector), and its default where that is not 0.
_OPTIONS = """
    1 padding:0:b stride_w:1:i stride_h:2:i fused_activation_function:3:b dilation_w_factor:4:i=1
      dilation_h_factor:5:i=1
    2 padding:0:b stride_w:1:i stride_h:2:i depth_multiplier:3:i fused_activation_function:4:b
      dilation_w_factor:5:i=1 dilation_h_factor:6:i=1
    4 type:0:b
    5 padding:0:b stride_w:1:i stride_h:2:i filter_width:3:i filter_height:4:i fused_activation_function:5:b
    6 rank:0:i fused_activation_function:1:b asymmetric_quantize_inputs:2:?
    7 fused_activation_function:0:b asymmetric_quantize_inputs:1:?
    8 fused_activation_function:0:b weights_format:1:b keep_num_dims:2:? asymmetric_quantize_inputs:3:?
    9 beta:0:f
    10 axis:0:i fused_activation_function:1:b
    11 fused_activation_function:0:b pot_scale_int16:1:?=1
    12 fused_activation_function:0:b
    13 radius:0:i bias:1:f alpha:2:f beta:3:f
    14 fused_activation_function:0:b cell_clip:1:f proj_clip:2:f kernel_type:3:b
      asymmetric_quantize_inputs:4:?
    15 align_corners:2:? half_pixel_centers:3:?
    17 new_shape:0:[i
    19 block_size:0:i
    21 fused_activation_function:0:b
    23 axis:0:i batch_dims:1:i
    27 keep_dims:0:?
    28 fused_activation_function:0:b pot_scale_int16:1:?=1
    29 fused_activation_function:0:b
    30 squeeze_dims:0:[i
    31 time_major:0:? fused_activation_function:1:b asymmetric_quantize_inputs:2:?
    32 begin_mask:0:i end_mask:1:i ellipsis_mask:2:i new_axis_mask:3:i shrink_axis_mask:4:i offset:5:?
    35 num_splits:0:i
    37 in_data_type:0:b out_data_type:1:b
    40 output_type:0:b
    49 padding:0:b stride_w:1:i stride_h:2:i fused_activation_function:3:b
    55 out_type:0:b
    57 output_type:0:b
    59 values_count:0:i axis:1:i
    61 axis:0:i
    64 num:0:i axis:1:i
    69 fused_activation_function:0:b cell_clip:1:f proj_clip:2:f merge_outputs:3:? time_major:4:?=1
      asymmetric_quantize_inputs:5:?
    71 fused_activation_function:0:b cell_clip:1:f proj_clip:2:f time_major:3:? asymmetric_quantize_inputs:4:?
    74 align_corners:0:? half_pixel_centers:1:?
    75 alpha:0:f
    77 mode:0:b
    79 num_splits:0:i
    87 seq_dim:0:i batch_dim:1:i
    94 block_size:0:i
    101 adj_x:0:? adj_y:1:? asymmetric_quantize_inputs:2:?
    102 exclusive:0:? reverse:1:?
    116 approximate:0:?
"""


@dataclass(frozen=True)
class OptionField:
    name: str
    number: int
    code: str  # as in `struct`; of a vector, that of its numbers
    default: int = 0
    is_vector: bool = False


def _option_fields() -> dict[int, tuple[OptionField, ...]]:
    found: dict[int, list[OptionField]] = {}
    fields: list[OptionField] = []
    for word in _OPTIONS.split():
        if word.isdigit():
            fields = found.setdefault(int(word), [])
            continue
        name, number, code = word.split(":")
        code, _, default = code.partition("=")
        fields.append(OptionField(name, int(number), code[-1], int(default or 0), code[0] == "["))
    return {code: tuple(fields) for code, fields in found.items()}


OPTIONS = _option_fields()
