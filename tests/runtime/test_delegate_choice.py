"""What graphs run on: delegates are tried in a process of their own, trusted when their numbers are right,
and left for the CPU when they fail, in the middle of an answer too. With a real external delegate that fails
where it is told to, and with a software Vulkan for the GPU.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rpi_runtime import samples
from rpi_runtime.backends.base import Graph
from rpi_runtime.backends.external import ExternalDelegate
from rpi_runtime.backends.fallback import FallbackGraph
from rpi_runtime.backends.select import open_graph
from rpi_runtime.bundle import Bundle
from rpi_runtime.delegate_trial import Way, try_out
from rpi_runtime.errors import BundleError, CheckFailed, DelegateFailed, ResourceError, UsageError
from rpi_runtime.session import Session
from rpi_runtime.tflite_file import read
from tests.conftest import script
from tests.converters import tiny

ASK = "What is this?"
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def emulation() -> ModuleType:
    return script("emulation")


@pytest.fixture(scope="module")
def library(emulation: ModuleType) -> Path:
    script("nnapi_delegate")
    try:
        built: Path = script("external_delegate").prepare()
    except emulation.Unavailable as reason:
        pytest.skip(f"the external delegate cannot be built here: {reason}")
    return built


@pytest.fixture
def opened(variants_bundle: Path, tmp_path: Path) -> Callable[..., Session]:
    """Opens a session with a cache of its own."""

    def opening(delegate: str, **options: object) -> Session:
        return Session.open(
            variants_bundle,
            delegate=delegate,
            threads=2,
            weight_cache=tmp_path / "cache",
            **options,  # type: ignore[arg-type]
        )

    return opening


def answer(session: Session, photo: Path) -> list[int]:
    with session:
        generation = session.generate(ASK, [photo], routing="fixed:0.67", max_new_tokens=NEW_TOKENS)
        for _ in generation:
            pass
        assert generation.report.delegates == session.delegates
        return generation.token_ids


@pytest.fixture(scope="module")
def on_cpu(variants_bundle: Path, photo: Path) -> list[int]:
    """The answer of the Interpreter on the CPU."""
    session = Session.open(variants_bundle, delegate="cpu", backend="interpreter", threads=2)
    return answer(session, photo)


def external(library: Path, **options: str) -> str:
    pairs = ",".join(f"{key}={value}" for key, value in options.items())
    return f"external:{library}" + (f":{pairs}" if pairs else "")


# An external delegate


def test_one_that_works_is_tried_once_then_trusted(
    opened: Callable[..., Session], library: Path, photo: Path, on_cpu: list[int]
) -> None:
    tried: list[str] = []
    session = opened(external(library), on_trial=tried.append)
    assert answer(session, photo) == on_cpu
    assert tried == [
        "decoder on libtest_delegate.so",
        "vision_base on libtest_delegate.so with the graph for nnapi:30",
        "vision_base on libtest_delegate.so",
    ]
    for use in session.delegates:
        assert use.delegate == "libtest_delegate.so"
        assert not use.is_whole, "it computes sums and products alone"
        taken, total = map(int, use.delegated.split(" of "))
        assert 0 < taken < total
    again: list[str] = []
    assert answer(opened(external(library), on_trial=again.append), photo) == on_cpu
    assert again == []


def test_wrong_numbers_are_refused_and_named(
    opened: Callable[..., Session], library: Path, photo: Path, on_cpu: list[int]
) -> None:
    session = opened(external(library, wrong="1"))
    assert answer(session, photo) == on_cpu
    for use in session.delegates:
        assert use.delegate == "cpu"
        for reason in use.passed_over:
            assert "libtest_delegate.so" in reason
            assert ": wrong numbers: its sample has a cosine of " in reason


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fail": "prepare"}, "test delegate: told to fail when it is prepared"),
        ({"fail": "invoke"}, "test delegate: told to fail at invocation 1"),
        ({"crash": "invoke"}, "it crashed (SIGSEGV) while it ran the sample of decoder"),
        ({"exit": "prepare"}, "it ended its process with status 3 while it opened decoder"),
    ],
)
def test_one_that_fails_in_its_trial_leaves_the_graph_to_the_cpu(
    opened: Callable[..., Session],
    library: Path,
    photo: Path,
    on_cpu: list[int],
    options: dict[str, str],
    says: str,
) -> None:
    session = opened(external(library, **options))
    assert answer(session, photo) == on_cpu
    decoder = next(use for use in session.delegates if use.component == "decoder")
    assert decoder.delegate == "cpu"
    assert says in decoder.passed_over[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fail": "create"}, "cannot be used here: test delegate: no device found"),
        ({"crash": "create"}, "crashed (SIGSEGV) while it was being made"),
    ],
)
def test_a_library_that_does_not_load_leaves_everything_to_the_cpu(
    opened: Callable[..., Session],
    library: Path,
    photo: Path,
    on_cpu: list[int],
    options: dict[str, str],
    says: str,
) -> None:
    session = opened(external(library, **options))
    assert answer(session, photo) == on_cpu
    for use in session.delegates:
        assert use.delegate == "cpu"
        assert says in use.passed_over[0]
    with pytest.raises(ResourceError, match=re.escape(says)):
        opened(external(library, **options), require_full_delegation=True)


_RUN = """
import sys
from pathlib import Path
from rpi_runtime.session import Session
bundle, photo, cache, delegate = sys.argv[1:]
with Session.open(bundle, delegate=delegate, threads=2, weight_cache=Path(cache)) as session:
    for _ in session.generate("What is this?", [photo], routing="fixed:0.67", max_new_tokens=6):
        pass
