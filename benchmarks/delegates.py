"""What delegates take of graphs and what they compute, beside what the rules say of them.

    python -m benchmarks.delegates agreement [--bundle BUNDLE] [--json]
    python -m benchmarks.delegates gpu BUNDLE [--json]
    python -m benchmarks.delegates full-size [--preset 0.6b] [--side 320] [-o FOLDER]

`agreement` counts, per graph and target, the operators that the rules say run there and those that the real
thing takes: LiteRT's GPU accelerator on a software Vulkan, TFLite's own NNAPI delegate, LiteRT's compiler
plugins. The graphs are fetched ones, and all files of a bundle. `gpu` runs every signature of a bundle's
graphs on the GPU, in float32 (SwiftShader) and in float16 (lavapipe), and sets the outputs beside the CPU's.
`full-size` does both with the base branch of a preset, whose weights are random, converted for the GPU;
a signature that ran for two minutes failed ("Failed to lock custom tensor buffer"), so the side is small.
What cannot be had here is told, and left out.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.command import toolkit
from delegates import gpu
from delegates.graph import Subgraph
from delegates.halves import is_half_constant
from delegates.nnapi import ANDROID_LEVELS
from delegates.npu import JUDGED
from delegates.targets import Target, verdicts
from rpi_runtime.errors import BundleError, EdgeError, ResourceError
from rpi_runtime.manifest import VISION_BASE
from rpi_runtime.tflite_file import read
from toolkit import report
from toolkit.placements import placements_of

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
FOREIGN = ("face-graphs", "mediapipe-graphs")
SWIFTSHADER, LAVAPIPE = "swiftshader", "lavapipe"
PRECISIONS = {"float32": (SWIFTSHADER, "gpu"), "float16": (LAVAPIPE, "gpu-half")}


@dataclass(frozen=True)
class Found:
    """How many operators of one subgraph."""

    by_rules: int  # run on the delegate
    by_delegate: int
    different: int

    @classmethod
    def of(cls, ours: Set[int], theirs: Set[int]) -> Found:
        return cls(len(ours), len(theirs), len(ours ^ theirs))


Ask = Callable[[Path, tuple[Subgraph, ...]], list[Found]]


@dataclass(frozen=True)
class Agreement:
    graph: str
    target: str
    operators: int
    by_rules: int
    by_delegate: int | None  # None: nothing opens the graph there
    different: int
    note: str = ""


@dataclass(frozen=True)
class Computed:
    graph: str
    signature: str
    precision: str
    cosine: float | None  # to the CPU, the smallest of its outputs; None: it does not run
    largest_difference: float  # of the largest number of an output
    open_s: float  # of the whole graph, its kernels compiled
    faults: int  # operators that `toolkit delegates` says are computed wrongly
    note: str = ""


def script(name: str) -> ModuleType:
    """The module `scripts/<name>.py`; they import each other, and are no package."""
    if str(SCRIPTS) not in sys.path:
        sys.path.append(str(SCRIPTS))
    return importlib.import_module(name)


# Which operators


def agreement(bundle: Path | None) -> list[Agreement]:
    graphs = dict(_graphs(bundle))
    found = []
    for target, ask in _judges():
        report.note(f"asking {target}")
        found += [_agreement(name, file, target, ask) for name, file in graphs.items()]
    return sorted(found, key=lambda row: list(graphs).index(row.graph))


def _graphs(bundle: Path | None) -> Iterator[tuple[str, Path]]:
    if bundle is not None:
        yield from ((file.stem, file) for file in sorted(bundle.glob("*.tflite")))
    for package in FOREIGN:
        try:
            folder: Path = script("fetch_weights").fetch(package)
        except ResourceError as error:
            report.warning(f"{package} cannot be fetched here: {error.message}")
            continue
        # Both packages have some of the same name.
        origin = package.removesuffix("-graphs")
        yield from ((f"{origin}/{file.stem}", file) for file in sorted(folder.rglob("*.tflite")))


def _judges() -> Iterator[tuple[Target, Ask]]:
    """What can be had of the real things."""
    yield from _asked([Target("gpu")], lambda: script("gpu_accelerator").prepare(SWIFTSHADER), _gpu)
    yield from _asked([Target("nnapi", level) for level in ANDROID_LEVELS], _nnapi_delegate, _nnapi)
    for vendor in JUDGED:
        yield from _asked([Target("npu", vendor=vendor)], partial(script("npu_plugin").prepare, vendor), _npu)


def _asked(
    targets: list[Target], prepare: Callable[[], Any], judge: Callable[[Any, Target], Ask]
) -> Iterator[tuple[Target, Ask]]:
    try:
        real = prepare()
    except (script("emulation").Unavailable, ResourceError) as reason:
        report.warning(f"{', '.join(map(str, targets))} cannot be asked here: {reason}")
        return
    yield from ((target, judge(real, target)) for target in targets)


def _gpu(accelerator: Any, target: Target) -> Ask:
    def ask(file: Path, subgraphs: tuple[Subgraph, ...]) -> list[Found]:
        found = []
        for subgraph, seen in zip(subgraphs, accelerator.delegations(file), strict=True):
            taken = gpu.taken(subgraph)
            # It is not asked about constants of float16, which go with the others.
            halves = {node.number for node in subgraph.nodes() if is_half_constant(node)}
            allowed = _allowed(subgraph, target) - halves
            different = (allowed ^ seen.accepted) | (taken ^ seen.taken)
            found.append(Found(len(taken), len(seen.taken), len(different)))
        return found

    return ask


def _nnapi_delegate() -> Any:
    return script("nnapi_delegate").prepare(script("tflite_runtime_env").make())


def _nnapi(delegate: Any, target: Target) -> Ask:
    def ask(file: Path, subgraphs: tuple[Subgraph, ...]) -> list[Found]:
        taken = delegate.taken(file, target.nnapi_level)
        return [Found.of(_allowed(s, target), theirs) for s, theirs in zip(subgraphs, taken, strict=True)]

    return ask


def _npu(plugin: Any, target: Target) -> Ask:
    def ask(file: Path, subgraphs: tuple[Subgraph, ...]) -> list[Found]:
        ours = [_allowed(subgraph, target) for subgraph in subgraphs]
        try:
            taken = plugin.taken(file)
        except BundleError:  # what it wrote cannot be read: it says how many, and not which
            counts = zip(ours, plugin.counts(file), strict=True)
            return [Found(len(mine), count, abs(len(mine) - count)) for mine, count in counts]
        except ResourceError:  # it gives up the whole graph
            taken = [set() for _ in subgraphs]
        return [Found.of(mine, theirs) for mine, theirs in zip(ours, taken, strict=True)]

    return ask


def _allowed(subgraph: Subgraph, target: Target) -> frozenset[int]:
    return frozenset(number for number, why in verdicts(subgraph, target).items() if not why)


def _agreement(name: str, file: Path, target: Target, ask: Ask) -> Agreement:
    subgraphs = read(file, details=True).subgraphs
    operators = sum(len(subgraph.operators) for subgraph in subgraphs)
    try:
        found = ask(file, subgraphs)
    except ResourceError as error:
        ours = sum(len(_allowed(subgraph, target)) for subgraph in subgraphs)
        return Agreement(name, str(target), operators, ours, None, 0, error.message)
    return Agreement(
        name,
        str(target),
        operators,
        sum(f.by_rules for f in found),
        sum(f.by_delegate for f in found),
        sum(f.different for f in found),
    )


def print_agreement(rows: list[Agreement]) -> None:
    columns = ("graph", "target", "operators", "by the rules", "by the delegate", "different")
    told = ((r.graph, r.target, r.operators, r.by_rules, *_seen(r)) for r in rows)
    report.table("", columns, told, right=columns[2:])
    totals = []
    for target in dict.fromkeys(row.target for row in rows):
        opened = [row for row in rows if row.target == target and row.by_delegate is not None]
        sums = (sum(getattr(r, what) for r in opened) for what in ("operators", "by_delegate", "different"))
        totals.append((target, len(opened), *sums))
    sums_of = ("target", "graphs", "operators", "taken", "different")
    report.table("Of what is opened", sums_of, totals, right=sums_of[1:])
    for note in dict.fromkeys(row.note for row in rows if row.note):
        report.note(note)


def _seen(row: Agreement) -> tuple[object, object]:
    return ("not opened", "-") if row.by_delegate is None else (row.by_delegate, row.different)


# What is computed


def computed(graphs: dict[str, Path]) -> list[Computed]:
    accelerator = script("gpu_accelerator")
    found: list[Computed] = []
    for precision, (driver, where) in PRECISIONS.items():
        try:
            real = accelerator.prepare(driver)
        except script("emulation").Unavailable as reason:
            report.warning(f"{driver} cannot be had here: {reason}")
            continue
        for name, file in graphs.items():
            report.note(f"{name} in {precision}")
            found += _computed(accelerator, real, name, file, precision, where)
    return found


def _computed(
    accelerator: ModuleType, real: Any, name: str, file: Path, precision: str, where: str
) -> Iterator[Computed]:
    inputs = accelerator.random_inputs(file)
    there = real.run(file, inputs, "cpu").outputs
    try:
        run = real.run(file, inputs, where)
    except ResourceError as error:
        yield Computed(name, "", precision, None, 0, 0, 0, error.message)
        return
    faults = {p.subgraph: len(p.faulty) for p in placements_of(file, Target("gpu")).placements}
    for signature in read(file).signatures:
        worst = accelerator.Difference.worst(run.outputs, there, signature.name)
        yield Computed(
            name, signature.name, precision, worst.cosine, worst.largest, run.open_s, faults[signature.name]
        )


def print_computed(rows: list[Computed]) -> None:
    columns = ("graph", "signature", "precision", "cosine", "largest difference", "opened in", "known faults")
    told = ((row.graph, row.signature, row.precision, *_measured(row)) for row in rows)
    report.table("", columns, told, right=columns[3:])
    for note in dict.fromkeys(row.note for row in rows if row.note):
        report.note(note)


def _measured(row: Computed) -> tuple[str, str, str, str]:
    if row.cosine is None:
        return "does not run", "", "", ""
    return f"{row.cosine:.7f}", f"{row.largest_difference:.1e}", f"{row.open_s:.1f} s", str(row.faults)


def full_size(preset: str, side: int, folder: Path) -> tuple[list[Agreement], list[Computed]]:
    """The base branch for tiles of `side` px; `folder` keeps what was made."""
    checkpoint, bundle = folder / preset, folder / f"{preset}-{side}"
    if not checkpoint.exists():
        toolkit("assemble", checkpoint, "--preset", preset, "--dtype", "float16")
    if not bundle.exists():
        options: list[object] = ["--components", VISION_BASE, "--tile-sides", side, "--delegate", "gpu"]
        toolkit("convert", checkpoint, "-o", bundle, *options)
    target = Target("gpu")
    (file,) = bundle.glob("*.tflite")
    row = _agreement(file.stem, file, target, _gpu(script("gpu_accelerator").prepare(), target))
    told = placements_of(file, target).placements  # as `toolkit delegates` tells it
    return [replace(row, by_rules=sum(p.delegated_operators for p in told))], computed({file.stem: file})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    which = commands.add_parser("agreement")
    which.add_argument("--bundle", type=Path)
    what = commands.add_parser("gpu")
    what.add_argument("bundle", type=Path)
    large = commands.add_parser("full-size")
    large.add_argument("--preset", default="0.6b")
    large.add_argument("--side", type=int, default=320)
    large.add_argument("-o", "--output", type=Path, help="keep what is made (2 GB) here")
    for command in (which, what, large):
        command.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found: list[Agreement] = []
    made: list[Computed] = []
    if given.command == "agreement":
        found = agreement(given.bundle)
    elif given.command == "gpu":
        made = computed({file.stem: file for file in sorted(given.bundle.glob("*.tflite"))})
    else:
        with tempfile.TemporaryDirectory() as scratch:
            found, made = full_size(given.preset, given.side, given.output or Path(scratch))
    if given.json:
        report.print_json({"operators": found, "computed": made})
        return 0
    if found:
        print_agreement(found)
    if made:
        print_computed(made)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgeError as error:
        report.error(error.message, error.remedy)
        sys.exit(error.exit_code)
