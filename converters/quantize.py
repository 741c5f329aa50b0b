"""Applies a recipe to a float32 graph with ai-edge-quantizer, and measures what came out."""

from __future__ import annotations

import mmap
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converters import recovery
from converters.cache_order import drop_stale_order
from converters.recipes import Recipe, Rule
from converters.silence import silence
from delegates.graph import Subgraph
from rpi_runtime import tflite_file
from rpi_runtime.errors import EdgeError

with silence():
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer import calibrator, qtyping, quantizer, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

# Signature -> inputs, one dict of arrays per sample.
Calibration = Mapping[str, Sequence[Mapping[str, np.ndarray]]]

# Operators with weights, which rules can address; the second input holds the weights.
WEIGHTED = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")

OFFSETS = b".offsets"  # in the names of what `converters.block_offsets` splits off

_BITS = {"int4": 4, "int8": 8, "float16": 16}
_METHODS = {
    "min_max": quantizer.AlgorithmName.MIN_MAX_UNIFORM_QUANT,
    "octav": quantizer.AlgorithmName.OCTAV,
    "mse": quantizer.AlgorithmName.MSE,
    "gptq": quantizer.AlgorithmName.GPTQ,
    "recover": quantizer.AlgorithmName.DEQUANTIZED_WEIGHT_RECOVERY,
    "hadamard": quantizer.AlgorithmName.DECOMPOSED_HADAMARD_ROTATION,
}


def quantize_component(
    fp32_path: Path, recipe: Recipe, out_path: Path, calibration: Calibration | None = None
) -> None:
    """Writes `fp32_path` quantised by `recipe` to `out_path` (recipe fp32: a copy).

    `calibration` is needed when `recipe.needs_calibration` (`converters.calibration.calibration`). Raises
    `EdgeError` when a rule matches no operator or cannot be applied.
    """
    if not recipe.rules:
        shutil.copyfile(fp32_path, out_path)
        return
    if recipe.needs_calibration and not calibration:
        raise ValueError(f"recipe {recipe.name!r} needs calibration inputs")
    recovery.register()
    with silence():
        work = quantizer.Quantizer(str(fp32_path))
        _add_rules(work, recipe, list(_weighted_operators(fp32_path)))
        ranges = None
        if recipe.needs_calibration:
            ranges = _calibrated(work, fp32_path, recipe, calibration)
        try:
            work.quantize(
                ranges,
                serialize_to_path=str(out_path),
                enable_progress_bar=False,
                enable_progress_report=False,
            )
        except ValueError as error:
            raise _misfit(recipe, error) from error
    drop_stale_order(out_path, fp32_path)
    out_path.chmod(fp32_path.stat().st_mode)  # the quantizer makes its files executable


def bits_per_weight(path: Path) -> float:
    """Bits per constant number of a graph on average, scales included. A buffer that tensors share counts
    once; shapes, axes and other integers of the graph's own are no weights."""
    numbers, bits = 0, 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for count, width in _weights(schema.Model.GetRootAs(data)):
            numbers += count
            bits += width
    return bits / numbers if numbers else 0.0


@dataclass(frozen=True)
class _Operator:
    kind: str  # "FULLY_CONNECTED"
    names: str  # of its weights and its output: what a rule's scope is searched in
    output: str  # what ai-edge-quantizer knows it by


def _weighted_operators(path: Path) -> Iterator[_Operator]:
    for graph in tflite_file.read(path).subgraphs:
        for op in graph.operators:
            if op.name in WEIGHTED:
                weights, output = graph.tensors[op.inputs[1]].name, graph.tensors[op.outputs[0]].name
                yield _Operator(op.name, f"{weights};{output}", output)


def _add_rules(work: Any, recipe: Recipe, operators: list[_Operator]) -> None:
    """Tells the quantizer which rule each operator falls under: it knows operators only by their outputs."""
    matched: dict[Rule, list[_Operator]] = {rule: [] for rule in recipe.rules}
    for operator in operators:
        fitting = [r for r in recipe.rules if _fits(r, operator)]
        if fitting:
            matched[fitting[-1]].append(operator)
    for rule, under in matched.items():
        try:
            if rule.op == "*":
                _add(work, rule, ".*", qtyping.TFLOperationName.ALL_SUPPORTED)
                for end in ("INPUT", "OUTPUT"):  # the host feeds and reads float32
                    work.update_quantization_recipe(".*", end, algorithm_key=_NOTHING)
            elif not any(_fits(rule, o) for o in operators):
                raise ValueError("no operator matches")
            for kind in sorted({o.kind for o in under}):
                outputs = [o.output for o in under if o.kind == kind]
                _add(work, rule, f"^({'|'.join(map(re.escape, outputs))});$", qtyping.TFLOperationName(kind))
        except ValueError as error:
            raise _misfit(recipe, f"{error} ({rule})") from error


def _misfit(recipe: Recipe, why: object) -> EdgeError:
    return EdgeError(
        f"recipe {recipe.name!r} does not fit this graph: {why}", "Choose another recipe for the component."
    )


def _fits(rule: Rule, operator: _Operator) -> bool:
    return rule.op in ("", "*", operator.kind) and re.search(rule.scope, operator.names) is not None


