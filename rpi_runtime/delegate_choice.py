"""What each graph of a bundle runs on here: delegates are tried in order, and the CPU is what is left.

A delegate is trusted when it computed the component's sample as PyTorch did (`delegate_trial`). The verdict
is kept in the cache folder, for this machine, this runtime and this graph, so that a trial is made once.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from delegates import AUTO, CPU, EXTERNAL
from delegates.cpu import cpu_features
from delegates.targets import DELEGATES
from rpi_runtime.backends.base import Accelerator, DelegateUse, Graph
from rpi_runtime.backends.external import ExternalDelegate, check_once
from rpi_runtime.backends.fallback import FallbackGraph
from rpi_runtime.backends.select import choose, open_graph
from rpi_runtime.bundle import Bundle
from rpi_runtime.delegate_trial import Verdict, Way, try_out
from rpi_runtime.errors import (
    BundleError,
    CheckFailed,
    DelegateFailed,
    EdgeError,
    ResourceError,
    UsageError,
    nearest,
)
from rpi_runtime.manifest import Component
from rpi_runtime.targets import parse_target

_log = logging.getLogger(__name__)


class DelegateChoice:
    """Opens the graphs of `bundle` on what `asked` names: "cpu", "auto" (the bundle's own order), a delegate,
    or "external:PATH". Anything that does not work is told, and the CPU has the graph instead; with
    `require_whole`, a graph of which the CPU would run anything is a `CheckFailed`.

    Raises `UsageError` for a delegate that is unknown, `BundleError` where no graph was made for the one that
    is asked for, and what is wrong with an external library.
    """

    def __init__(
        self,
        bundle: Bundle,
        asked: str,
        *,
        require_whole: bool,
        threads: int,
        backend: str,
        folder: Path | None,
        verbose: bool,
        on_trial: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.uses: dict[str, DelegateUse] = {}
        self._bundle = bundle
        self._asked = asked
        self._require_whole = require_whole
        self._threads = threads
        self._backend = backend
        self._folder = folder
        self._verbose = verbose
        self._on_trial = on_trial
        self._is_new = False  # the last verdict: it was not known before
        self._marks: set[Path] = set()  # of graphs that run on a delegate now
        atexit.register(self.close)
        self._external: ExternalDelegate | None = None
        self._broken = ""  # why the external delegate works nowhere
        if asked.startswith(EXTERNAL):
            self._external = ExternalDelegate.parse(asked)
            try:
                check_once(self._external, choose(backend, external=True))
            except ResourceError as error:
                if require_whole:
                    raise
                self._broken = error.message
                _log.warning("everything runs on the CPU: %s", error.message)
        elif asked not in (AUTO, CPU):
            name = asked if asked in DELEGATES else _known(asked)
            made_for = {of.delegate for c in bundle.manifest.components for of in c.graphs}
            if not any(_is_for(delegate, name) for delegate in made_for):
                raise BundleError(
                    f"{bundle.folder}: has no graph for {asked} (it holds: {', '.join(sorted(made_for))})",
                    f"Convert again with --delegate cpu+{asked}.",
                )

    def open(self, name: str, on_cpu: Callable[[], Graph], weight_cache: Path | None) -> Graph:
        """The graph of component `name`; `on_cpu` opens the component's own graph there."""
        component = self._bundle.manifest.component(name)
        assert component is not None
        passed_over = [self._broken] if self._broken else []
        dead: set[str] = set()  # delegates that opened nothing
        for way in self._ways(component):
            if way.delegate in dead:
                continue
            verdict = self._verdict(component, way)
            if not verdict.refusal and not verdict.is_whole and (self._require_whole or way.only_whole):
                taken = verdict.delegated or "only some"
                verdict = replace(verdict, refusal=f"it takes {taken} of the operators")
            if not verdict.refusal:
                try:
                    graph = self._opened(component, way, verdict, weight_cache)
                except EdgeError as error:
                    verdict = replace(verdict, refusal=error.message)
                else:
                    whole = verdict.is_whole
                    use = DelegateUse(name, str(way), whole, verdict.delegated, tuple(passed_over))
                    self.uses[name] = use
                    return graph if self._require_whole else self._with_fallback(name, graph, way, on_cpu)
            if not verdict.cosine:
                dead.add(way.delegate)
            passed_over.append(f"{way}: {verdict.refusal}")
            if self._asked != AUTO or self._is_new:  # once on this machine
                _log.warning("%s does not run on %s: %s", name, way, verdict.refusal)
        if self._require_whole and self._asked != CPU:
            asked = "a delegate" if self._asked == AUTO else self._asked
            tried = "; ".join(passed_over) or f"it has no graph for {asked}"
            raise CheckFailed(
                f"{name} does not run whole on a delegate: {tried}",
                "Leave --require-full-delegation out, or convert for what this device has; "
                "`toolkit delegates` says what falls back and why.",
            )
        self.uses[name] = DelegateUse(name, CPU, True, passed_over=tuple(passed_over))
        return on_cpu()

    def _ways(self, component: Component) -> Iterator[Way]:
        """In the order in which they are tried."""
        if self._broken:
            return
        if self._external is not None:
            # A library that has NNAPI, or integer hardware, behind it takes what was made for NNAPI whole.
            for variant in component.variants:
                if _is_for(variant.delegate, "nnapi"):
                    yield Way(variant.delegate, external=self._external, only_whole=True)
            yield Way(component.delegate, external=self._external)
            return
        graphs = component.graphs
        for graph in (*graphs[1:], graphs[0]):
            target = graph.delegate.partition(":")[0]
            if target == CPU or (self._asked != AUTO and not _is_for(graph.delegate, self._asked)):
                continue
            if target == "gpu":  # float16 is faster; where it is too coarse, float32 may do
                yield Way(graph.delegate, Accelerator("gpu"))
                yield Way(graph.delegate, Accelerator("gpu", float32=True))
            elif target == "npu":
                yield Way(graph.delegate, Accelerator("npu"))
            elif self._asked != AUTO:  # which no runtime here brings
                yield Way(graph.delegate)

    def _verdict(self, component: Component, way: Way) -> Verdict:
        if way.accelerator is None and way.external is None:
            return Verdict(
                f"this runtime brings no {way.delegate.partition(':')[0]} delegate; name its library: "
                "--delegate external:PATH"
            )
        file = self._file(component, way)
        self._is_new = False
        if file is not None and _died(file):
            found = Verdict("a process died while it ran on it")
            _keep(found, file)
            return found
        kept = _read(file) if file else None
        if kept is not None:
            return kept
        self._is_new = True
        self._on_trial(f"{component.name} on {way}")
        found = self._tried(component, way)
        opened = found.cosine != 0
        if found.refusal and not opened and way.accelerator is not None and not self._require_whole:
            part = replace(way, accelerator=replace(way.accelerator, alone=False))
            found = replace(self._tried(component, part), is_whole=False)
        if file is not None:
            _keep(found, file)
        return found

    def close(self) -> None:
        """The graphs are closed, or the process ends as it should: none of them took it down."""
        for mark in self._marks:
            mark.unlink(missing_ok=True)
        self._marks.clear()
        atexit.unregister(self.close)

    def _tried(self, component: Component, way: Way) -> Verdict:
        return try_out(self._bundle, component.name, way, threads=self._threads, backend=self._backend)

    def _opened(self, component: Component, way: Way, verdict: Verdict, weight_cache: Path | None) -> Graph:
        if way.accelerator is not None:
            way = replace(way, accelerator=replace(way.accelerator, alone=verdict.is_whole))
        path = self._bundle.path(component.name, way.delegate)
        if (file := self._file(component, replace(way, accelerator=_as_tried(way)))) is not None:
            with contextlib.suppress(OSError):
                mark = file.with_suffix(f".{os.getpid()}.running")
                mark.write_text(_boot())
                self._marks.add(mark)
        sha256 = next(g.file.sha256 for g in component.graphs if g.delegate == way.delegate)
        return open_graph(
            path,
            backend=self._backend,
            threads=self._threads,
            weight_cache=weight_cache,
            verbose=self._verbose,
            sha256=sha256,
            delegate=way.external,
            accelerator=way.accelerator,
        )

    def _with_fallback(self, name: str, graph: Graph, way: Way, on_cpu: Callable[[], Graph]) -> Graph:
        def failed(error: DelegateFailed) -> None:
            _log.warning("%s goes on on the CPU: %s", name, error.message)
            over = (*self.uses[name].passed_over, f"{way}: {error.message}")
            self.uses[name] = DelegateUse(name, CPU, True, passed_over=over)

        return FallbackGraph(graph, on_cpu, failed)

    def _file(self, component: Component, way: Way) -> Path | None:
        """Where the verdict is kept."""
        if self._folder is None:
            return None
        graph = next(g for g in component.graphs if g.delegate == way.delegate)
        runtime, cpu = choose(self._backend), cpu_features()
        library = ""
        if way.external is not None:
            status = way.external.path.stat()
            library = f"{way.external} {status.st_size} {status.st_mtime_ns}"
        told = [
            *(graph.file.sha256, component.sample.sha256, graph.least_cosine, str(way), library),
            *(runtime.package, runtime.version, platform.release(), cpu.machine, sorted(cpu.names)),
            *(_drivers(way), self._require_whole),
        ]
        return self._folder / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]}.verdict"


