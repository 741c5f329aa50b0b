"""Budgets, proven from outside: the kernel's account of another process that answers under one."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rpi_runtime.backends.weight_cache import default_folder, entries
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import UsageError
from rpi_runtime.footprint import Footprint, known, measure
from rpi_runtime.graphs import ONE_BY_ONE, TOGETHER, Residency
from rpi_runtime.kernel import limit_data, memory
from rpi_runtime.manifest import DECODER
from rpi_runtime.memory_plan import WAYS
from rpi_runtime.session import Session
from tests.conftest import MakeOnce
from tests.picture_formats import KINDS, save_picture

ROOT = Path(__file__).resolve().parents[2]
# Answers pictures under a budget, fills the context after the first, says how, and waits to be looked at.
_ANSWER = """
import json, sys
from rpi_runtime.session import Session
bundle, budget, *pictures = sys.argv[1:]
pictures = [[picture] for picture in pictures]
if "--" in sys.argv:
    at = pictures.index(["--"])
    pictures = [*pictures[:at], [picture for group in pictures[at + 1:] for picture in group]]
with Session.open(bundle, threads=1, memory_budget=int(budget), branches=("base",)) as session:
    plan = session.plan
    best = plan.choices[0]  # of the longest context, in the largest chunks
    same = [c for c in plan.choices if c.context_tokens == best.context_tokens]
    ways = {c.way: c.peak for c in same if c.prefill_tokens == best.prefill_tokens}
    told = [plan.chosen.way, plan.peak, ways, min(c.peak for c in plan.choices), []]
    for number, group in enumerate(pictures):
        generation = session.generate("What is this?", group, routing="fixed:0.25", max_new_tokens=8)
        told[-1].append("".join(generation))
        if number == 0:
            words = "word " * session.context_tokens
            while len(session.codec.encode(words)) > session.context_tokens - 8:
                words = words[: len(words) * 9 // 10]
            "".join(session.generate(words, raw=True, max_new_tokens=8))
    print(json.dumps(told), flush=True)
    sys.stdin.read()
"""


def toolkit(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toolkit.cli", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "80"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def told_budget(message: str) -> int:
    """Of the remedy "Give 258 MB or more", in bytes."""
    return 10**6 * int(message.split("Give ")[1].split(" MB")[0].replace(",", ""))


def least_of(bundle: Path) -> int:
    """The smallest budget that the command line names for answers of this bundle."""
    refused = toolkit("plan", bundle, "--threads", 1, "--memory", "20MB")
    assert refused.returncode == 3
    return told_budget(refused.stderr)


@dataclass(frozen=True)
class Answered:
    way: str
    planned: int
    peaks: dict[str, int]  # of the full context in all chunks, by way
    least: int  # bytes that an answer can do with
    texts: list[str]
    peak: int  # resident, as the kernel says


def answered(
    bundle: Path,
    budget: int,
    *pictures: Path,
    together: Sequence[Path] = (),
    before: Callable[[], None] | None = None,
) -> Answered:
    """A question about each of `pictures`, then one about all of those `together`; `before` runs first of all
    in the process."""
    command = [sys.executable, "-c", _ANSWER, str(bundle), str(budget), *map(str, pictures)]
    command += ["--", *map(str, together)] if together else []
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=before
    ) as process:
        assert process.stdin
        assert process.stdout
        line = process.stdout.readline()
        peak = memory(process.pid).peak_resident_bytes
        process.stdin.close()
        assert process.wait() == 0
    return Answered(*json.loads(line), peak)


@contextmanager
def control_group(limit: int) -> Iterator[Callable[[], None]]:
    """A control group of `limit` bytes below our own; what is given lets a process join it. Skips where the
    system does not let us make one."""
    listed = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    ours = next((path for _, names, path in listed if names == "memory"), None)
    parent, most = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    if ours is None:
        ours = next((path for _, names, path in listed if not names), "/")
        parent, most = Path("/sys/fs/cgroup"), "memory.max"
    group = parent / ours.lstrip("/") / f"hypervl-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        try:
            (group / most).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"a control group has no limit of memory here: {error.strerror}")
        yield lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None
    finally:
        group.rmdir()


def drop_from_page_cache(bundle: Path) -> None:
    """Pages that are there already would be charged to whoever read them first."""
    weights = default_folder()
    for path in (*bundle.iterdir(), *weights.iterdir()):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, photo: Path) -> list[Path]:
    """From small to 33 megapixels, and a strip. 1535 px is the worst: half of it would not do for 2 x 2 tiles
    of 384."""
    folder = tmp_path_factory.mktemp("sizes")
    made = []
    for width, height in ((256, 256), (1535, 1535), (30000, 400), (5800, 5800)):
        path = folder / f"{width}x{height}.jpg"
        with Image.open(photo) as opened:
            opened.convert("RGB").resize((width, height)).save(path)
        made.append(path)
    return made


@pytest.fixture(scope="session")
def measured_once(nano_bundle: Path, make_once: MakeOnce) -> Path:
    def make(folder: Path) -> None:
        with Session.open(nano_bundle, threads=1) as session:
            known(session.bundle, session.choice, 1, folder)

    return make_once("footprint", make)


@pytest.fixture
def measured(nano_bundle: Path, measured_once: Path, cache_home: Path) -> Footprint:
    """As every session on this machine will find it."""
    shutil.copytree(measured_once, cache_home, dirs_exist_ok=True)
    with Session.open(nano_bundle, threads=1) as session:
        return known(session.bundle, session.choice, 1, cache_home)


def test_every_way_keeps_its_budget_with_any_picture(
    nano_bundle: Path, measured: Footprint, pictures: list[Path]
) -> None:
    generous = answered(nano_bundle, 2 << 30, *pictures)
    assert generous.way == "together"
    order = list(WAYS)
    for way in WAYS:
        # Another process holds some megabytes more or less of its libraries, and plans with what it holds.
        budget = generous.peaks[way] + (4 << 20)
        tight = answered(nano_bundle, budget, *pictures)
        assert order.index(tight.way) <= order.index(way)
        assert tight.peak <= budget
        assert tight.texts == generous.texts
        assert 0.85 * tight.planned <= tight.peak <= tight.planned
    assert tight.way != "together"


def test_the_peak_hardly_depends_on_the_picture(
    nano_bundle: Path, measured: Footprint, pictures: list[Path], tmp_path: Path, photo: Path
) -> None:
    """Under the smallest budget, from 0.07 to 67 megapixels."""
    largest = tmp_path / "8192x8192.jpg"
    with Image.open(photo) as opened:
        opened.convert("RGB").resize((8192, 8192)).save(largest)
    least = answered(nano_bundle, 2 << 30, pictures[0]).least + (4 << 20)
    peaks = [answered(nano_bundle, least, picture).peak for picture in (*pictures, largest)]
    assert max(peaks) <= 1.03 * min(peaks), peaks


def test_several_pictures_take_as_much_as_one(
    nano_bundle: Path, measured: Footprint, pictures: list[Path]
) -> None:
    """They are open one after another, and their visual tokens wait inside the plan."""
    least = answered(nano_bundle, 2 << 30).least + (4 << 20)
    done = answered(nano_bundle, least, pictures[3], together=[pictures[1], pictures[3], pictures[1]])
    assert done.peak <= least
    assert len(done.texts) == 2


def test_visual_tokens_are_prefilled_as_they_come_where_all_is_open(
    nano_bundle: Path, cache_home: Path, photo: Path
) -> None:
    def phases(residency: Residency) -> tuple[list[str], str]:
        told: list[str] = []
        with Session.open(nano_bundle, threads=1, residency=residency) as session:
            answer = session.generate(
                "What?", [photo], max_new_tokens=4, on_progress=lambda p: told.append(p.phase)
            )
            return told, "".join(answer)

    together, text = phases(TOGETHER)
    last_tile = len(together) - 1 - together[::-1].index("encode")
    assert "prefill" in together[:last_tile]
    apart, same = phases(ONE_BY_ONE)
    assert "prefill" not in apart[: len(apart) - 1 - apart[::-1].index("encode")]
    assert same == text


def test_the_resident_set_stays_flat_over_four_hundred_questions(
    nano_bundle: Path, measured: Footprint, pictures: list[Path]
) -> None:
    script = """
import json, sys
from rpi_runtime.kernel import memory
from rpi_runtime.session import Session
bundle, *pictures = sys.argv[1:]
held = []
with Session.open(bundle, threads=1) as session:
    for number in range(400):
        picture = pictures[number // 10 % len(pictures)]
        answer = session.generate(f"Question {number}?", [picture], routing="fixed:0.25", max_new_tokens=3)
        "".join(answer)
        if number in (199, 399):
            held.append(memory().resident_bytes)
print(json.dumps(held))
"""
    command = [sys.executable, "-c", script, str(nano_bundle), str(pictures[0]), str(pictures[1])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    after_200, after_400 = json.loads(done.stdout)
    assert after_400 <= 1.01 * after_200


def test_with_strict_the_kernel_refuses_what_exceeds_the_budget(
    nano_bundle: Path, measured: Footprint, photo: Path
) -> None:
    script = """
import sys
import numpy as np
from rpi_runtime.session import Session
bundle, budget, picture = sys.argv[1:]
with Session.open(bundle, threads=1, memory_budget=int(budget), branches=("base",), strict=True) as session:
    answer = "".join(session.generate("What is this?", [picture], max_new_tokens=8))
    try:
        np.ones(int(budget), np.uint8)
        print("nobody refused")
    except MemoryError:
        print("refused")
print(len(answer) > 0, np.ones(int(budget), np.uint8).nbytes == int(budget))
"""
    for budget in set(answered(nano_bundle, 2 << 30).peaks.values()):
        command = [sys.executable, "-c", script, str(nano_bundle), str(budget + (4 << 20)), str(photo)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["refused", "True", "True"]


def test_a_limit_that_is_already_lower_stays() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    lift_outer = limit_data(8 << 30)
    try:
        lift_inner = limit_data(16 << 30)
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 8 << 30
        lift_inner()
        assert resource.getrlimit(resource.RLIMIT_DATA)[0] == 8 << 30
    finally:
        lift_outer()
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_in_a_control_group_as_large_as_the_budget_nothing_is_killed(
    nano_bundle: Path, measured: Footprint, pictures: list[Path]
) -> None:
    for budget in set(answered(nano_bundle, 2 << 30).peaks.values()):
        limit = budget + (4 << 20)
        with control_group(limit) as join:
            drop_from_page_cache(nano_bundle)
            done = answered(nano_bundle, limit, *pictures, before=join)
        assert done.peak <= limit
        assert len(done.texts) == len(pictures)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_keeps_the_budget_that_it_is_said_to_need(
    nano_bundle: Path, measured: Footprint, tmp_path: Path, kind: str
) -> None:
    """The smallest that is said to do for this picture, where it needs more than the bundle alone."""
    picture = save_picture(kind, tmp_path, 3400, 3000)
    budget = least_of(nano_bundle)
    asked = ("plan", nano_bundle, "--threads", 1, "--memory", budget, "--image", picture, "--json")
    shown = toolkit(*asked)
    (cost,) = json.loads(shown.stdout)["pictures"]
    assert shown.returncode == (0 if cost["fits"] else 1)
    if not cost["fits"]:
        assert f"{picture.name}: too large for a memory budget" in shown.stderr
        budget = told_budget(shown.stderr)
    ask = ("run", nano_bundle, "--image", picture, "--prompt", "What?", "--max-new-tokens", 4, "--threads", 1)
    done = toolkit(*ask, "--memory", budget, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["memory"]["peak_resident_bytes"] <= budget


def test_a_picture_that_does_not_fit_is_refused_with_the_budget_that_would_do(
    nano_bundle: Path, measured: Footprint, tmp_path: Path
) -> None:
    """A PNG can only be decoded whole."""
    large = tmp_path / "large.png"
    Image.fromarray(np.zeros((6000, 6000, 3), np.uint8)).save(large)
    budget = least_of(nano_bundle)
    ask = ("run", nano_bundle, "--image", large, "--prompt", "What?", "--max-new-tokens", 4, "--threads", 1)
    refused = toolkit(*ask, "--memory", budget)
    assert refused.returncode == 3
    assert "large.png is 6000 x 6000 px (PNG): decoding it takes 14" in refused.stderr
    assert f"a memory budget of {budget // 10**6} MB leaves" in refused.stderr
    done = toolkit(*ask, "--memory", told_budget(refused.stderr), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["memory"]["peak_resident_bytes"] <= found["plan"]["budget"]


def test_a_picture_too_large_for_its_place_beside_open_graphs_gives_the_same_answer(
    nano_bundle: Path, measured: Footprint, tmp_path: Path, photo: Path
) -> None:
    """All graphs are closed for it, also when an earlier picture is looked at again."""
    large = save_picture("webp", tmp_path, 1200, 1000)
    generous = answered(nano_bundle, 2 << 30, photo, large, together=[large, photo])
    budget = generous.peaks["together"] + (4 << 20)
    done = answered(nano_bundle, budget, photo, large, together=[large, photo])
    assert (done.way, done.texts) == ("together", generous.texts)
    assert done.peak <= budget


def test_a_branch_that_was_not_planned_for_is_refused(
    nano_bundle: Path, measured: Footprint, photo: Path
) -> None:
    with (
        Session.open(nano_bundle, threads=1, memory_budget=4 << 30, branches=("base",)) as session,
        pytest.raises(UsageError, match="large"),
    ):
        list(session.generate("What?", [photo], branch="large"))


# What graphs take


def test_each_graph_is_measured_cold_and_warm(nano_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(nano_bundle)
    found = measure(bundle, threads=1)
    names = [component.name for component in bundle.manifest.components]
    assert [g.component for g in found.cold] == [g.component for g in found.warm] == names
    assert {g.weight_cache for g in found.cold} == {"built"}
    assert {g.weight_cache for g in found.warm} == {"reused"}
    for graph, component in zip(found.warm, bundle.manifest.components, strict=True):
        assert {s.name for s in graph.signatures} == {s.name for s in component.signatures}
        assert graph.peak >= graph.in_use.total - (1 << 20)
        if component.name == DECODER:
            assert graph.needed(unused=[graph.signatures[-1].name]) < graph.needed()
        assert sum(s.again.total for s in graph.signatures) < 1 << 20, "a second run takes nothing more"
        # Code of the libraries stays mapped: how much of it depends on how their files came here.
        assert graph.left.anonymous < 1 << 20, "it leaves nothing of its own behind"
    assert max(graph.left.total for graph in found.warm) < found.libraries < 64 << 20
    weights = {c.name: c.file.bytes for c in bundle.manifest.components}
    assert all(cost > 0.5 * weights[name] for name, cost in found.graphs().items())


def test_what_was_measured_is_kept(
    nano_bundle: Path, measured: Footprint, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it is measured again")

    (kept,) = cache_home.glob("*.footprint")
    assert kept.stem not in {entry.key for entry in entries(cache_home)}, "it is no packed weights"
    with Session.open(nano_bundle, threads=1) as session:
        with monkeypatch.context() as patch:
            patch.setattr("rpi_runtime.footprint.measure", refuse)
            assert known(session.bundle, session.choice, 1, cache_home) == measured
            with pytest.raises(AssertionError, match="again"):
                known(session.bundle, session.choice, 2, cache_home)  # other threads, other arenas
        kept.write_text(kept.read_text()[:50])
        again = known(session.bundle, session.choice, 1, cache_home)
    assert again.graphs().keys() == measured.graphs().keys()


# The command line


def test_plan_shows_who_holds_what(nano_bundle: Path, measured: Footprint) -> None:
    shown = toolkit("plan", nano_bundle, "--memory", "1GB", "--threads", 1)
    assert shown.returncode == 0, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    for words in ("vision_base", "keys and values", "graphs together", "head room"):
        assert words in shown.stdout
    data: dict[str, Any] = json.loads(
        toolkit("plan", nano_bundle, "--memory", "1GB", "--threads", 1, "--json").stdout
    )
    assert data["budget"] == 1_000_000_000
    assert data["contexts"] == [128, 512]
    assert data["peak"] == data["chosen"]["peak"] == data["choices"][0]["peak"]
    assert [choice["prefill_tokens"] for choice in data["choices"][::3]] == [[8, 32], [8], []] * 2
    assert data["head_room"] == data["budget"] - data["peak"]
    assert [phase["name"] for phase in data["phases"]][-1] == "decode"


def test_plan_draws_its_columns_and_the_budget(
    nano_bundle: Path, measured: Footprint, tmp_path: Path
) -> None:
    """Each column is as high as the phase is full, against the line of the budget."""
    path = tmp_path / "plan.png"
    asked = ("plan", nano_bundle, "--memory", "1GB", "--threads", 1, "--json")
    plan = json.loads(toolkit(*asked).stdout)
    tight = (plan["peak"] + 8_000_000) // 1_000_000
    asked = ("plan", nano_bundle, "--memory", f"{tight}MB", "--threads", 1, "--json", "--picture", path)
    plan = json.loads(toolkit(*asked).stdout)
    with Image.open(path) as opened:
        page = np.asarray(opened.convert("RGB")).astype(int)
    columns = page[:, 80:700]
    (line,) = np.flatnonzero((columns.sum(-1) < 200).mean(1) > 0.95)[:1]
    bottom = 540
    for i, phase in enumerate(plan["phases"]):
        left = round((i + 0.5) * 620 / len(plan["phases"]))
        # From the bottom up, a column is never paper.
        filled = (np.ptp(columns[:bottom, left], axis=-1) > 20) | (columns[:bottom, left].sum(-1) < 620)
        high = int(np.argmin(filled[::-1]))
        held = sum(phase["holds"].values())
        assert high / (bottom - line) == pytest.approx(held / plan["budget"], abs=0.02)


def test_plan_says_what_an_answer_about_a_picture_takes(nano_bundle: Path, measured: Footprint) -> None:
    asked = ("plan", nano_bundle, "--memory", "1GB", "--threads", 1)
    sizes = ("--image", "256x256", "--image", "4000x3000")
    plan = json.loads(toolkit(*asked, *sizes, "--images", 1, "--json").stdout)
    small, photo, most = plan["pictures"]
    assert small["size_px"] == [256, 256]
    assert small["visual_tokens"] < photo["visual_tokens"] <= most["visual_tokens"]
    assert small["peak"] < photo["peak"] <= plan["peak"]
    shown = toolkit(*asked, *sizes).stdout
    # Another process holds a little more or less, in all of its figures.
    (row,) = (line for line in shown.splitlines() if "4000 x 3000" in line)
    (whole,) = re.findall(r"([\d.]+) MB at most", shown)
    assert float(whole) - float(row.split()[-1]) == pytest.approx(
        (plan["peak"] - photo["peak"]) / 1e6, abs=0.2
    )
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("size", ["big", "0x5", "5x", "99999x99999"])
def test_plan_refuses_what_no_picture_can_be(nano_bundle: Path, measured: Footprint, size: str) -> None:
    refused = toolkit("plan", nano_bundle, "--memory", "1GB", "--threads", 1, "--image", size)
    assert refused.returncode == 2
    assert f"--image '{size}'" in refused.stderr


def test_plan_for_a_shorter_conversation(nano_bundle: Path, measured: Footprint) -> None:
    asked = ("plan", nano_bundle, "--memory", "1GB", "--threads", 1, "--json", "--context")
    assert json.loads(toolkit(*asked, 100).stdout)["contexts"] == [128]
    assert json.loads(toolkit(*asked, 129).stdout)["contexts"] == [512]
    refused = toolkit(*asked, 513)
    assert refused.returncode == 2
    assert "a context of 513 tokens is asked for, and the bundle has 512" in refused.stderr


def test_run_keeps_a_budget_or_says_what_would_do(
    nano_bundle: Path, measured: Footprint, photo: Path
) -> None:
    ask = ("run", nano_bundle, "--image", photo, "--prompt", "What?", "--max-new-tokens", 4, "--threads", 1)
    refused = toolkit(*ask, "--memory", "40MB")
    assert refused.returncode == 3
    assert "a memory budget of 40 MB is too small: the least" in refused.stderr
    least = told_budget(refused.stderr)
    for _ in range(3):  # every start holds a little more or less
        done = toolkit(*ask, "--memory", least, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["memory"]["peak_resident_bytes"] <= least
    assert toolkit(*ask, "--memory", "lots").returncode == 2


def test_a_question_without_a_picture_is_planned_without_one(nano_bundle: Path, measured: Footprint) -> None:
    ask = ("run", nano_bundle, "--prompt", "What?", "--max-new-tokens", 4, "--threads", 1)
    least = told_budget(toolkit(*ask, "--memory", "20MB").stderr)
    assert least < least_of(nano_bundle)
    done = toolkit(*ask, "--memory", least, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["memory"]["peak_resident_bytes"] <= least


@pytest.mark.parametrize(
    ("limit", "megabytes", "words"),
    [
        ("data", 30, "may take 30 MB of memory, and Python with its libraries needs 84 MB"),
        ("data", 79, "may take 79 MB of memory, and Python with its libraries needs 84 MB"),
        ("data", 85, "ran out of memory"),
        ("as", 100, "may take 100 MB of memory, and Python with its libraries needs 200 MB"),
        ("as", 220, "out of memory"),
    ],
)
def test_a_limit_of_the_process_ends_in_a_message(
    nano_bundle: Path, photo: Path, limit: str, megabytes: int, words: str
) -> None:
    """Whatever the kernel refuses, NumPy's memory or LiteRT's."""
    ask = ("run", nano_bundle, "--image", photo, "--prompt", "What?", "--max-new-tokens", 4, "--threads", 1)
    command = [
        "prlimit",
        f"--{limit}={megabytes * 10**6}",
        sys.executable,
        "-m",
        "toolkit.cli",
        *map(str, ask),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
