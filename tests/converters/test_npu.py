"""Compiling for an NPU ahead of time. OpenVINO's plugin is real and compiles for the CPU; the SDKs of the
others cannot be had here, so of them the ways to fail are seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from converters import npu
from converters.cache_order import METADATA
from converters.export import ExportOptions, export_component
from converters.npu import DISPATCH, Run, Share, compile_for
from delegates.npu import VENDORS
from hypervl.checkpoint import Checkpoint
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import CheckFailed, EdgeError, ResourceError, UsageError
from rpi_runtime.manifest import DECODER
from rpi_runtime.tflite_file import read
from tests.conftest import script
from tests.delegates.graph_file import Single, Value, write
from tests.delegates.npu_cases import IMAGE

ON_CPU = {"intel_openvino_graph_backends": "cpu"}
# Opens a graph twice, for the CPU and compiled, runs every signature on the same numbers, and prints how far
# apart the outputs are: signal-to-noise in dB.
RUN_BOTH = """
import ctypes, json, sys
from pathlib import Path
import numpy as np, openvino
library = next((Path(openvino.__file__).parent / "libs").glob("libopenvino.so.*"))
ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.options import Options
def opened(path, hardware):
    return CompiledModel.from_file(path, options=Options(hardware_accelerators=hardware))
plain = opened(sys.argv[1], HardwareAccelerator.CPU)
compiled = opened(sys.argv[2], HardwareAccelerator.NPU)
noise = {}
for index, (name, signature) in enumerate(plain.get_signature_list().items()):
    rng, feeds = np.random.default_rng(0), {}
    for key, tensor in plain.get_input_tensor_details(name).items():
        values = rng.random(tuple(tensor["shape"])) * 2 - 1
        feeds[key] = np.ascontiguousarray(values.astype(tensor["dtype"]))
    results = []
    for model in (plain, compiled):
        names = model.get_signature_list()[name]
        inputs, outputs = model.create_input_buffers(index), model.create_output_buffers(index)
        for key, buffer in zip(names["inputs"], inputs):
            buffer.write(feeds[key])
        model.run_by_index(index, inputs, outputs)
        details = model.get_output_tensor_details(name)
        read = {}
        for key, buffer in zip(names["outputs"], outputs):
            read[key] = buffer.read(int(np.prod(details[key]["shape"])), np.float32).astype(np.float64)
        results.append(read)
    for key, exact in results[0].items():
        error = results[1][key] - exact
        noise[f"{name}.{key}"] = 10 * np.log10((exact @ exact) / max(error @ error, 1e-30))
print(json.dumps(noise))
"""


@pytest.fixture
def one(tmp_path: Path) -> Callable[[str], Path]:
    def made(operator: str) -> Path:
        path = tmp_path / f"{operator.lower()}.tflite"
        path.write_bytes(write([Single(operator, (IMAGE, IMAGE), (IMAGE,))]))
        return path

    return made


@pytest.fixture(scope="module")
def openvino() -> tuple[Path, Path]:
    """A Python that has OpenVINO, and the folder of its libraries."""
    environment = script("openvino_env")
    try:
        python = environment.make()
    except ResourceError as reason:
        pytest.skip(f"OpenVINO cannot be had here: {reason}")
    return python, environment.libraries(python)


def noise(python: Path, source: Path, made: Path) -> dict[str, float]:
    """Signal-to-noise in dB of every output of the compiled graph `made`."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(python), "-c", RUN_BOTH, str(source), str(made)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


# What goes wrong is said


