"""External delegates, with a real one that fails where it is told to: every failure is one message, what runs
on it is what it says itself, and its numbers are the CPU's. With both packages, here and on an emulated Pi 5.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rpi_runtime.backends.base import BackendChoice
from rpi_runtime.backends.external import ExternalDelegate, check, load
from rpi_runtime.backends.interpreter import InterpreterGraph
from rpi_runtime.backends.select import choose, open_graph
from rpi_runtime.errors import DelegateFailed, ResourceError, UsageError
from tests.conftest import script
from tests.delegates.graph_file import Graph, Value, Wired, write

ROOT = Path(__file__).resolve().parents[2]
GUEST = Path(__file__).with_name("external_guest.py")
RELU, RELU6 = 1, 3  # of ActivationFunctionType
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
        RESOURCE, r"crashed \(SIGSEGV\) while it was being loaded",
        environment={"EXTERNAL_DELEGATE_CRASH": "1"},
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
        RESOURCE, r"did not come back within 3 s, while it was being made$", options={"hang": "create"},
        timeout_s=3, slow=True,
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
        FAILED, r"failed in 'one' \(.* at invocation 1; Node number 5 \(TestDelegate\) failed to invoke\.\)$",
        options={"fail": "invoke"}, how="open",
    ),
    "the third invoke": Case(
        FAILED, r"failed in 'two' \(.*told to fail at invocation 3; ", how="open",
        options={"fail": "invoke", "invoke_after": "3"},
    ),
    "nodes that it cannot run": Case(
        FAILED, r"failed in 'one' \(.*claimed nodes that it cannot run; ", how="open",
        options={"nodes": "0+3"},
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
        RESOURCE, r"did not come back within 3 s, while it ran 'one' of small\.tflite", with_graph=True,
        options={"hang": "invoke"}, timeout_s=3, slow=True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two signatures, of which ABS and SQRT divide what the delegate computes."""
    cube, row = Value((2, 3, 4)), Value((4,), data=[1, 2, 3, 4])
    one = Graph(
        {**dict.fromkeys("xyabcdz", cube), "row": row},
        (
            Wired("ADD", ("x", "y"), ("a",)),
            Wired("MUL", ("a", "row"), ("b",), options={"fused_activation_function": RELU6}),
            Wired("ABS", ("b",), ("c",)),
            Wired("ADD", ("c", "x"), ("d",), options={"fused_activation_function": RELU}),
            Wired("SQRT", ("d",), ("z",)),
        ),
        "one",
    )
    two = Graph(
        {"x": cube, "y": Value((3, 1)), "a": cube, "z": cube},
        (Wired("ABS", ("x",), ("a",)), Wired("MUL", ("a", "y"), ("z",))),
        "two",
    )
    path = tmp_path_factory.mktemp("graphs") / "small.tflite"
    path.write_bytes(write([one, two]))
    return path


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


class TestWhatRunsWhere:
    def test_the_graph_tells_what_the_delegate_got(self, told: dict[str, Any]) -> None:
        for found in told["placed"].values():
            assert found["delegated"] == {"one": [[0, 1, 3], 5, 2], "two": [[1], 2, 1]}
            assert found["delegated_at_the_end"] == found["delegated"]
            assert by_signature(found["log"]) == {0: [[0, 1], [3]], 1: [[1]]}
            # The runtime itself tells of its first subgraph.
            assert found["names"].count("DELEGATE") == 2
            assert found["reason"] == "CompiledModel takes no external delegate"

    def test_its_numbers_are_those_of_the_cpu(self, told: dict[str, Any]) -> None:
        for name in ("as it is", "dynamic"):
            assert max(told["placed"][name]["differences"].values()) <= 1e-6
        assert min(told["placed"]["wrong"]["differences"].values()) > 0.5

    def test_it_ran_and_was_given_back(self, told: dict[str, Any]) -> None:
        for found in told["placed"].values():
            assert found["log"][-1] == {"event": "destroyed", "invocations": 3}

    def test_xnnpack_takes_what_remains_in_ai_edge_litert_only(self, told: dict[str, Any]) -> None:
        """tflite-runtime applies it only to an Interpreter whose first subgraph is allocated as a whole."""
        for found in told["placed"].values():
            others = {"ai-edge-litert": 2, "tflite-runtime": 0}[found["package"]]
            assert found["names_at_the_end"].count("DELEGATE") == 2 + others


def by_signature(log: list[dict[str, Any]]) -> dict[int, list[list[int]]]:
    """Of each subgraph the delegate's partitions, as it was given them."""
    found: dict[int, list[list[int]]] = {}
    for event in log:
        if event["event"] == "partition":
            found.setdefault(event["subgraph"], []).append(event["nodes"])
    return found