print(*(reason for use in session.delegates for reason in use.passed_over), sep=chr(10))
"""


def test_one_that_takes_the_process_down_is_refused_the_next_time(
    variants_bundle: Path, library: Path, photo: Path, tmp_path: Path
) -> None:
    delegate = external(library, crash="invoke", invoke_after="200")

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _RUN, str(variants_bundle), str(photo), str(tmp_path), delegate]
        path = os.pathsep.join(filter(None, sys.path))
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)

    assert run().returncode == -signal.SIGSEGV
    again = run()
    assert again.returncode == 0, again.stderr
    assert "a process died while it ran on it" in again.stdout
    assert run().returncode == 0
    assert not list(tmp_path.glob("*.running"))


@pytest.mark.parametrize("after", [40, 80, 160, 400])
def test_one_that_dies_in_the_middle_of_an_answer_loses_nothing(
    opened: Callable[..., Session], library: Path, photo: Path, on_cpu: list[int], after: int
) -> None:
    """Invocations are those of its partitions: of the branch, of chunks of the prompt, of single tokens."""
    session = opened(external(library, fail="invoke", invoke_after=str(after)))
    assert answer(session, photo) == on_cpu
    told = [reason for use in session.delegates for reason in use.passed_over]
    assert any(f"told to fail at invocation {after}" in reason for reason in told), told


def test_a_conversation_goes_on_when_the_delegate_died(
    opened: Callable[..., Session], library: Path, photo: Path
) -> None:
    def talk(session: Session) -> list[list[int]]:
        with session:
            conversation = session.conversation(routing="fixed:0.67", max_new_tokens=4)
            turns = []
            for question, pictures in ((ASK, []), ("And this?", [photo])):
                generation = conversation.ask(question, pictures)
                turns.append([*generation, generation.token_ids])
            return turns

    expected = talk(opened("cpu", backend="interpreter"))
    assert talk(opened(external(library, fail="invoke", invoke_after="100"))) == expected


def test_full_delegation_may_be_required(opened: Callable[..., Session], library: Path, photo: Path) -> None:
    with pytest.raises(CheckFailed, match=r"decoder does not run whole on a delegate: .* of the operators"):
        answer(opened(external(library), require_full_delegation=True), photo)
    with pytest.raises(CheckFailed, match="told to fail when it is prepared"):
        answer(opened(external(library, fail="prepare"), require_full_delegation=True), photo)


def test_another_library_of_the_same_name_is_tried_anew(
    opened: Callable[..., Session], library: Path, photo: Path, tmp_path: Path
) -> None:
    copy = tmp_path / library.name
    copy.write_bytes(library.read_bytes())
    tried: list[str] = []
    answer(opened(external(copy), on_trial=tried.append), photo)
    os.utime(copy, ns=(1, 1))
    answer(opened(external(copy), on_trial=tried.append), photo)
    assert len(tried) == 6


def test_a_trial_that_hangs_is_ended(variants_bundle: Path, library: Path) -> None:
    way = Way("cpu", external=ExternalDelegate.parse(external(library, hang="invoke")))
    verdict = try_out(Bundle.open(variants_bundle), "decoder", way, threads=1, timeout_s=25)
    assert verdict.refusal == "it did not come back within 25 s, while it ran the sample of decoder"


# What the bundle was made for


def test_auto_takes_the_cpu_where_nothing_else_works(
    opened: Callable[..., Session], photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VK_ICD_FILENAMES", "/nowhere/icd.json")
    session = opened("auto")
    assert answer(session, photo) == answer(opened("cpu"), photo)
    uses = {use.component: use for use in session.delegates}
    assert {use.delegate for use in uses.values()} == {"cpu"}
    assert uses["decoder"].passed_over[0].startswith("gpu: decoder.gpu.tflite: LiteRT ")
    assert "cannot run it on the gpu" in uses["decoder"].passed_over[0]
    assert len(uses["vision_base"].passed_over) == 1, "nothing here could run what was made for NNAPI"
    with pytest.raises(CheckFailed, match="does not run whole on a delegate: gpu: "):
        answer(opened("gpu", require_full_delegation=True), photo)


def test_a_bundle_for_the_cpu_tries_nothing(nano_bundle: Path, tmp_path: Path) -> None:
    with Session.open(nano_bundle, weight_cache=tmp_path, on_trial=lambda what: pytest.fail(what)) as session:
        generation = session.generate(ASK, max_new_tokens=1)
        assert len([*generation]) <= 1
        assert session.delegates == ()


def test_what_the_bundle_was_not_made_for_is_told(opened: Callable[..., Session], nano_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"has no graph for gpu \(it holds: cpu\)"):
        Session.open(nano_bundle, delegate="gpu")
    with pytest.raises(
        UsageError, match=r"unknown delegate 'gpuu'\nDid you mean 'gpu'\? .*auto, .*external:PATH"
    ):
        opened("gpuu")
    with pytest.raises(UsageError, match="what runs is chosen for all graphs"):
        opened("vision=gpu")
    with pytest.raises(UsageError, match=r"there is no file /nowhere\.so"):
        opened("external:/nowhere.so")
    with pytest.raises(UsageError, match="a memory budget cannot be kept with the delegate gpu"):
        opened("gpu", memory_budget=1 << 30)
    with pytest.raises(UsageError, match="full delegation is required, and the delegate is the CPU"):
        opened("cpu", require_full_delegation=True)


def test_a_budget_keeps_to_the_cpu(opened: Callable[..., Session], photo: Path) -> None:
    session = opened("auto", memory_budget=8 << 30)  # what these tests hold counts as well
    assert answer(session, photo)
    assert session.delegates == ()


# The GPU

_ON_GPU = """
import json, sys
from pathlib import Path
from rpi_runtime.session import Session
from rpi_runtime.tflite_file import read
bundle, photo, cache = sys.argv[1:]
with Session.open(
    bundle, delegate="gpu", threads=2, weight_cache=Path(cache), require_full_delegation=True
) as session:
    answer = session.generate("What is this?", [photo], routing="fixed:0.67", max_new_tokens=6)
    for _ in answer:
        pass
    uses = [[use.component, use.delegate, use.is_whole] for use in session.delegates]