def test_an_unknown_vendor_is_answered_with_the_nearest(one: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'qualcomm'") as caught:
        compile_for(one("ADD"), "qualcom", "SM8750", tmp_path / "out.tflite")
    assert caught.value.exit_code == 2


def test_an_unknown_soc_is_answered_with_the_nearest(one: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown SoC of Qualcomm 'SM8755'\nDid you mean 'SM8750'"):
        compile_for(one("ADD"), "qualcomm", "SM8755", tmp_path / "out.tflite")


def test_a_soc_may_be_spelled_in_either_case() -> None:
    assert npu.target("mediatek", "MT6989") == (VENDORS["mediatek"], "mt6989")
    assert npu.target("google", "tensor_g5")[1] == "Tensor_G5"


@pytest.mark.parametrize("vendor", ["qualcomm", "mediatek", "google", "samsung"])
def test_without_the_sdk_its_package_is_named(vendor: str, one: Any, tmp_path: Path) -> None:
    assert VENDORS[vendor].sdk_module not in sys.modules
    with pytest.raises(ResourceError, match=f"Run: pip install {VENDORS[vendor].sdk}$"):
        compile_for(one("ADD"), vendor, VENDORS[vendor].socs[0], tmp_path / "out.tflite")


def test_an_sdk_whose_download_failed_is_told_from_a_missing_one(
    one: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its package is then installed, and its folder is not there."""
    (tmp_path / "ai_edge_litert_sdk_qualcomm.py").write_text("def path_to_sdk_libs():\n    return None\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ai_edge_litert_sdk_qualcomm", raising=False)
    without = r"without its libraries: .* from softwarecenter\.qualcomm\.com"
    with pytest.raises(ResourceError, match=without) as caught:
        compile_for(one("ADD"), "qualcomm", "SM8750", tmp_path / "out.tflite")
    assert "--no-cache-dir" in caught.value.remedy  # pip keeps the wheel that it built without them
    monkeypatch.delitem(sys.modules, "ai_edge_litert_sdk_qualcomm")


@pytest.mark.parametrize(
    ("vendor", "reason"),
    [
        ("qualcomm", "plugin cannot be loaded: .*libQnnHtp.so: cannot open shared object file"),
        ("mediatek", "plugin cannot compile add.tflite: Failed to load NeuronAdapter shared library"),
        ("openvino", "plugin cannot be loaded: .*libopenvino.*cannot open shared object file"),
        ("google", "plugin cannot compile add.tflite: .*liblitert_plugin_compiler.so"),
        ("samsung", "plugin cannot be loaded: .*undefined symbol: .*flatbuffers13ClassicLocale"),
    ],
)
def test_what_the_real_plugin_lacks_is_told(vendor: str, reason: str, one: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    output = tmp_path / "out.tflite"
    with pytest.raises(ResourceError, match=reason):
        compile_for(one("ADD"), vendor, VENDORS[vendor].socs[0], output, libraries=empty)
    assert not output.exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_wheel_without_plugins_is_told(one: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That for aarch64 has none."""
    monkeypatch.setattr(npu, "_package", lambda: tmp_path)
    with pytest.raises(ResourceError, match="no compiler plugin for MediaTek\nCompile on x86-64 Linux"):
        compile_for(one("ADD"), "mediatek", "mt6989", tmp_path / "out.tflite", libraries=tmp_path)


def test_a_plugin_that_crashes_is_told_by_its_signal(
    one: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npu, "run_plugin", lambda *_: Run(-11, ""))
    with pytest.raises(ResourceError, match=r"crashed on add.tflite \(SIGSEGV\)"):
        compile_for(one("ADD"), "mediatek", "mt6989", tmp_path / "out.tflite", libraries=tmp_path)


def test_the_reason_is_the_last_that_an_error_says() -> None:
    log = "INFO: [a.cc:1] fine\nERROR: [b.cc:2] Exception:\nfrom c.cpp:3:\nno device\n\nINFO: [d.cc:4] bye\n"
    assert npu._reason(f"{log}ERROR: [e.cc:5] ERROR: [f.cc:6]\n") == "no device"
    assert npu._reason("INFO: [a.cc:1] fine") == "it does not say why"


# With OpenVINO


@pytest.mark.emulation
def test_a_decoder_whose_operators_have_an_order_opens(
    openvino: tuple[Path, Path], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """An 8-bit KV cache: the file says which casts wait for what, by numbers that compiling changes."""
    source, made = tmp_path / "decoder.tflite", tmp_path / "out.tflite"
    export_component(DECODER, tiny_checkpoint, ExportOptions((), (8,), (64,), "int8"), source)
    assert METADATA in read(source).metadata
    compile_for(source, "openvino", "LNL", made, libraries=openvino[1], flags=ON_CPU)
    assert METADATA not in read(made).metadata
    assert min(noise(openvino[0], source, made).values()) > 20


@pytest.mark.emulation
def test_our_graphs_compile_whole_and_compute_the_same(
    openvino: tuple[Path, Path], nano_bundle: Path, tmp_path: Path
) -> None:
    """In bfloat16 where the CPU has it. Measured on nano: 30 to 46 dB; the file's own 8-bit weights leave
    26 to 30."""
    python, libraries = openvino
    bundle = Bundle.open(nano_bundle)
    for component in ("vision_base", "vrc", "decoder"):
        source, made = bundle.path(component), tmp_path / f"{component}.tflite"
        compiled = compile_for(source, "openvino", "LNL", made, libraries=libraries, flags=ON_CPU)
        operators = [len(s.operators) for s in read(source).subgraphs]
        assert compiled.subgraphs == tuple(Share(n, n, 1) for n in operators)
        assert compiled.bytes == made.stat().st_size
        assert [[o.name for o in s.operators] for s in read(made).subgraphs[: len(operators)]] == [
            [DISPATCH] for _ in operators
        ]
        assert min(noise(python, source, made).values()) > 20


@pytest.mark.emulation
def test_what_is_not_taken_stays(openvino: tuple[Path, Path], tmp_path: Path) -> None:
    source = tmp_path / "both.tflite"
    source.write_bytes(write([Single("ADD", (IMAGE, IMAGE), (IMAGE,)), Single("NEG", (IMAGE,), (IMAGE,))]))
    made = tmp_path / "out.tflite"
    compiled = compile_for(source, "openvino", "PTL", made, libraries=openvino[1], flags=ON_CPU)
    assert compiled.subgraphs == (Share(1, 1, 1), Share(0, 1, 0))
    assert [o.name for s in read(made).subgraphs[:2] for o in s.operators] == [DISPATCH, "NEG"]


@pytest.mark.emulation
def test_a_graph_of_which_nothing_is_taken_is_told_with_the_reason(
    openvino: tuple[Path, Path], one: Any, tmp_path: Path
) -> None:
    with pytest.raises(CheckFailed, match=r"no operator of neg\.tflite\nMost often: .* no such operation"):
        compile_for(
            one("NEG"), "openvino", "LNL", tmp_path / "out.tflite", libraries=openvino[1], flags=ON_CPU
        )


@pytest.mark.emulation
def test_a_graph_that_is_refused_whole_is_told_with_the_reason(
    openvino: tuple[Path, Path], tmp_path: Path
) -> None:
    source, output = tmp_path / "six.tflite", tmp_path / "out.tflite"
    source.write_bytes(write([Single("RELU", (Value((1,) * 6),), (Value((1,) * 6),))]))
    with pytest.raises(CheckFailed, match="takes no operator of six") as caught:
        compile_for(source, "openvino", "LNL", output, libraries=openvino[1], flags=ON_CPU)
    assert "float32 [1, 1, 1, 1, 1, 1], and the whole graph is refused" in caught.value.remedy


@pytest.mark.emulation
def test_without_the_compiler_of_the_npu_its_library_is_named(
    openvino: tuple[Path, Path], one: Any, tmp_path: Path
) -> None:
    """OpenVINO's package brings the plugin of the NPU, and not its compiler."""
    with pytest.raises(ResourceError, match=r"libopenvino_intel_npu_compiler_loader\.so") as caught:
        compile_for(one("ADD"), "openvino", "LNL", tmp_path / "out.tflite", libraries=openvino[1])
    assert "ai-edge-litert-sdk-intel" in caught.value.remedy


@pytest.mark.emulation
@pytest.mark.weights
def test_sparse_weights_that_would_be_lost_are_refused(
    openvino: tuple[Path, Path], fetch_weights: ModuleType, tmp_path: Path
) -> None:
    try:
        source = fetch_weights.fetch("mediapipe-graphs") / "pose_detection.tflite"
    except EdgeError as error:
        pytest.skip(f"mediapipe-graphs cannot be fetched here: {error.message}")
    output = tmp_path / "out.tflite"
    with pytest.raises(ResourceError, match="wrote a damaged graph of pose_detection"):
        compile_for(source, "openvino", "LNL", output, libraries=openvino[1], flags=ON_CPU)
    assert not output.exists()