_NOTHING = quantizer.AlgorithmName.NO_QUANTIZE


def _add(work: Any, rule: Rule, regex: str, op: qtyping.TFLOperationName) -> None:
    """Raises ValueError for a combination that the quantizer does not have."""
    if rule.weights == "float32":
        work.update_quantization_recipe(regex, op, algorithm_key=_NOTHING)
        return
    if rule.weights == "float16":
        work.add_weight_only_config(
            regex, op, num_bits=16, algorithm_key=quantizer.AlgorithmName.FLOAT_CASTING
        )
        return
    bits, method = _BITS[rule.weights], _METHODS[rule.method]
    grain = qtyping.QuantGranularity.CHANNELWISE
    if rule.granularity == "tensor":
        grain = qtyping.QuantGranularity.TENSORWISE
    elif rule.granularity != "channel":
        grain = qtyping.QuantGranularity(rule.granularity.upper().replace("BLOCK_", "BLOCKWISE_"))
    if rule.activations == "int8":
        work.add_static_config(
            regex,
            op,
            activation_num_bits=8,
            weight_num_bits=bits,
            weight_granularity=grain,
            algorithm_key=method,
        )
    else:
        work.add_dynamic_config(regex, op, num_bits=bits, granularity=grain, algorithm_key=method)


def _calibrated(work: Any, fp32_path: Path, recipe: Recipe, calibration: Calibration | None) -> Any:
    """What the quantizer wants to know about each activation: its range, for GPTQ its second moments.

    `Quantizer.calibrate` smooths ranges with 0.95: the first sample would decide nearly alone, and later ones
    be clipped. Ranges here cover all samples.
    """
    if any(rule.method == "gptq" for rule in recipe.rules):
        return work.calibrate(calibration, num_threads=_THREADS)
    rules = recipe_manager.RecipeManager()
    rules.load_quantization_recipe(work.get_quantization_recipe())
    found = calibrator.Calibrator(
        str(fp32_path), num_threads=_THREADS, qsv_update_func=qsv_utils.min_max_update
    )
    found.calibrate(calibration, rules)
    return _shared(found.get_model_qsvs(), fp32_path)


def _shared(ranges: dict[str, Any], path: Path) -> dict[str, Any]:
    """`ranges` with each activation's the same in all signatures.

    XNNPACK's weight cache packs a static layer's weights together with the scales and zero points around it,
    and finds them again by the weights alone: signatures that share weights but not ranges would get those of
    the first (measured: 26 dB became 8 dB).
    """
    graphs = tflite_file.read(path).subgraphs
    merged = dict(ranges)
    for same in zip(*(_tensors_in_order(graph) for graph in graphs), strict=True):
        known = [ranges[name] for name in same if ranges.get(name)]
        if known:
            whole = {
                "min": np.minimum.reduce([r["min"] for r in known]),
                "max": np.maximum.reduce([r["max"] for r in known]),
            }
            merged |= {name: whole for name in same if ranges.get(name)}
    return merged


def _tensors_in_order(graph: Subgraph) -> list[str]:
    """Names of the activations; graphs of one module for several shapes list the same ones in the same
    order."""
    made = [index for op in graph.operators for index in op.outputs]
    return [graph.tensors[index].name for index in (*graph.inputs, *made)]


_THREADS = 2

# Bits of the types that weights and their scales can have. int32 is there for the biases of static recipes.
_WIDTHS = {
    schema.TensorType.FLOAT32: 32,
    schema.TensorType.FLOAT16: 16,
    schema.TensorType.INT8: 8,
    schema.TensorType.INT4: 4,
}


def _weights(model: schema.Model) -> Iterable[tuple[int, int]]:
    """(count, bits) of each constant buffer of weights, scales or offsets; only weights count numbers."""
    done: set[int] = set()
    for graph in (model.Subgraphs(i) for i in range(model.SubgraphsLength())):
        tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
        scales = {_block_scales(t) for t in tensors}
        for index, tensor in enumerate(tensors):
            width, quantization = _WIDTHS.get(tensor.Type()), tensor.Quantization()
            is_bias = tensor.Type() == schema.TensorType.INT32 and quantization and quantization.ScaleLength()
            width = 32 if is_bias else width
            if width is None or not _is_constant(model, tensor) or tensor.Buffer() in done:
                continue
            done.add(tensor.Buffer())
            count = int(np.prod([tensor.Shape(i) for i in range(tensor.ShapeLength())]))
            own_scales = quantization.ScaleLength() if quantization else 0
            counts = index not in scales and OFFSETS not in (tensor.Name() or b"")
            yield (count if counts else 0), count * width + 32 * own_scales


def _is_constant(model: schema.Model, tensor: schema.Tensor) -> bool:
    buffer = model.Buffers(tensor.Buffer())
    return bool(buffer.DataLength() or buffer.Size())


def _block_scales(tensor: schema.Tensor) -> int:
    """The tensor with the scales of a block-wise quantised one; -1 for any other."""
    quantization = tensor.Quantization()
    if not quantization or quantization.DetailsType() != schema.QuantizationDetails.BlockwiseQuantization:
        return -1
    details, table = schema.BlockwiseQuantization(), quantization.Details()
    details.Init(table.Bytes, table.Pos)
    return int(details.Scales())