print(json.dumps([answer.token_ids, sorted(uses)]))
"""


@pytest.mark.emulation
def test_an_answer_is_computed_on_a_gpu(
    emulation: ModuleType, variants_bundle: Path, photo: Path, tmp_path: Path
) -> None:
    """A software one, through LiteRT's accelerator: the branch, the decoder with its cache."""
    try:
        vulkan = script("software_vulkan").environment()
    except emulation.Unavailable as reason:
        pytest.skip(f"no software Vulkan can be had here: {reason}")
    done = subprocess.run(
        [sys.executable, "-c", _ON_GPU, str(variants_bundle), str(photo), str(tmp_path)],
        env={**os.environ, **vulkan, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    tokens, uses = json.loads(done.stdout)
    assert len(tokens) == NEW_TOKENS
    assert [[name, whole] for name, _, whole in uses] == [["decoder", True], ["vision_base", True]]
    assert all(delegate.startswith("gpu") for _, delegate, _ in uses)


# The NPU


@pytest.mark.emulation
@pytest.mark.slow
def test_an_answer_is_computed_through_a_compiler_plugin(tmp_path: Path, photo: Path) -> None:
    """OpenVINO's: compiled ahead of time by `toolkit convert`, run through LiteRT's dispatch library."""
    openvino = script("openvino_env")
    try:
        packages = openvino.libraries(openvino.make()).parents[1]
    except ResourceError as reason:
        pytest.skip(f"OpenVINO cannot be had here: {reason}")
    tiny.write_checkpoint(tmp_path / "tiny")
    # Behind this environment's own packages: only OpenVINO is taken from there.
    path = [*filter(None, sys.path), str(packages)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "XDG_CACHE_HOME": str(tmp_path)}

    def toolkit(*arguments: object) -> str:
        command = [sys.executable, "-c", "from toolkit.entry import main; main()", *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    bundle = tmp_path / "bundle"
    shapes = (
        "--components",
        "vision_base,decoder",
        "--tile-sides",
        "64",
        "--prefill",
        "8",
        "--context",
        "128",
    )
    toolkit("convert", tmp_path / "tiny", "-o", bundle, *shapes, "--delegate", "vision=npu:openvino:CPU")
    ask = ("--image", photo, "--route", "fixed:1.0", "--prompt", ASK, "--max-new-tokens", "4", "--json")
    found = json.loads(toolkit("run", bundle, *ask, "--delegate", "npu"))
    uses = {use["component"]: (use["delegate"], use["is_whole"]) for use in found["delegates"]}
    assert uses == {"vision_base": ("npu", True), "decoder": ("cpu", True)}
    assert len(found["token_ids"]) == 4
    assert [o.name for o in read(bundle / "vision_base.npu-openvino-cpu.tflite").subgraphs[0].operators] == [
        "DISPATCH_OP"
    ]


# A sample


def test_a_sample_says_how_close_a_graph_is(variants_bundle: Path) -> None:
    bundle = Bundle.open(variants_bundle)
    component = bundle.manifest.component("decoder")
    assert component is not None
    sample = samples.load(bundle.file(component.sample))
    assert isinstance(sample, samples.DecoderSample)
    graph = open_graph(bundle.path("decoder"), weight_cache=None)
    assert samples.closeness(graph, sample, bundle.manifest.decoder) > component.least_cosine
    other = samples.DecoderSample(np.roll(sample.rows, 1, axis=0), sample.expected)
    assert samples.closeness(graph, other, bundle.manifest.decoder) < component.least_cosine
    graph.close()


def test_what_fails_a_second_time_is_raised(variants_bundle: Path, library: Path) -> None:
    """A graph that fell back has nowhere to go."""
    path = Bundle.open(variants_bundle).path("vision_base")

    def failing() -> Graph:
        delegate = ExternalDelegate(library, (("fail", "invoke"),))
        return open_graph(path, backend="interpreter", weight_cache=None, delegate=delegate)

    heard: list[DelegateFailed] = []
    graph = FallbackGraph(failing(), failing, heard.append)
    with pytest.raises(DelegateFailed, match="told to fail at invocation 1"):
        graph.runner("tile_64").run({"images": np.zeros((1, 64, 64, 3), np.float32)})
    assert len(heard) == 1
    graph.close()
