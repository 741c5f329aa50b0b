"""`toolkit inspect`: what is inside a bundle, a .tflite file or a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rpi_runtime.errors import CheckFailed
from rpi_runtime.manifest import VRC
from toolkit import report
from toolkit.commands import options as opt

if TYPE_CHECKING:
    from rpi_runtime.manifest import Component, Signature, Tensor
    from toolkit.inspection import BundleInspection, CheckpointInspection, GraphInspection


def inspect(
    path: Annotated[
        Path, typer.Argument(help="Bundle folder, .tflite file or checkpoint folder.", show_default=False)
    ],
    device: opt.Device = None,
    as_json: opt.Json = False,
) -> None:
    """Show what is inside a bundle, a .tflite file or a checkpoint.

    Reads structure only, no weights, and needs neither PyTorch nor a TFLite runtime.
    """
    from toolkit.inspection import BundleInspection, GraphInspection, look_at

    found = look_at(path)
    if as_json:
        report.print_json(found)
    elif isinstance(found, BundleInspection):
        _print_bundle(found)
    elif isinstance(found, GraphInspection):
        _print_graph(found)
    else:
        _print_checkpoint(found)
    if isinstance(found, BundleInspection) and found.problems:
        raise CheckFailed(
            "the bundle is not whole:\n  " + "\n  ".join(found.problems),
            "Copy it again; `toolkit verify` checks every byte.",
        )


def _print_bundle(bundle: BundleInspection) -> None:
    manifest = bundle.manifest
    rows = [row for component in manifest.components for row in _component_rows(component)]
    if manifest.embedding:
        table = manifest.embedding
        bits = 8 * table.stored_bytes / (table.rows * table.columns)
        size = "in decoder" if manifest.table_is_head else _mb(table.stored_bytes)
        rows.append(("embedding", size, table.dtype, f"{bits:.1f}", "", "", ""))
    columns = ("component", "MB", "recipe", "bits", "delegate", "signatures", "cosine")
    report.table(
        f"{bundle.path}: bundle, {_mb(bundle.bytes)} MB", columns, rows, right=("MB", "bits", "cosine")
    )
    report.pairs("", _bundle_pairs(bundle))


def _component_rows(component: Component) -> Iterator[tuple[str, ...]]:
    """One for each of its graphs."""
    from toolkit.inspection import worst

    name, signatures = component.name, _compact([signature.name for signature in component.signatures])
    for graph in component.graphs:
        furthest = worst(graph.parity)
        cosine = "" if furthest is None else f"{furthest.cosine:.5f}" + ("" if furthest.passed else " !")
        bits = f"{graph.bits_per_weight:.1f}"
        yield name, _mb(graph.file.bytes), graph.recipe, bits, graph.delegate, signatures, cosine
        name = signatures = ""


def _compact(names: list[str]) -> str:
    """`tile_448 tile_320 decode` becomes `tile_448, 320 decode`."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stem, mark, number = name.rpartition("_")
        stems.setdefault(stem + mark if number.isdigit() else name, []).append(
            number if number.isdigit() else ""
        )
    return " ".join(stem + ", ".join(numbers) for stem, numbers in stems.items())


def _bundle_pairs(bundle: BundleInspection) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    vision, decoder, text = manifest.vision, manifest.decoder, manifest.text
    yield "bits, cosine", "per weight; to PyTorch, of the signature furthest from it (! if too far)"
    yield "model", manifest.model
    yield "made with", ", ".join(f"{name} {version}" for name, version in sorted(manifest.tools.items()))
    yield (
        "tokenizer",
        f"{text.tokenizer.path}, {_mb(text.tokenizer.bytes)} MB"
        + (", with a chat template" if text.chat_template else ", without a chat template"),
    )
    if vision is not None:
        tokens = bundle.tile_tokens.items()
        yield "visual tokens", ", ".join(f"{count} at {side} px" for side, count in tokens)
        thumbnail = " and a thumbnail" if vision.thumbnail else ""
        yield "tiles", f"at most {vision.max_tiles}{thumbnail}: {bundle.most_visual_tokens:,} visual tokens"
        scales = ", ".join(f"{scale:g}" for scale in vision.scales)
        if manifest.component(VRC) is not None:
            yield "routing", f"scales {scales}, chosen on {vision.vrc_side} px"
        else:
            yield "routing", f"none without the vrc: run it with --route fixed:<scale>, one of {scales}"
    if decoder is not None:
        prefill = ", ".join(str(n) for n in decoder.prefill_tokens)
        yield "context", f"{decoder.context_tokens:,} tokens, prefilled in chunks of {prefill}"
        each = decoder.kv_bytes_per_token / 1000
        yield (
            "KV cache",
            f"{decoder.kv_dtype}, {_mb(bundle.kv_cache_bytes)} MB when full, {each:,.1f} kB per token",
        )
    if bundle.footprint is not None:
        taken = bundle.footprint
        graphs = ", ".join(f"{name} {needed / 1e6:.1f}" for name, needed in taken.graphs().items())
        yield "memory, MB", f"{graphs}; measured on {taken.machine}, {taken.threads} threads"