def _drivers(way: Way) -> list[str]:
    """What changes when a driver is installed: a delegate that did not open may open then."""
    kind = way.accelerator.name if way.accelerator else ""
    if kind == "gpu":
        variables = ("VK_ICD_FILENAMES", "VK_DRIVER_FILES", "LD_LIBRARY_PATH")
        folders = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/dev/dri")
        loaders = sorted(map(str, Path("/usr/lib").glob("*/libvulkan.so.1")))
        listed = [str(file) for folder in folders for file in sorted(Path(folder).glob("*"))]
        return [*(os.environ.get(name, "") for name in variables), *loaders, *listed]
    if kind == "npu":
        spec = importlib.util.find_spec("openvino")
        return [str(spec.origin) if spec else "", os.environ.get("LD_LIBRARY_PATH", "")]
    return []


def _known(asked: str) -> str:
    """The delegate of a target; `UsageError` with what there is."""
    name = asked.partition(":")[0]
    if "=" in name:
        raise UsageError(
            f"delegate {asked!r}: what runs is chosen for all graphs",
            "Components are for convert --delegate.",
        )
    if name not in DELEGATES:
        raise nearest(asked, (AUTO, *DELEGATES, f"{EXTERNAL}PATH"), "delegate")
    return parse_target(asked).delegate


def _as_tried(way: Way) -> Accelerator | None:
    """As its verdict is kept: by what was tried first."""
    return replace(way.accelerator, alone=True) if way.accelerator else None


def _keep(found: Verdict, file: Path) -> None:
    with contextlib.suppress(OSError):  # a full disk: it is tried again next time
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(asdict(found)) + "\n")
        partial.replace(file)


def _died(file: Path) -> bool:
    """Whether a process left its mark beside `file` and is gone, since this machine started: a loss of power
    is no fault of the delegate's."""
    found = False
    for mark in file.parent.glob(f"{file.stem}.*.running"):
        with contextlib.suppress(OSError):
            pid = mark.name.split(".")[-2]
            if Path(f"/proc/{pid}").exists():
                continue
            found |= mark.read_text() == _boot()
            mark.unlink()
    return found


def _boot() -> str:
    """Another text each time that this machine starts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return ""


def _is_for(delegate: str, asked: str) -> bool:
    """Whether a graph for `delegate` ("nnapi:30") is one for what is asked ("nnapi")."""
    return delegate == asked or delegate.startswith(f"{asked}:")


def _read(file: Path) -> Verdict | None:
    """One that is cut, or of another version of ours, counts as none."""
    try:
        return Verdict(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
