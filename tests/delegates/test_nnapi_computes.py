"""Graphs for NNAPI compute what TFLite's own kernels do, through TFLite's delegate and a device that follows
NNAPI's specification.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from delegates.targets import DEFAULT_NNAPI_LEVEL
from rpi_runtime import tflite_file
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import ResourceError
from rpi_runtime.manifest import VISION_BASE, VRC
from tests.conftest import script
from tests.delegates.graph_file import Single, Value, write

ROOT = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).with_name("nnapi_guest.py")
LEVELS = (30, 31)

Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def delegate() -> Any:
    emulation = script("emulation")
    environment = script("tflite_runtime_env")
    try:
        return script("nnapi_delegate").prepare(environment.make())
    except (emulation.Unavailable, ResourceError) as reason:
        pytest.skip(f"TFLite's NNAPI delegate cannot be had here: {reason}")


@pytest.fixture(scope="module")
def ask(delegate: Any) -> Ask:
    """`ask(level, what, ...)` is what the guest tells."""

    def asked(level: int, what: str, *arguments: object) -> dict[str, Any]:
        environment = {
            **os.environ,
            **delegate.environment("computing", level),
            "PYTHONPATH": str(ROOT),
        }
        command = [str(delegate.python), str(GUEST), what, str(delegate.library), *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    return asked


# Whole graphs


@pytest.mark.emulation
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("component", [VRC, VISION_BASE])
def test_a_graph_computes_whole_on_nnapi(
    ask: Ask, variants_bundle: Path, photo: Path, tmp_path: Path, component: str, level: int
) -> None:
    bundle = Bundle.open(variants_bundle)
    held = bundle.manifest.component(component)
    assert held is not None
    made = next(of for of in held.graphs if of.delegate == "nnapi:30")
    path = bundle.folder / made.file.path
    file = tflite_file.read(path, details=True)
    inputs = {s.name: tile(photo, s.inputs[0].shape[1]) for s in file.signatures}
    np.savez(tmp_path / "inputs.npz", **inputs)
    assert held.sample is not None
    sample = bundle.folder / held.sample.path
    told = ask(level, "pictures", tmp_path / "inputs.npz", tmp_path / "out.npz", path, sample)

    operators = {s.name: len(file.subgraphs[i].operators) for s, i in zip_signatures(file)}
    assert told["delegated"] == {name: [count, count, 1] for name, count in operators.items()}
    assert told["closeness"] >= made.least_cosine
    out = np.load(tmp_path / "out.npz")
    for signature, subgraph in zip_signatures(file):
        nnapi, reference = (out[f"{signature.name} {by}"] for by in ("nnapi", "reference"))
        assert cosine(nnapi, reference) >= 0.999
        assert np.abs(nnapi - reference).max() <= STEPS * step(file.subgraphs[subgraph])


# Of the last int8 tensor, by which a result may differ. A layer's rounding differs by one step (below), and
# the next layers carry that on; TFLite's optimised kernels and its reference kernels differ by as many.
# Measured: 2 for the VRC, 4 for the branch.
STEPS = 6


def tile(photo: Path, side: int) -> Any:
    return np.asarray(Image.open(photo).resize((side, side)), np.float32)[None] / 255


def zip_signatures(file: tflite_file.TfliteFile) -> Any:
    return zip(file.signatures, file.signature_subgraphs, strict=True)


def step(subgraph: Any) -> float:
    last = [n for n in subgraph.nodes() if n.name == "DEQUANTIZE"][-1]
    scale: float = last.input(0).quantization.scale
    return scale


def cosine(a: Any, b: Any) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


# Single operators


def real(*shape: int, **how: Any) -> Value:
    return Value(shape, **how)


def int8(*shape: int, scale: float = 0.05, zero_point: int = 3, **how: Any) -> Value:
    return Value(shape, "int8", scales=(scale,), zero_point=zero_point, **how)


def ints(*numbers: int) -> Value:
    return Value((len(numbers),), "int32", numbers)


def weights(*shape: int, axis: int | None = None, dtype: str = "int8") -> Value:
    """Constant ones, by channel where there is an `axis`."""
    random = np.random.default_rng(1)
    if dtype == "float32":
        return Value(shape, data=tuple(random.normal(size=int(np.prod(shape)))))
    numbers = tuple(random.integers(-127, 128, int(np.prod(shape))).tolist())
    scale = (0.01,) if axis is None else tuple(0.01 * (1 + c / 4) for c in range(shape[axis]))
    return Value(shape, "int8", numbers, scales=scale, axis=axis or 0)


def bias(over: Value, value: Value) -> Value:
    channels = len(over.scales)
    numbers = tuple(range(-50, 50 * channels, 50)) if channels > 1 else (40,) * over.shape[0]
    scales = tuple(s * value.scales[0] for s in over.scales)
    count = channels if channels > 1 else over.shape[0]
    return Value((count,), "int32", numbers[:count], scales=scales)


def convolution(padding: int, stride: int, dilation: int, activation: int = 0) -> dict[str, int]:
    sizes = {f"{what}{axis}": n for axis in "WH" for what, n in (("stride", stride),)}
    factors = {f"dilation{axis}Factor": dilation for axis in "WH"}
    return {**sizes, **factors, "padding": padding, "fusedActivationFunction": activation}


SAME, VALID = 0, 1
RELU, RELU6 = 1, 3
IMAGE = int8(1, 9, 7, 3)
BY_CHANNEL = weights(5, 3, 3, 3, axis=0)
DEEP = weights(1, 3, 3, 6, axis=3)
ROWS, UNITS = int8(4, 8), weights(6, 8)
CASES = {
    "add": Single(
        "ADD", (real(2, 3, 4), real(4)), (real(2, 3, 4),), options={"fusedActivationFunction": RELU6}
    ),
    "add_int8": Single("ADD", (int8(2, 3), int8(2, 3, scale=0.02, zero_point=-9)), (int8(2, 3, scale=0.1),)),
    "sub": Single("SUB", (real(1, 5, 4), real(5, 1)), (real(1, 5, 4),)),
    "sub_int8": Single("SUB", (int8(2, 3), int8(2, 3, scale=0.02)), (int8(2, 3, scale=0.06),)),
    "mul": Single("MUL", (real(2, 3), real(1)), (real(2, 3),), options={"fusedActivationFunction": RELU}),
    "mul_int8": Single("MUL", (int8(2, 9), int8(2, 9, scale=0.02)), (int8(2, 9, scale=0.06),)),
    "div": Single("DIV", (real(2, 3), real(2, 1)), (real(2, 3),)),
    "maximum": Single("MAXIMUM", (real(2, 3), real(3)), (real(2, 3),)),
    "maximum_int8": Single("MAXIMUM", (int8(2, 3), int8(2, 3)), (int8(2, 3),)),
    "abs": Single("ABS", (real(2, 3),), (real(2, 3),)),
    "rsqrt": Single("RSQRT", (real(2, 3),), (real(2, 3),)),
    "tanh": Single("TANH", (real(2, 3),), (real(2, 3),)),
    "tanh_int8": Single("TANH", (int8(2, 9),), (int8(2, 9, scale=1 / 128, zero_point=0),)),
    "softmax": Single("SOFTMAX", (real(3, 9),), (real(3, 9),), options={"beta": 1.0}),
    "softmax_int8": Single(
        "SOFTMAX", (int8(3, 9),), (int8(3, 9, scale=1 / 256, zero_point=-128),), options={"beta": 1.0}
    ),
    "mean": Single("MEAN", (real(2, 3, 4), ints(1)), (real(2, 1, 4),), options={"keepDims": True}),
    "mean_int8": Single("MEAN", (int8(1, 5, 4, 3), ints(1, 2)), (int8(1, 3),)),
    # The delegate has the mean in the input's steps first, so a finer output would be no better.
    "mean_int8_rescaled": Single(
        "MEAN", (int8(1, 5, 4, 3), ints(1, 2)), (int8(1, 3, scale=0.06, zero_point=8),)
    ),
    "reduce_max": Single("REDUCE_MAX", (real(2, 3, 4), ints(-1)), (real(2, 3),)),
    "reduce_max_int8": Single("REDUCE_MAX", (int8(2, 3, 4), ints(1)), (int8(2, 4),)),
    "reshape": Single("RESHAPE", (int8(2, 6), ints(3, 4)), (int8(3, 4),)),
    "transpose": Single("TRANSPOSE", (int8(2, 3, 4), ints(2, 0, 1)), (int8(4, 2, 3),)),
    "slice": Single("SLICE", (int8(4, 5, 6), ints(1, 0, 2), ints(2, -1, 3)), (int8(2, 5, 3),)),
    "concatenation": Single("CONCATENATION", (real(2, 3), real(2, 4)), (real(2, 7),), options={"axis": 1}),
    "concatenation_int8": Single(
        "CONCATENATION", (int8(2, 3), int8(1, 3)), (int8(3, 3),), options={"axis": 0}
    ),
    "pad": Single(
        "PAD",
        (int8(1, 2, 3), Value((3, 2), "int32", (0, 0, 1, 2, 0, 1))),
        (int8(1, 5, 4),),
    ),
    "quantize": Single("QUANTIZE", (real(4, 9),), (int8(4, 9),)),
    "dequantize": Single("DEQUANTIZE", (int8(4, 9),), (real(4, 9),)),
    "conv": Single(
        "CONV_2D",
        (real(1, 9, 7, 3), weights(5, 3, 3, 3, dtype="float32"), weights(5, dtype="float32")),
        (real(1, 5, 4, 5),),
        options=convolution(SAME, 2, 1, RELU),
    ),
    "conv_same": Single(
        "CONV_2D",
        (IMAGE, BY_CHANNEL, bias(BY_CHANNEL, IMAGE)),
        (int8(1, 5, 4, 5, scale=0.3),),
        options=convolution(SAME, 2, 1, RELU6),
    ),
    "conv_valid": Single(
        "CONV_2D",
        (IMAGE, BY_CHANNEL, bias(BY_CHANNEL, IMAGE)),
        (int8(1, 4, 3, 5, scale=0.3),),
        options=convolution(VALID, 2, 1),
    ),
    "conv_dilated": Single(
        "CONV_2D",
        (IMAGE, BY_CHANNEL, bias(BY_CHANNEL, IMAGE)),
        (int8(1, 9, 7, 5, scale=0.3),),
        options=convolution(SAME, 1, 2),
    ),
    "depthwise": Single(
        "DEPTHWISE_CONV_2D",
        (int8(1, 9, 7, 6), DEEP, bias(DEEP, IMAGE)),
        (int8(1, 5, 4, 6, scale=0.2),),
        options=convolution(SAME, 2, 1, RELU),
    ),
    "depthwise_twofold": Single(
        "DEPTHWISE_CONV_2D",
        (IMAGE, DEEP, bias(DEEP, IMAGE)),
        (int8(1, 7, 5, 6, scale=0.2),),
        options={**convolution(VALID, 1, 1), "depthMultiplier": 2},
    ),
    "connected": Single("FULLY_CONNECTED", (ROWS, UNITS, bias(UNITS, ROWS)), (int8(4, 6, scale=0.3),)),
    "connected_float": Single(
        "FULLY_CONNECTED",
        (real(4, 8), weights(6, 8, dtype="float32"), weights(6, dtype="float32")),
        (real(4, 6),),
    ),
    # Attention's: the weights are made as the graph runs, with a zero point, and there is no bias.
    "connected_moving": Single(
        "FULLY_CONNECTED", (ROWS, int8(6, 8, scale=0.02), None), (int8(4, 6, scale=0.2),)
    ),
}
# What the device has not, or NNAPI's specification does not allow: it stays on the CPU.
WITHOUT = {
    "logistic": Single("LOGISTIC", (real(2, 3),), (real(2, 3),)),
    "connected_by_channel": Single(
        "FULLY_CONNECTED",
        (ROWS, weights(6, 8, axis=0), bias(weights(6, 8, axis=0), ROWS)),
        (int8(4, 6, scale=0.3),),
    ),
    "mul_too_fine": Single("MUL", (int8(2, 9), int8(2, 9)), (int8(2, 9, scale=0.0025),)),
    "tanh_elsewhere": Single("TANH", (int8(2, 9),), (int8(2, 9, scale=1 / 64, zero_point=0),)),
}


@pytest.fixture(scope="module")
def told(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("operators")
    paths = []
    for name, case in {**CASES, **WITHOUT}.items():
        paths.append(folder / f"{name}.tflite")
        paths[-1].write_bytes(write([case]))
    return ask(DEFAULT_NNAPI_LEVEL, "operators", *paths)


@pytest.mark.emulation
@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_what_the_cpu_does(told: dict[str, Any], name: str) -> None:
    found = told[name]
    assert found["taken"]
    nnapi, reference = np.array(found["nnapi"]), np.array(found["reference"])
    assert len(np.unique(reference)) > 2
    if CASES[name].outputs[0].dtype == "int8":
        assert np.abs(nnapi - reference).max() <= 1  # a step: TFLite multiplies by integers
    else:
        np.testing.assert_allclose(nnapi, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.emulation
@pytest.mark.parametrize("name", WITHOUT)
def test_what_the_specification_does_not_allow_is_not_taken(told: dict[str, Any], name: str) -> None:
    assert not told[name]["taken"]
    assert told[name]["nnapi"] == told[name]["reference"]


# Of the device itself


class OperandType(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int32),
        ("count", ctypes.c_uint32),
        ("dimensions", ctypes.POINTER(ctypes.c_uint32)),
        ("scale", ctypes.c_float),
        ("zero_point", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Nnapi:
    """Calls of the library by their names without the prefix."""

    library: Any

    def __call__(self, name: str, *arguments: Any) -> int:
        code: int = getattr(self.library, f"ANeuralNetworks{name}")(*arguments)
        return code

    def compiled(self, operation: int, operand: OperandType) -> int:
        """What becomes of compiling `operation` from one operand to its like."""
        model, compilation = ctypes.c_void_p(), ctypes.c_void_p()
        assert self("Model_create", ctypes.byref(model)) == 0
        for _ in range(2):
            assert self("Model_addOperand", model, ctypes.byref(operand)) == 0
        first, second = (ctypes.c_uint32 * 1)(0), (ctypes.c_uint32 * 1)(1)
        assert self("Model_addOperation", model, operation, 1, first, 1, second) == 0
        assert self("Model_identifyInputsAndOutputs", model, 1, first, 1, second) == 0
        assert self("Compilation_create", model, ctypes.byref(compilation)) == 0
        return self("Compilation_finish", compilation)


@pytest.mark.emulation
def test_a_model_that_the_device_cannot_run_does_not_compile(
    delegate: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = delegate.environment("computing", 30)["LD_LIBRARY_PATH"]
    nnapi = Nnapi(ctypes.CDLL(f"{folder}/libneuralnetworks.so"))
    floats = OperandType(3, 1, (ctypes.c_uint32 * 1)(4), 0, 0)
    absolute, exponential, bad_data = 38, 49, 4
    assert nnapi.compiled(absolute, floats) == 0
    assert capfd.readouterr().err == ""
    assert nnapi.compiled(exponential, floats) == bad_data
    assert capfd.readouterr().err == "NNAPI driver: operation 49 is not there\n"
    half = OperandType(8, 1, (ctypes.c_uint32 * 1)(4), 0, 0)
    assert nnapi.compiled(absolute, half) == bad_data
    assert "ABS: its output has type 8" in capfd.readouterr().err
