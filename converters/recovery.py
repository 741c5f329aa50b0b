"""Has ai-edge-quantizer find a 4-bit grid again (method "recover") some rows at a time.

It sorts the blocks of a whole matrix at once, which takes 24 bytes for each number: 3.7 GB for the head of
`0.6b`. Its other methods take a matrix in pieces. Rows have nothing to do with each other, so that the result
is the same.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from converters.silence import silence

with silence():
    from ai_edge_quantizer import algorithm_manager, qtyping
    from ai_edge_quantizer.algorithms.uniform_quantize import common_quantize
    from ai_edge_quantizer.algorithms.uniform_quantize import dequantized_weight_recovery as recovery

_ROWS = 4096  # 16 MB of a 1024-wide head


def get_tensor_quant_params(
    op_info: Any, config: Any, tensor_content: np.ndarray | None = None, tensor_qsv: Any = None
) -> Any:
    """As the library's function of this name: `UniformQuantParams` for `tensor_content` [outputs, inputs]."""
    if tensor_content is None or len(tensor_content) <= _ROWS:
        return recovery.get_tensor_quant_params(op_info, config, tensor_content, tensor_qsv)
    parts = [
        recovery.get_tensor_quant_params(op_info, config, tensor_content[start : start + _ROWS], tensor_qsv)
        for start in range(0, len(tensor_content), _ROWS)
    ]
    joined = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("scale", "zero_point", "quantized_data")
    }
    return dataclasses.replace(parts[0], **joined)


def register() -> None:
    """Puts it in place of the library's, for linear layers."""
    algorithm_manager.register_quantized_op(
        algorithm_manager.AlgorithmName.DEQUANTIZED_WEIGHT_RECOVERY,
        qtyping.TFLOperationName.FULLY_CONNECTED,
        recovery.init_qsvs,
        recovery.calibrate,
        functools.partial(common_quantize.materialize_fc_conv, get_tensor_quant_params),
    )