def test_graphs_of_a_bundle_run_on_it(guest: Guest, nano_bundle: Path, tmp_path: Path) -> None:
    components = ("vrc",) if guest.is_emulated else ("vrc", "vision_base", "decoder")
    asked = {
        name: {
            "library": str(guest.folder / "libtest_delegate.so"),
            "options": {},
            "graph": str(nano_bundle / f"{name}.tflite"),
            "run": True,
        }
        for name in components
    }
    for name, found in guest.ask(tmp_path, placed=asked)["placed"].items():
        partitions = by_signature(found["log"])
        for signature, (nodes, total, count) in found["delegated"].items():
            subgraph = found["subgraphs"][signature]
            assert 0 < len(nodes) < total, name
            assert sorted(n for partition in partitions[subgraph] for n in partition) == nodes
            assert len(partitions[subgraph]) == count
        for signature, difference in found["differences"].items():
            assert difference <= 1e-3 * found["largest"][signature], (name, signature)
        assert found["log"][-1]["invocations"] == sum(map(len, partitions.values()))


def test_whatever_is_claimed_is_what_the_graph_tells(guest: Guest, nano_bundle: Path, tmp_path: Path) -> None:
    """The runtime joins what may run together: three claims of the decoder, and one of a single signature."""
    if guest.is_emulated:
        pytest.skip("it would take too long, emulated")
    random = np.random.default_rng(0)
    claims: dict[str, dict[str, str]] = {
        str(share): {"nodes": "+".join(str(n) for n in range(456) if random.random() < share)}
        for share in (0.1, 0.5, 0.9)
    }
    claims["one"] = {"nodes": "3+4+5+99", "subgraph": "2"}
    asked = {
        name: {
            "library": str(guest.folder / "libtest_delegate.so"),
            "options": options,
            "graph": str(nano_bundle / "decoder.tflite"),
            "run": False,
        }
        for name, options in claims.items()
    }
    for name, found in guest.ask(tmp_path, placed=asked)["placed"].items():
        partitions = by_signature(found["log"])
        prepared = {e["subgraph"]: e for e in found["log"] if e["event"] == "prepare"}
        assert sorted(found["subgraphs"].values()) == sorted(prepared)
        for signature, (nodes, total, count) in found["delegated"].items():
            subgraph = found["subgraphs"][signature]
            assert nodes == prepared[subgraph]["selected"]
            assert total == prepared[subgraph]["plan"]
            assert count == len(partitions.get(subgraph, []))
            assert (count > 0) == (name != "one" or subgraph == 2)
        assert found["delegated_at_the_end"] == found["delegated"], name


