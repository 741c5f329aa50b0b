"""External delegates, with a real one that fails where it is told to: every failure is one message, what runs on
it is what it says itself, and its numbers are the CPU's. With both packages, here and on an emulated Pi 5."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rpi_runtime.backends.external import ExternalDelegate
from rpi_runtime.backends.select import choose, open_graph
from rpi_runtime.errors import DelegateFailed, ResourceError, UsageError
from tests.conftest import script
from tests.delegates.small_graphs import Op, Small, write

ROOT = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).with_name("external_guest.py")
HERE = ("ai-edge-litert", "tflite-runtime")
EMULATED = ("ai-edge-litert on aarch64", "tflite-runtime on aarch64")
RUNTIMES = [*HERE, *(pytest.param(name, marks=pytest.mark.emulation) for name in EMULATED)]


@dataclass(frozen=True)
class Case:
    """A delegate that does not work, and what is said of it."""

    kind: str
    says: str  # of the message; "" for none
    file: str = "libtest_delegate.so"
    options: dict[str, str] = field(default_factory=dict)
    how: str = "check"  # or "open": open the graph and run each signature
    with_graph: bool = False  # of check
    timeout_s: float = 60
    environment: dict[str, str] = field(default_factory=dict)
    slow: bool = False  # where a process takes ten seconds to start


USAGE, RESOURCE, FAILED, NONE = "UsageError", "ResourceError", "DelegateFailed", ""
PREPARED = r"libtest_delegate\.so cannot prepare small\.tflite \(test delegate: told to fail when "
CASES = {
    "it works": Case(NONE, "", with_graph=True),
    # The file
    "no such file": Case(USAGE, r"there is no file .*/absent\.so", "absent.so"),
    "a text": Case(RESOURCE, r"text\.so is not a shared library: it begins with b'hell'", "text.so"),
    "another CPU": Case(
        RESOURCE, r"other_cpu\.so is for riscv64 with 64 bits, and this process runs on \w+ with 64 bits$",
        "other_cpu.so",
    ),
    "cut off": Case(RESOURCE, r"cut\.so is cut off: it has 8000 bytes of at least \d+$", "cut.so"),
    # Loading it
    "a library is missing": Case(
        RESOURCE, r"needs\.so cannot be loaded: libq\.so\.6: cannot open shared object file", "needs.so"
    ),
    "a symbol is missing": Case(
        RESOURCE, r"symbol\.so cannot be loaded: .*undefined symbol: strtoX", "symbol.so", slow=True
    ),
    "not a delegate": Case(
        USAGE, r"no_delegate\.so is not a TFLite delegate: it exports no tflite_plugin_create_delegate$",
        "no_delegate.so", slow=True,
    ),
    "crash at load": Case(
        RESOURCE, r"crashed \(SIGSEGV\) while it was being loaded", environment={"EXTERNAL_DELEGATE_CRASH": "1"}
    ),
    # Making it
    "no device": Case(
        RESOURCE, r"^libtest_delegate\.so cannot be used here: test delegate: no device found$",
        options={"fail": "create"},
    ),
    "unknown option": Case(
        RESOURCE, "test delegate: unknown option speed", options={"speed": "9"}, slow=True
    ),
    "crash at create": Case(
        RESOURCE, r"crashed \(SIGSEGV\) while it was being made", options={"crash": "create"}
    ),
    "exit at create": Case(
        RESOURCE, "ended its process with status 3 while it was being made: .*: this device is not licensed$",
        options={"exit": "create"}, slow=True,
    ),
    "hang at create": Case(
        RESOURCE, r"did not come back within 8 s, while it was being made$", options={"hang": "create"},
        timeout_s=8, slow=True,
    ),
    "crash at destroy": Case(
        RESOURCE, r"crashed \(SIGSEGV\) while it was being destroyed", options={"crash": "destroy"}, slow=True
    ),
    # With a graph
    "prepare": Case(FAILED, PREPARED + r"it is prepared\)$", options={"fail": "prepare"}, how="open"),
    "prepare a kernel": Case(
        FAILED, PREPARED + r"its kernel is prepared; Node number 5 \(TestDelegate\) failed to prepare\.\)$",
        options={"fail": "kernel"}, how="open",
    ),
    "invoke": Case(
        FAILED, r"failed in 'one' \(.*fail at invocation 1; Node number 5 \(TestDelegate\) failed to invoke\.\)$",
        options={"fail": "invoke"}, how="open",
    ),
    "the third invoke": Case(
        FAILED, r"failed in 'two' \(.*told to fail at invocation 3; ", how="open",
        options={"fail": "invoke", "invoke_after": "3"},
    ),
    "nodes that it cannot run": Case(
        FAILED, r"failed in 'one' \(.*claimed nodes that it cannot run; ", options={"nodes": "0+3"}, how="open"
    ),
    "tried: prepare": Case(
        FAILED, PREPARED + r"it is prepared\)$", options={"fail": "prepare"}, with_graph=True, slow=True
    ),
    "tried: crash at prepare": Case(
        RESOURCE, r"crashed \(SIGSEGV\) while it prepared small\.tflite", options={"crash": "prepare"},
        with_graph=True, slow=True,
    ),
    "tried: crash at invoke": Case(
        RESOURCE, r"crashed \(SIGSEGV\) while it ran 'two' of small\.tflite", with_graph=True,
        options={"crash": "invoke", "invoke_after": "3"},
    ),
    "tried: hang at invoke": Case(
        RESOURCE, r"did not come back within 8 s, while it ran 'one' of small\.tflite", with_graph=True,
        options={"hang": "invoke"}, timeout_s=8, slow=True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two signatures, of which ABS and SQRT divide what the delegate computes."""
    shape, row = (2, 3, 4), np.arange(1, 5, dtype=np.float32)
    one = Small(
        "one",
        dict.fromkeys(["x", "y", "a", "b", "c", "d", "z"], shape),
        (
            Op("ADD", ("x", "y"), "a"),
            Op("MUL", ("a", "row"), "b", "RELU6"),
            Op("ABS", ("b",), "c"),
            Op("ADD", ("c", "x"), "d", "RELU"),
            Op("SQRT", ("d",), "z"),
        ),
        ("x", "y"),
        {"row": row},
    )
    two = Small(
        "two",
        {"x": shape, "y": (3, 1), "a": shape, "z": shape},
        (Op("ABS", ("x",), "a"), Op("MUL", ("a", "y"), "z")),
        ("x", "y"),
    )
    return write(tmp_path_factory.mktemp("graphs") / "small.tflite", [one, two])


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Of an architecture the folder with the delegate, and with what may lie in its place."""

    def made(arch: str) -> Path:
        emulation = script("emulation")
        script("nnapi_delegate")
        try:
            good: bytes = script("external_delegate").prepare(arch).read_bytes()
        except emulation.Unavailable as reason:
            pytest.skip(str(reason))
        files = {
            "libtest_delegate.so": good,
            "text.so": b"hello",
            "other_cpu.so": good[:18] + (243).to_bytes(2, "little") + good[20:],
            "cut.so": good[:8000],
            "needs.so": good.replace(b"libc.so.6\0", b"libq.so.6\0"),
            "symbol.so": good.replace(b"strtol\0", b"strtoX\0"),
            "no_delegate.so": good.replace(b"tflite_plugin_create", b"tflite_plugin_create"[::-1]),
        }
        folder = tmp_path_factory.mktemp(arch)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder

    return made


@dataclass(frozen=True)
class Guest:
    """A Python with a runtime."""

    name: str
    folder: Path  # of libraries for it
    run: Callable[[list[str]], subprocess.CompletedProcess[str]]
    launcher: str = ""  # what its children are started with, where that is not the Python that runs

    @property
    def is_emulated(self) -> bool:
        return bool(self.launcher)

    def ask(self, scratch: Path, **request: Any) -> dict[str, Any]:
        question = scratch / "request.json"
        answer = scratch / "answer.json"
        places = {"answer": str(answer), "log": str(scratch / "log"), "python": self.launcher}
        question.write_text(json.dumps({**request, **places}))
        done = self.run([str(GUEST), str(question)])
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(answer.read_text())
        return told


@pytest.fixture(scope="module", params=RUNTIMES)
def guest(
    request: pytest.FixtureRequest, libraries: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Guest:
    name: str = request.param
    if name in HERE:
        try:
            python = sys.executable if name == HERE[0] else str(script("tflite_runtime_env").make())
        except ResourceError as error:
            pytest.skip(error.message)

        def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            command = [python, *arguments]
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

        return Guest(name, libraries("host"), run)
    emulation = script("emulation")
    try:
        emulator = emulation.prepare()
        if name == EMULATED[1]:
            wheels = emulation.wheels("site-packages-arm64-tflite-runtime", emulation.OLD_WHEELS)
            emulator = replace(emulator, site_packages=wheels)
    except emulation.Unavailable as reason:
        pytest.skip(str(reason))
    launcher = emulator.launcher(tmp_path_factory.mktemp("launcher") / "python")
    return Guest(name, libraries("arm64"), lambda a: emulator.python(a, emulation.PI5), str(launcher))


@pytest.fixture(scope="module")
def told(guest: Guest, small: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What becomes of every case, in one process: the one that outlives them all."""
    cases = {
        name: {**vars(case), "file": str(guest.folder / case.file)}
        for name, case in CASES.items()
        if not (guest.is_emulated and case.slow)
    }
    library = str(guest.folder / "libtest_delegate.so")
    placed = {
        name: {"library": library, "options": options, "graph": str(small), "run": True}
        for name, options in {"as it is": {}, "wrong": {"wrong": "1"}, "dynamic": {"dynamic": "1"}}.items()
    }
    return guest.ask(tmp_path_factory.mktemp("told"), cases=cases, placed=placed, graph=str(small))


@pytest.mark.parametrize("name", CASES)
def test_a_failure_is_one_message(told: dict[str, Any], name: str) -> None:
    case = CASES[name]
    if name not in told["cases"]:
        pytest.skip("it would take too long, emulated")
    found = told["cases"][name]
    if case.kind == NONE:
        assert found == []
        return
    kind, message, remedy = found
    assert (kind, bool(remedy)) == (case.kind, True)
    assert re.search(case.says, message), message
    assert "\n" not in message
