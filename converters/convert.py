"""From a checkpoint to a bundle: the whole way, one stage after another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from converters import estimate, host
from converters.bundle_writer import Results, build_manifest, misses, write_bundle
from converters.npu import need_sdk
from converters.options import ConvertOptions, Plan, plan
from converters.pipeline import need_convert_extra, read_stage, stages_of
from converters.samples import photos_of
from converters.stages import (
    StageEvent,
    StageFinished,
    StageResult,
    StageStarted,
    finished,
    forget,
    run_stages,
)
from converters.workspace import workspace
from hypervl.config import HyperVLConfig
from hypervl.text_files import read_json
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import CheckpointError, EdgeError, UsageError
from rpi_runtime.footprint import Footprint, measure_into
from rpi_runtime.manifest import MANIFEST_FILE, Embedding, Manifest, Parity


@dataclass(frozen=True)
class NeedsStated:
    """Told before the first stage that costs anything."""

    needs: estimate.Needs


Event = StageEvent | NeedsStated


@dataclass(frozen=True)
class ComponentReport:
    """Of one graph: a component's own, or its variant for a delegate."""

    component: str
    delegate: str  # "cpu", "gpu", "nnapi:30"
    recipe: str
    bytes: int
    bits_per_weight: float
    worst_cosine: float
    passed: bool
    seconds: float  # export, quantise and check together
    peak_bytes: int  # resident, of the largest of them
    parity: tuple[Parity, ...]


@dataclass(frozen=True)
class TableReport:
    """The token table, which is no graph."""

    dtype: str
    bytes: int  # with scales
    in_head: bool  # lies in the decoder graph, whose head it is
    bits_per_weight: float
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class ConvertReport:
    bundle: Path
    model: str
    components: tuple[ComponentReport, ...]
    embedding: TableReport | None
    bundle_bytes: int
    seconds: float  # of this run
    peak_bytes: int
    stages: tuple[StageResult, ...]
    footprint: Footprint | None  # of the graphs here; None where it was not measured
    misses: tuple[str, ...]  # a line per signature that is further from PyTorch than its recipe allows

    @property
    def passed(self) -> bool:
        return not self.misses


def convert(options: ConvertOptions, on_event: Callable[[Event], None] = lambda event: None) -> ConvertReport:
    """Makes the bundle, or resumes making it. A parity miss is in the report and in the bundle's manifest.

    Raises an `EdgeError` for whatever stands in the way. Then, and on KeyboardInterrupt, the bundle that was
    there before stays as it was.
    """
    started = time.monotonic()
    need_convert_extra()
    checkpoint = options.checkpoint.resolve()
    config = _config(checkpoint)
    decided = plan(options, config)
    photos = photos_of(options.calibration) if options.calibration else ()
    if photos and not any(v.recipe.needs_calibration for v in decided.variants):
        raise UsageError(
            f"--calibration {options.calibration} is given, and no recipe looks at it",
            "Leave it out, or choose w8a8 for vision or vrc.",
        )
    for soc in {v.target for v in decided.variants if v.target.soc}:
        need_sdk(soc.vendor, soc.soc)
    with workspace(options.bundle) as space:
        reading = read_stage(checkpoint)
        forget(reading, space.folder)  # the checkpoint may have changed since
        known = run_stages([reading], space.folder, on_event)[reading.name].value
        stages = stages_of(decided, checkpoint, known, photos)
        todo = [stage for stage in stages if finished(stage, space.folder) is None]
        needed = estimate.needs(todo, decided, known["parameters"], host.resources(space.folder))
        on_event(NeedsStated(needed))
        estimate.require(needed)
        results = run_stages(stages, space.folder, on_event, more=int(options.measure))
        manifest = build_manifest(decided, config, known, results, space.new_bundle)
        bundle = write_bundle(space, manifest)
        footprint = _measure(bundle, len(stages) + 1, on_event) if options.measure else None
        space.publish()
    return _report(space.bundle, decided, manifest, results, footprint, time.monotonic() - started)


def _measure(bundle: Bundle, number: int, on_event: Callable[[Event], None]) -> Footprint | None:
    """None where it cannot be measured: the bundle is good all the same."""
    name, started = "measure memory", time.monotonic()
    on_event(StageStarted(name, number, number))
    footprint = None
    with contextlib.suppress(EdgeError):
        footprint = measure_into(bundle)
    peak = 0
    if footprint:
        peak = footprint.runtime.total + footprint.libraries + max(footprint.graphs().values())
    seconds = round(time.monotonic() - started, 3)
    on_event(StageFinished(number, number, StageResult(name, seconds, peak, 0, {}, None, resumed=False)))
    return footprint


def _config(checkpoint: Path) -> HyperVLConfig:
    if (checkpoint / MANIFEST_FILE).is_file() and not (checkpoint / "config.json").is_file():
        raise CheckpointError(
            f"{checkpoint}: is a bundle, not a checkpoint", "Name the checkpoint that it was converted from."
        )
    if checkpoint.is_file():
        raise CheckpointError(f"{checkpoint}: is a file, not a checkpoint folder", "Name the folder.")
    if not checkpoint.is_dir():
        raise CheckpointError(f"{checkpoint}: no such folder", "Build a checkpoint with `toolkit assemble`.")
    return HyperVLConfig.from_dict(read_json(checkpoint / "config.json"))


def _report(
    bundle: Path,
    decided: Plan,
    manifest: Manifest,
    results: Results,
    footprint: Footprint | None,
    seconds: float,
) -> ConvertReport:
    components = []
    for variant in decided.variants:
        names = (f"{kind} {variant.name}" for kind in ("export", "quantize", "check", "compile"))
        own = [results[name] for name in names if name in results]  # an export may be shared
        component = next(c for c in manifest.components if c.name == variant.component)
        graphs = {graph.delegate: graph for graph in component.graphs}
        graph = graphs[str(variant.target)]
        components.append(
            ComponentReport(
                component=component.name,
                delegate=graph.delegate,
                recipe=graph.recipe,
                bytes=graph.file.bytes,
                bits_per_weight=graph.bits_per_weight,
                worst_cosine=min(p.cosine for p in graph.parity),
                passed=all(p.passed for p in graph.parity),
                seconds=round(sum(r.seconds for r in own), 3),
                peak_bytes=max(r.peak_bytes for r in own),
                parity=graph.parity,
            )
        )
    return ConvertReport(
        bundle=bundle,
        model=manifest.model,
        components=tuple(components),
        embedding=_table_report(manifest.embedding, manifest.table_is_head, results["embedding"])
        if manifest.embedding
        else None,
        bundle_bytes=sum(f.bytes for f in manifest.files()) + (bundle / MANIFEST_FILE).stat().st_size,
        seconds=round(seconds, 3),
        peak_bytes=max(r.peak_bytes for r in results.values()),
        stages=tuple(results.values()),
        footprint=footprint,
        misses=misses(manifest.components),
    )


def _table_report(table: Embedding, in_head: bool, result: StageResult) -> TableReport:
    return TableReport(
        dtype=table.dtype,
        bytes=table.stored_bytes,
        in_head=in_head,
        bits_per_weight=round(8 * table.stored_bytes / (table.rows * table.columns), 3),
        seconds=result.seconds,
        peak_bytes=result.peak_bytes,
    )
