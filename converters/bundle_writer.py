"""Turns finished stages into a bundle: the manifest, and the moment it takes its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from converters.options import HEAD, Plan
from converters.options import Variant as PlannedVariant
from converters.pipeline import SCALES_FILE, TABLE_FILES, TEMPLATE_FILE, TOKENIZER_FILE, tool_versions
from converters.stage_worker import write_whole
from converters.stages import StageResult
from converters.workspace import Workspace
from hypervl.config import HyperVLConfig
from hypervl.specs import decoder_spec, image_tokens, vision_spec
from rpi_runtime.bundle import Bundle
from rpi_runtime.manifest import (
    DECODER,
    MANIFEST_FILE,
    SCHEMA_VERSION,
    Component,
    Embedding,
    File,
    Manifest,
    Parity,
    Signature,
    Tensor,
    TextSpec,
    Variant,
    to_json,
)

Results = Mapping[str, StageResult]
_Named = Callable[[str, str, str], File]  # name, stage and output -> the file


def write_bundle(space: Workspace, manifest: Manifest) -> Bundle:
    """Completes the new bundle and has the reader check it."""
    listed = {MANIFEST_FILE, *(f.path for f in manifest.files())}
    for path in space.new_bundle.iterdir():
        if path.name not in listed:  # of an earlier run with other options
            path.unlink()
    write_whole(space.new_bundle / MANIFEST_FILE, to_json(manifest))
    bundle = Bundle.open(space.new_bundle, verify=False)
    for problem in bundle.problems():
        raise problem
    return bundle


def build_manifest(
    plan: Plan, config: HyperVLConfig, known: dict[str, Any], results: Results, folder: Path
) -> Manifest:
    """Everything in it follows from checkpoint, options and tool versions: no time, no host, no path.

    `known` is what `converters.pipeline.read` returned; `folder` holds the bundle's files.
    """

    def file(name: str, stage: str, output: str) -> File:
        return File(name, results[stage].sha256[output], (folder / name).stat().st_size)

    has_template = known["has_chat_template"]
    return Manifest(
        schema_version=SCHEMA_VERSION,
        model=config.name,
        source_sha256=known["fingerprint"],
        tools=tool_versions(),
        components=tuple(_component(name, plan, results, file) for name in plan.components),
        text=TextSpec(
            tokenizer=file(TOKENIZER_FILE, "text files", "tokenizer"),
            chat_template=file(TEMPLATE_FILE, "text files", "chat_template") if has_template else None,
            eos_token_ids=tuple(known["eos_token_ids"]),
            bos_token=known["bos_token"],
            eos_token=known["eos_token"],
            image_tokens=image_tokens(config),
        ),
        decoder=decoder_spec(config.decoder, plan.contexts, plan.prefill_tokens, plan.kv_dtype)
        if DECODER in plan.components
        else None,
        embedding=_embedding(plan, results, file) if DECODER in plan.components else None,
        vision=vision_spec(config, plan.tile_sides) if set(plan.components) != {DECODER} else None,
    )


def _component(name: str, plan: Plan, results: Results, file: _Named) -> Component:
    base, *others = (_graph(v, results, file) for v in plan.variants if v.component == name)
    signatures = results[f"quantize {name}"].value["signatures"]
    return Component(
        name=name,
        file=base.file,
        recipe=base.recipe,
        bits_per_weight=base.bits_per_weight,
        delegate=base.delegate,
        signatures=tuple(
            Signature(s["name"], _tensors(s["inputs"]), _tensors(s["outputs"])) for s in signatures
        ),
        parity=base.parity,
        sample=file(f"{name}.sample.npz", f"check {name}", "sample"),
        least_cosine=base.least_cosine,
        variants=tuple(others),
    )


def _graph(variant: PlannedVariant, results: Results, file: _Named) -> Variant:
    name = variant.name
    return Variant(
        file=file(f"{name}.tflite", f"{'compile' if variant.target.soc else 'quantize'} {name}", "graph"),
        recipe=variant.recipe.name,
        bits_per_weight=results[f"quantize {name}"].value["bits_per_weight"],
        delegate=str(variant.target),
        parity=parities(results[f"check {name}"]),
        least_cosine=min(variant.recipe.limits.cosine, variant.target.description.cosine),
    )


def parities(checked: StageResult) -> tuple[Parity, ...]:
    """What a `check` stage found."""
    return tuple(Parity(**p) for p in checked.value)


def graphs_of(components: Iterable[Component]) -> Iterator[tuple[str, Component | Variant]]:
    """Every graph by what it is called: "vision_base", "vision_base for gpu"."""
    for component in components:
        yield component.name, component
        yield from ((f"{component.name} for {v.delegate}", v) for v in component.variants)


def misses(components: Iterable[Component]) -> tuple[str, ...]:
    """One line per signature that missed its threshold: where, what was found, what was asked."""
    return tuple(
        f"{name} {p.signature}: {_found(p)}, asked was {p.threshold}"
        for name, graph in graphs_of(components)
        for p in graph.parity
        if not p.passed
    )


def _found(parity: Parity) -> str:
    values: list[tuple[str, Any]] = [
        ("cosine", parity.cosine),
        ("SNR dB", parity.snr_db),
        ("KL", parity.kl_divergence),
        ("top-1 agreement", parity.top1_agreement),
    ]
    return ", ".join(f"{name} {value:.4g}" for name, value in values if value is not None)


def _tensors(entries: list[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(e["name"], tuple(e["shape"]), e["dtype"]) for e in entries)


def _embedding(plan: Plan, results: Results, file: _Named) -> Embedding:
    found = results["embedding"]
    if plan.embedding == HEAD:
        lies_in = file(f"{DECODER}.tflite", f"quantize {DECODER}", "graph")
    else:
        lies_in = file(TABLE_FILES[plan.embedding], "embedding", "table")
    scales = file(SCALES_FILE, "embedding", "scales") if "scales" in found.sha256 else None
    return Embedding(file=lies_in, scales=scales, **found.value)
