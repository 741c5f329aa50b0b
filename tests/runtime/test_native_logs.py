"""The native runtime's lines stay off the terminal, and nobody else's do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rpi_runtime.native_logs import foreign_lines, quiet

ROOT = Path(__file__).resolve().parents[2]
LITERT_LINE = b"INFO: [cpu_registry.cc:75] XNNPACK CPU accelerator registered.\n"
LOAD = """
import sys
from pathlib import Path
from rpi_runtime.backends.select import open_graph
graph = open_graph(Path(sys.argv[1]), backend=sys.argv[2], verbose=sys.argv[3] == "verbose")
runner = graph.runner("route")
image = __import__("numpy").zeros(runner.signature.inputs[0].shape, "float32")
runner.run({"images": image}); runner.run({"images": image})
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, capture_output=True, check=False
    )


@pytest.mark.parametrize("backend", ["compiled", "interpreter"])
def test_a_process_that_loads_and_runs_a_graph_prints_nothing_from_start_to_exit(
    nano_bundle: Path, backend: str
) -> None:
    done = run(LOAD, nano_bundle / "vrc.tflite", backend, "quiet")
    assert (done.returncode, done.stderr) == (0, b"")


def test_verbose_shows_what_the_runtime_says(nano_bundle: Path) -> None:
    done = run(LOAD, nano_bundle / "vrc.tflite", "compiled", "verbose")
    assert b"XNNPACK" in done.stderr


def test_a_failed_load_shows_its_errors_and_with_verbose_everything(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"\x1c\0\0\0TFL3" + bytes(100))
    done = run(LOAD, broken, "compiled", "quiet")
    assert done.returncode != 0
    assert b"BundleError" in done.stderr
    assert b"INFO:" not in done.stderr
    assert b"[environment.cc" in run(LOAD, broken, "compiled", "verbose").stderr


def test_what_python_writes_to_its_very_end_comes_out(nano_bundle: Path) -> None:
    code = LOAD + (
        "import atexit; atexit.register(lambda: print('at exit', file=sys.stderr))\n"
        "class Last:\n"
        "    def __del__(self, write=__import__('os').write): write(2, b'finalised\\n')\n"
        "last = Last()\n"
    )
    done = run(code, nano_bundle / "vrc.tflite", "compiled", "quiet")
    assert done.stderr == b"at exit\nfinalised\n"


def test_lines_of_others_are_passed_on_in_order() -> None:
    code = """
import os, sys, threading
from rpi_runtime.native_logs import quiet
def other():
    os.write(2, b"thread: WARNING disk is nearly full\\n")
    print("python: INFO: hello", file=sys.stderr)
with quiet():
    os.write(2, b"INFO: [cpu_registry.cc:75] XNNPACK CPU accelerator registered.\\n")
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    os.write(2, "└ continues nothing of the runtime\\n".encode())
    os.write(2, b"no end of line")
print(" after")
"""
    done = run(code)
    assert done.stderr.decode().splitlines() == [
        "thread: WARNING disk is nearly full",
        "python: INFO: hello",
        "└ continues nothing of the runtime",
        "no end of line",
    ]


def test_a_block_that_raises_shows_the_errors(capfd: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        with quiet():
            os.write(2, LITERT_LINE)
            os.write(2, b"ERROR: Node number 390 failed to prepare.\n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert capfd.readouterr().err == "ERROR: Node number 390 failed to prepare.\n"


def test_blocks_may_nest_and_stderr_is_the_same_afterwards() -> None:
    before = os.fstat(2)
    with quiet(), quiet():
        assert os.fstat(2).st_ino != before.st_ino
    assert os.fstat(2).st_ino == before.st_ino


@pytest.mark.parametrize(
    "line",
    [
        "WARNING: [npu_registry.cc:34] NPU accelerator could not be loaded",
        "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
        "INFO: Failed to load OpenCL library with dlopen: libOpenCL.so: cannot open shared object file",
        "WARNING: Logging before InitGoogle() is written to STDERR",
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1795355361.590081    6160 flatbuffer_export.cc:4410] Estimated count",
    ],
)
def test_the_runtimes_own_lines_are_known(line: str) -> None:
    assert foreign_lines(line.encode() + b"\n") == b""


@pytest.mark.parametrize(
    "line",
    [
        "WARNING:root:from logging",
        "INFO: my own program",
        "ERROR: tflite/delegates/xnnpack/weight_cache.cc:474: could not open file",  # worth knowing
        "Traceback (most recent call last):",
    ],
)
def test_lines_that_may_be_anybodys_are_kept(line: str) -> None:
    assert foreign_lines(line.encode() + b"\n") == line.encode() + b"\n"


def test_stdout_is_kept_quiet_only_where_it_is_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    for also_stdout in (False, True):
        with quiet(also_stdout=also_stdout):
            print("an answer", flush=True)
            os.write(1, b"INFO: Failed to load OpenCL library with dlopen: libOpenCL.so\n")
            print("its end")
    out = capfd.readouterr().out.splitlines()
    native = "INFO: Failed to load OpenCL library with dlopen: libOpenCL.so"
    assert out == ["an answer", native, "its end", "an answer", "its end"]