class TestInThisProcess:
    """With ai-edge-litert."""

    @pytest.fixture
    def library(self, libraries: Callable[[str], Path]) -> Path:
        return libraries("host") / "libtest_delegate.so"

    def run(self, graph: Any, name: str = "one") -> np.ndarray[Any, Any]:
        signature = graph.signatures[name]
        inputs = {t.name: np.full(t.shape, 0.5, np.float32) for t in signature.inputs}
        found: np.ndarray[Any, Any] = graph.runner(name).run(inputs)["z"]
        return found

    def test_after_a_failure_the_delegate_is_given_back_and_the_cpu_goes_on(
        self, library: Path, small: Path, tmp_path: Path
    ) -> None:
        log = tmp_path / "log"
        delegate = ExternalDelegate(library, (("fail", "invoke"), ("invoke_after", "3"), ("log", str(log))))
        graph = open_graph(small, delegate=delegate)
        first = self.run(graph)
        with pytest.raises(DelegateFailed, match="invocation 3") as caught:
            self.run(graph)
        graph.close()
        assert caught.tb is not None, "and it holds the runner that failed"
        assert json.loads(log.read_text().splitlines()[-1])["event"] == "destroyed"
        graph = open_graph(small)
        assert graph.delegated == {}
        np.testing.assert_allclose(self.run(graph), first, rtol=1e-6)

    def test_while_somebody_holds_the_interpreter_its_delegate_stays(
        self, library: Path, small: Path, tmp_path: Path
    ) -> None:
        log = tmp_path / "log"
        graph = open_graph(small, delegate=ExternalDelegate(library, (("log", str(log)),)))
        assert isinstance(graph, InterpreterGraph)
        held = graph._interpreter._interpreter
        trials = log.read_text().count("destroyed")
        graph.close()
        assert log.read_text().count("destroyed") == trials
        held.Invoke(held.GetSubgraphIndexFromSignature("one"))

    def test_nothing_is_asked_to_destroy_null(self, library: Path) -> None:
        """Which the runtime's own loader does: it ends the process where a vendor did not expect that."""
        with pytest.raises(ResourceError, match="no device found"):
            load(ExternalDelegate(library, (("fail", "create"),)))
        code = (
            "import sys; from ai_edge_litert.interpreter import load_delegate\n"
            "load_delegate(sys.argv[1], {'fail': 'create'})"
        )
        done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, check=False)
        assert done.returncode == -signal.SIGSEGV

    def test_one_that_cannot_be_prepared_twice_is_told(self, library: Path, small: Path) -> None:
        """XNNPACK has all prepared again, and the runtime then drops the delegate with an INFO line."""
        graph = open_graph(small, delegate=ExternalDelegate(library, (("fail", "again"),)))
        assert graph.delegated["one"].partitions == 2
        with pytest.raises(DelegateFailed, match="a second time, as XNNPACK asks"):
            graph.runner("one")
        assert graph.delegated["one"].partitions == 0
        graph.close()

    def test_a_trial_that_fails_by_itself_does_not_blame_the_delegate(self, library: Path) -> None:
        absent = BackendChoice("interpreter", "tensorflow", "2.21.0", "")
        with pytest.raises(ResourceError) as caught:
            check(ExternalDelegate(library), absent)
        assert caught.value.message == (
            "the trial of libtest_delegate.so ended its process with status 1 before it was loaded: "
            "ModuleNotFoundError: No module named 'tensorflow'"
        )

    def test_it_is_tried_once_for_all_graphs(self, library: Path, small: Path, tmp_path: Path) -> None:
        log = tmp_path / "log"
        delegate = ExternalDelegate(library, (("log", str(log)),))
        for _ in range(3):
            open_graph(small, delegate=delegate).close()
        events = [json.loads(line) for line in log.read_text().splitlines()]
        processes = [e["process"] for e in events if e["event"] == "created"]
        assert processes[0] != os.getpid()
        assert processes[1:] == [os.getpid()] * 3

    def test_it_may_bring_an_operator_that_no_runtime_has(self, library: Path, tmp_path: Path) -> None:
        """As graphs compiled for one accelerator have."""
        operators = Wired("VendorOp", ("x",), ("a",)), Wired("ABS", ("a",), ("z",))
        path = tmp_path / "own.tflite"
        path.write_bytes(write([Graph(dict.fromkeys("xaz", Value((2, 3))), operators, "own")]))
        graph = open_graph(path, delegate=ExternalDelegate(library, (("nodes", "0"), ("dynamic", "1"))))
        assert (graph.delegated["own"].nodes, graph.delegated["own"].total_nodes) == ((0,), 2)
        with pytest.raises(DelegateFailed, match="claimed nodes that it cannot run"):
            self.run(graph, "own")

    def test_an_interpreter_is_chosen_for_it(self, library: Path, small: Path) -> None:
        choice = choose("auto", external=True)
        assert (choice.name, choice.package) == ("interpreter", "ai-edge-litert")
        assert choice.reason == "CompiledModel takes no external delegate"
        with pytest.raises(UsageError, match="'compiled' takes no external delegate"):
            open_graph(small, backend="compiled", delegate=ExternalDelegate(library))
        assert open_graph(small, backend="compiled").delegated == {}


class TestParse:
    def test_a_path_alone_or_with_options(self) -> None:
        assert ExternalDelegate.parse("external:/a/b.so") == ExternalDelegate(Path("/a/b.so"))
        text = "external:b.so:device=usb:0,log=/tmp/x=y"
        parsed = ExternalDelegate.parse(text)
        assert parsed.path == Path("b.so")
        assert parsed.options == (("device", "usb:0"), ("log", "/tmp/x=y"))
        assert str(parsed) == text

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("nnapi", "'nnapi' names no external delegate"),
            ("external:", "names no external delegate"),
            ("external::a=b", "names no external delegate"),
            ("external:b.so:", "the option '' is not key=value"),
            ("external:b.so:fast", "the option 'fast' is not key=value"),
            ("external:b.so:=1", "the option '=1' is not key=value"),
            ("external:b.so:a=1,", "the option '' is not key=value"),
            ("external:b.so:a=1,a=2", "the option 'a' is there twice"),
        ],
    )
    def test_anything_else_is_wrong_usage(self, text: str, says: str) -> None:
        with pytest.raises(UsageError, match=re.escape(says)) as caught:
            ExternalDelegate.parse(text)
        assert "external:PATH" in caught.value.remedy