def _print_graph(graph: GraphInspection) -> None:
    title = f"{graph.path}: .tflite, {_mb(graph.bytes)} MB"
    rows = [row for signature in graph.signatures for row in _signature_rows(signature)]
    if rows:
        report.table(title, ("signature", "", "tensor", "shape", "dtype"), rows)
    else:
        report.pairs(title, [("signatures", "none")])
    report.table(
        "Constants",
        ("dtype", "tensors", "numbers", "MB"),
        [
            *((c.dtype, f"{c.tensors:,}", f"{c.numbers:,}", _mb(c.bytes)) for c in graph.constants),
            ("(graph, names, scales)", "", "", _mb(graph.structure_bytes)),
        ],
        right=("tensors", "numbers", "MB"),
    )
    counts = [*graph.operators.items(), ("(all)", sum(graph.operators.values()))]
    report.table("Operators", ("operator", "count"), [(n, f"{c:,}") for n, c in counts], right=("count",))
    report.pairs("", [("written by", graph.description), ("metadata", ", ".join(graph.metadata) or "none")])


def _signature_rows(signature: Signature) -> Iterator[tuple[str, ...]]:
    """One row per kind of tensor: `kv_k_0` to `kv_k_27` with one shape become `kv_k_0..27`."""
    name = signature.name
    for direction, tensors in (("in", signature.inputs), ("out", signature.outputs)):
        for label, tensor in _alike(tensors):
            yield name, direction, label, " x ".join(map(str, tensor.shape)) or "scalar", tensor.dtype
            name = ""


def _alike(tensors: tuple[Tensor, ...]) -> Iterator[tuple[str, Tensor]]:
    groups: dict[tuple[object, ...], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((re.sub(r"\d+$", "", tensor.name), tensor.shape, tensor.dtype), []).append(tensor)
    for (stem, *_), group in groups.items():
        numbers = sorted(int(tensor.name[len(str(stem)) :] or 0) for tensor in group)
        consecutive = len(group) > 1 and numbers == list(range(numbers[0], numbers[0] + len(group)))
        if consecutive:
            yield f"{stem}{numbers[0]}..{numbers[-1]}", group[0]
        else:
            yield from ((tensor.name, tensor) for tensor in group)


def _print_checkpoint(checkpoint: CheckpointInspection) -> None:
    rows = [
        (
            part.name,
            f"{part.parameters:,}",
            ", ".join(part.dtypes) or "-",
            _mb(part.bytes),
            part.shape if part.tensors else "no tensors: this part is missing",
        )
        for part in checkpoint.parts
    ]
    total = sum(part.parameters for part in checkpoint.parts)
    report.table(
        f"{checkpoint.path}: checkpoint of {checkpoint.name}, {total:,} parameters",
        ("part", "parameters", "dtype", "MB", "shape"),
        rows,
        right=("parameters", "MB"),
    )
    report.pairs("", [
        ("tile sides", ", ".join(f"{side} px" for side in checkpoint.tile_sides)),
        ("tiles", f"at most {checkpoint.max_tiles}"),
        ("files", ", ".join(f"{name} {_size(size)}" for name, size in checkpoint.files.items())),
    ])  # fmt: skip


def _size(count_bytes: int) -> str:
    if count_bytes >= 1e6:
        return report.megabytes(count_bytes)
    return f"{count_bytes / 1e3:.1f} kB" if count_bytes >= 1e3 else f"{count_bytes} B"


def _mb(count_bytes: int) -> str:
    """Decimal megabytes, finer where there are few."""
    return f"{count_bytes / 1e6:,.1f}" if count_bytes >= 1e6 else f"{count_bytes / 1e6:.3f}"
