"""Where the operators of a bundle or a .tflite file run on a target, and whether that is good enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from delegates.graph import Subgraph
from delegates.npu import JUDGED
from delegates.placement import PlacedOperator, Placement, place
from delegates.rules import Refusal
from delegates.targets import Target, verdicts
from delegates.targets import faults as faults_of
from rpi_runtime.backends.xnnpack import taken
from rpi_runtime.errors import BundleError, ResourceError, UsageError, nearest
from rpi_runtime.manifest import MANIFEST_FILE
from rpi_runtime.tflite_file import read


@dataclass(frozen=True)
class Placements:
    path: str
    target: str  # as it is asked for
    title: str  # the same in words
    warning: str  # what every user of the target should know
    rules: str  # where they come from
    elsewhere: str  # what runs what falls back
    placements: tuple[Placement, ...]

    def graphs(self) -> dict[str, list[Placement]]:
        """By component or file."""
        found: dict[str, list[Placement]] = {}
        for placement in self.placements:
            found.setdefault(placement.graph, []).append(placement)
        return found


@dataclass(frozen=True)
class Alike:
    """Fallbacks for the same kind of reason."""

    name: str  # of the operator; of several: "MUL 69, ADD 33"
    count: int
    multiply_adds: int
    operators: dict[str, tuple[int, ...]]  # subgraph -> their numbers
    reasons: tuple[str, ...]  # of the first of them; those of others differ in their values
    fixes: tuple[str, ...]

    @property
    def is_left_over(self) -> bool:
        """The delegate takes them, but not their partitions, which are too many."""
        return not self.reasons


@dataclass(frozen=True)
class Demands:
    """What a placement must be like; None: not asked."""

    fallbacks: int | None = None  # operators on the CPU, at most
    partitions: int | None = None  # of the delegate, at most, in each subgraph
    fallback_share: float | None = None  # of the multiply-adds of each subgraph, at most
    faults: int | None = None  # operators that the delegate is known to compute wrongly, at most


def placements_of(
    path: Path, target: Target, only: str = "", most_partitions: int | None = None
) -> Placements:
    """Of all graphs of the bundle or the file at `path`; `only` names one component of a bundle, and
    `most_partitions` is what the delegate keeps, if not its own number. Raises `UsageError` where there is
    neither, and `BundleError`."""
    if target.delegate == "npu" and target.vendor not in JUDGED:
        raise ResourceError(
            f"which operators {target.title} takes, the vendor's SDK alone knows",
            f"Known are: {', '.join(f'npu:{vendor}' for vendor in JUDGED)}.",
        )
    most = target.description.most_partitions if most_partitions is None else most_partitions
    graphs = _graphs(path, only, target)
    found = [placed for name, file in graphs for placed in _placed(name, file, target, most)]
    description = target.description
    return Placements(
        path=str(path),
        target=str(target),
        title=target.title,
        warning=description.warning,
        rules=description.source,
        elsewhere="TFLite's own kernels" if target.delegate == "cpu" else "the CPU",
        placements=tuple(found),
    )


def alike(placements: Sequence[Placement]) -> list[Alike]:
    """Fallbacks of all `placements`, those of the same operator with the same remedies together, and all that
    the delegate takes but for their partitions; the ones that compute most come first."""
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[str, PlacedOperator]]] = {}
    for placement in placements:
        for fallback in placement.fallbacks:
            key = fallback.name if fallback.refusals else "", tuple(r.fix for r in fallback.refusals)
            groups.setdefault(key, []).append((placement.subgraph, fallback))
    found = []
    for (name, fixes), members in groups.items():
        numbers: dict[str, list[int]] = {}
        for subgraph, fallback in members:
            numbers.setdefault(subgraph, []).append(fallback.number)
        counts = Counter(fallback.name for _, fallback in members).most_common()
        found.append(
            Alike(
                name=name or ", ".join(f"{of} {count}" for of, count in counts),
                count=len(members),
                multiply_adds=sum(fallback.multiply_adds for _, fallback in members),
                operators={subgraph: tuple(of) for subgraph, of in numbers.items()},
                reasons=tuple(refusal.reason for refusal in members[0][1].refusals),
                fixes=tuple(dict.fromkeys(fixes)),
            )
        )
    return sorted(found, key=lambda group: (-group.multiply_adds, -group.count, group.name))


def faulty(placements: Sequence[Placement]) -> list[Alike]:
    """Like `alike`, of what the delegate is known to compute wrongly."""
    wrong = [
        replace(
            placement,
            operators=tuple(replace(o, is_delegated=False, refusals=o.faults) for o in placement.faulty),
        )
        for placement in placements
    ]
    return alike(wrong)


def parse_demands(fail_on: Sequence[str], max_fallback_macs: str) -> Demands:
    """Reads `fallback`, `faults`, `partitions:N`, and a share such as `5%` or `0.05`. Raises `UsageError`."""
    fallbacks = partitions = wrong = None
    for text in fail_on:
        name, mark, value = text.partition(":")
        if name not in ("fallback", "faults", "partitions"):
            raise nearest(name, ("fallback", "faults", "partitions:N"), "--fail-on")
        if name != "partitions":
            if mark:
                raise UsageError(f"--fail-on {text}: {name} takes no number", f"Use --fail-on {name}.")
            fallbacks, wrong = (0, wrong) if name == "fallback" else (fallbacks, 0)
        elif not value.isdecimal():
            raise UsageError(
                f"--fail-on {text}: {value!r} is not a number of partitions", "Use for instance partitions:1."
            )
        else:
            partitions = int(value)
    share = _share(max_fallback_macs) if max_fallback_macs else None
    return Demands(fallbacks, partitions, share, wrong)


def misses(found: Placements, demands: Demands) -> Iterator[str]:
    """What of `demands` does not hold, a line each."""
    for placement in found.placements:
        where = f"{placement.graph} {placement.subgraph}".strip()
        on_cpu = len(placement.fallbacks)
        if demands.fallbacks is not None and on_cpu > demands.fallbacks:
            yield f"{where}: {on_cpu} of {len(placement.operators)} operators fall back"
        if demands.partitions is not None and placement.delegated_partitions > demands.partitions:
            yield f"{where}: {placement.delegated_partitions} partition(s), allowed are {demands.partitions}"
        wrong = len(placement.faulty)
        if demands.faults is not None and wrong > demands.faults:
            yield f"{where}: {wrong} operators that {found.title} is known to compute wrongly"
        if demands.fallback_share is not None and placement.fallback_share > demands.fallback_share:
            share, allowed = 100 * placement.fallback_share, 100 * demands.fallback_share
            yield f"{where}: {share:.3g} % of the multiply-adds fall back, allowed are {allowed:g} %"


def _share(text: str) -> float:
    number, percent = text.strip(), text.strip().endswith("%")
    try:
        share = float(number.rstrip("% ")) / (100 if percent else 1)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise UsageError(f"--max-fallback-macs {text!r} is not a share from 0 to 1", "Use 5% or 0.05.")
    return share


def _graphs(path: Path, only: str, target: Target) -> Iterator[tuple[str, Path]]:
    """What they are called, and their files: of each component of a bundle the graph that was made for
    `target`, or its own."""
    if path.is_dir():
        if not (path / MANIFEST_FILE).exists():
            raise UsageError(
                f"{path} is no bundle: it has no {MANIFEST_FILE}", "Name a bundle folder or a .tflite file."
            )
        from rpi_runtime.bundle import Bundle

        bundle = Bundle.open(path)
        names = [component.name for component in bundle.manifest.components]
        if only and only not in names:
            raise nearest(only, names, "component of this bundle")
        for component in bundle.manifest.components:
            if only in ("", component.name):
                made_for = min((g.delegate for g in component.graphs), key=partial(_distance, target))
                title = component.name if made_for == "cpu" else f"{component.name} for {made_for}"
                yield title, bundle.path(component.name, made_for)
        return
    if not path.exists():
        raise UsageError(f"{path} does not exist", "Name a bundle folder or a .tflite file.")
    if only:
        raise UsageError(f"{path} is one graph, not a bundle", "Leave --component out.")
    yield path.name, path


def _distance(target: Target, delegate: str) -> int:
    """Of a graph that was made for `delegate` from one for `target`."""
    if delegate == str(target):
        return 0
    return 1 if delegate.partition(":")[0] == target.delegate else 2


def _placed(name: str, file: Path, target: Target, most: int | None) -> Iterator[Placement]:
    graph = read(file, details=True)
    judge: Callable[[int, Subgraph], dict[int, tuple[Refusal, ...]]]
    if target.delegate == "cpu":
        judge = partial(_of_xnnpack, taken(file)[1])
    else:
        judge = lambda number, subgraph: verdicts(subgraph, target)  # noqa: E731
    names = {number: s.name for number, s in zip(graph.signature_subgraphs, graph.signatures, strict=True)}
    for number, subgraph in enumerate(graph.subgraphs):
        title = names.get(number) or (f"subgraph {number}" if len(graph.subgraphs) > 1 else "")
        try:
            yield place(
                name, title, subgraph, judge(number, subgraph), most, partial(faults_of, target=target)
            )
        except ValueError as error:  # operators that wait for each other
            raise BundleError(f"{file} is damaged: {error}", "Export it again.") from None


def _of_xnnpack(
    taken_here: Sequence[frozenset[int]], number: int, subgraph: Subgraph
) -> dict[int, tuple[Refusal, ...]]:
    """As the runtime itself has it, which gives no reasons."""
    left = Refusal(
        "XNNPACK leaves it to a kernel of TFLite's own",
        "It runs all the same: only speed is at stake.",
    )
    return {n: () if n in taken_here[number] else (left,) for n in range(len(subgraph.operators))}
