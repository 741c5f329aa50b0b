"""Is a bundle still what convert made, and is it still as close to PyTorch as it says?"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from converters import estimate, host
from converters.bundle_writer import misses, parities
from converters.options import HEAD, Plan, Variant
from converters.pipeline import check_stage, need_convert_extra, read_stage, shapes_for
from converters.recipes import parse_recipes
from converters.stages import StageEvent, StageFailed, run_stages
from rpi_runtime.bundle import Bundle
from rpi_runtime.errors import CheckpointError
from rpi_runtime.manifest import MANIFEST_FILE, Component, Manifest, Parity
from rpi_runtime.manifest import Variant as ManifestVariant
from rpi_runtime.targets import parse_target


@dataclass(frozen=True)
class ParityRow:
    """One signature: what the manifest recorded, and what was found now, if it was repeated."""

    component: str
    delegate: str
    recipe: str
    recorded: Parity
    repeated: Parity | None


@dataclass(frozen=True)
class VerifyReport:
    bundle: Path
    model: str
    files: int
    bytes: int
    against: Path | None
    parity: tuple[ParityRow, ...]
    problems: tuple[str, ...]  # a line each: a changed file, a broken graph, a parity miss

    @property
    def passed(self) -> bool:
        return not self.problems


def verify(
    path: Path, checkpoint: Path | None = None, on_event: Callable[[StageEvent], None] = lambda event: None
) -> VerifyReport:
    """Reads every byte of the bundle again; with `checkpoint`, also compares every graph with PyTorch again.

    What is wrong with the bundle is in the report. Raises `BundleError` when there is no bundle to check, and
    `CheckpointError` when `checkpoint` is broken or not the one that the bundle was made from.
    """
    bundle = Bundle.open(path, verify=False)
    manifest = bundle.manifest
    problems = [problem.message for problem in bundle.problems()]
    repeated: dict[str, tuple[Parity, ...]] = {}
    if checkpoint is not None and not problems:  # a damaged graph is not handed to native code
        repeated = _repeat(bundle, checkpoint.resolve(), on_event)
    problems += misses(manifest.components)
    now = [_with(c, repeated) for c in manifest.components if repeated]
    problems += [f"{line} (repeated)" for line in misses(now)]
    files = (*(f.path for f in manifest.files()), MANIFEST_FILE)
    return VerifyReport(
        bundle=path,
        model=manifest.model,
        files=len(files),
        bytes=sum(f.bytes for f in manifest.files()) + (path / MANIFEST_FILE).stat().st_size,
        against=checkpoint,
        parity=tuple(row for c in manifest.components for row in _rows(c, repeated)),
        problems=tuple(problems),
    )


def _repeat(
    bundle: Bundle, checkpoint: Path, on_event: Callable[[StageEvent], None]
) -> dict[str, tuple[Parity, ...]]:
    """Parity of every graph by the name of its variant, each in a process of its own."""
    need_convert_extra()
    manifest, where = bundle.manifest, {"checkpoint": str(checkpoint)}
    work = Path(tempfile.mkdtemp(prefix="hypervl-verify-"))
    keep = False
    try:
        reading = read_stage(checkpoint)
        known = run_stages([reading], work, on_event)[reading.name].value
        _need_source(manifest, known["fingerprint"], checkpoint)
        plan = _plan(manifest)
        stages = {
            variant.name: check_stage(
                variant.name,
                shapes_for(variant.component, plan),
                {"recipe": asdict(variant.recipe)},
                where,
                str(bundle.path(variant.component, str(variant.target)).resolve()),
            )
            for variant in plan.variants
            if not variant.target.soc  # what was compiled runs on its SoC alone
        }
        needed = estimate.needs(list(stages.values()), plan, known["parameters"], host.resources(work))
        estimate.require(needed)
        results = run_stages(list(stages.values()), work, on_event)
        return {name: parities(results[stage.name]) for name, stage in stages.items()}
    except StageFailed:
        keep = True  # the message names the log
        raise
    finally:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)


def _need_source(manifest: Manifest, fingerprint: str, checkpoint: Path) -> None:
    if fingerprint != manifest.source_sha256:
        raise CheckpointError(
            f"{checkpoint} is not the checkpoint that this bundle was made from "
            f"(sha256 {fingerprint[:12]}..., the manifest names {manifest.source_sha256[:12]}...)",
            "Name the right checkpoint, or convert again.",
        )


def _plan(manifest: Manifest) -> Plan:
    """The plan that the bundle was made by; `UsageError` for a recipe that this version does not know."""
    decoder, vision = manifest.decoder, manifest.vision
    variants = tuple(
        Variant(
            c.name,
            parse_target(graph.delegate),
            parse_recipes(f"{c.name}={graph.recipe}")[c.name],
            graph is c,
        )
        for c in manifest.components
        for graph in c.graphs
    )
    return Plan(
        variants=variants,
        tile_sides=vision.tile_sides if vision else (),
        prefill_tokens=decoder.prefill_tokens if decoder else (),
        contexts=decoder.contexts if decoder else (),
        kv_dtype=decoder.kv_dtype if decoder else "",
        embedding=_embedding(manifest),
    )


def _embedding(manifest: Manifest) -> str:
    if manifest.table_is_head:
        return HEAD
    table = manifest.embedding
    return "fp16" if table and table.dtype == "float16" else "int8"


def _named(component: Component) -> Iterator[tuple[str, Component | ManifestVariant]]:
    """Its graphs by the names of their variants."""
    yield component.name, component
    for variant in component.variants:
        yield f"{component.name}.{parse_target(variant.delegate).slug}", variant


def _with(component: Component, repeated: Mapping[str, tuple[Parity, ...]]) -> Component:
    """`component` with what was found now."""
    base, *others = (repeated.get(name, graph.parity) for name, graph in _named(component))
    variants = (replace(v, parity=now) for v, now in zip(component.variants, others, strict=True))
    return replace(component, parity=base, variants=tuple(variants))


def _rows(component: Component, repeated: Mapping[str, tuple[Parity, ...]]) -> Iterator[ParityRow]:
    for name, graph in _named(component):
        now = {p.signature: p for p in repeated.get(name, ())}
        for parity in graph.parity:
            found = now.get(parity.signature)
            yield ParityRow(component.name, graph.delegate, graph.recipe, parity, found)
