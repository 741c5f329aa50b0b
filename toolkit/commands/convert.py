"""`toolkit convert`: a bundle of TFLite graphs from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rpi_runtime.errors import CheckFailed, UsageError
from toolkit import report
from toolkit.commands import options as opt
from toolkit.stage_progress import StageProgress

if TYPE_CHECKING:
    from converters.convert import ConvertReport, Event
    from converters.estimate import Needs


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="HyperVL checkpoint folder.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Bundle folder to write or replace.", show_default=False)
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Quantisation: one name for all, or per component: vision=int8,decoder=int4.",
            show_default="int8",
        ),
    ] = None,
    components: Annotated[
        str | None,
        typer.Option(
            help="What to convert: vrc, vision_base, vision_large, decoder, or vision for both branches.",
            show_default="all",
        ),
    ] = None,
    tile_sides: Annotated[
        str | None,
        typer.Option(
            help="Sides in px that a tile may be encoded at: 448,320.", show_default="the checkpoint's"
        ),
    ] = None,
    prefill: Annotated[
        str | None, typer.Option(help="Tokens per prefill step, one graph each.", show_default="8,32,128")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(
            help="Tokens that the KV cache holds; 256,1024 also makes one for short conversations.",
            show_default="1024, or the model's most",
        ),
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            help="What the KV cache holds: float32, float16 or int8.",
            show_default="int8 with a quantised decoder, else float32",
        ),
    ] = None,
    embedding: Annotated[
        str,
        typer.Option(
            help="Token table: int8, fp16, or auto, which reads it in the decoder's head where it can."
        ),
    ] = "auto",
    delegate: Annotated[
        str,
        typer.Option(
            help="What the graphs are made for: cpu, gpu, nnapi or npu:<vendor>; cpu+gpu for a graph each; "
            "or per component: vision=cpu+gpu,decoder=cpu."
        ),
    ] = "cpu",
    nnapi_level: Annotated[
        int | None, typer.Option(help="Feature level of NNAPI: 30 is Android 11.", show_default="30")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photographs that integer ranges are found on.", show_default="two shipped ones"
        ),
    ] = None,
    verbose: opt.Verbose = False,
    as_json: opt.Json = False,
) -> None:
    """Turn a checkpoint into a bundle for the device, and measure how close each graph is to PyTorch.

    A stopped or failed convert goes on where it stopped when it is run again. The bundle that was there
    before stays until the new one is whole.
    """
    from converters import convert as converting
    from converters.options import ConvertOptions
    from rpi_runtime.manifest import COMPONENTS

    asked = ConvertOptions(
        checkpoint=checkpoint,
        bundle=output,
        components=COMPONENTS if components is None else _names(components),
        recipe=recipe or "",
        tile_sides=_numbers("--tile-sides", tile_sides),
        prefill_tokens=_numbers("--prefill", prefill),
        contexts=_numbers("--context", context),
        kv=kv or "",
        embedding=embedding,
        delegate=delegate,
        nnapi_level=nnapi_level,
        calibration=calibration,
    )

    def show(event: Event) -> None:
        if isinstance(event, converting.NeedsStated):
            _state(event.needs)
        else:
            progress.show(event)

    with StageProgress(verbose=verbose) as progress:
        try:
            result = converting.convert(asked, show)
        except KeyboardInterrupt:
            where = f" in stage '{progress.stage}'" if progress.stage else ""
            report.error(
                f"stopped by Ctrl-C{where}; {output} is as it was before",
                "The same command goes on after the last finished stage.",
            )
            raise report.Stopped from None
    if as_json:
        report.print_json({**report.plain(result), "passed": result.passed})
    else:
        _print(result)
    if result.misses:
        raise CheckFailed(
            "further from PyTorch than the recipe allows (the bundle is written and says so):\n  "
            + "\n  ".join(result.misses),
            "Choose a recipe with more bits for these components.",
        )


def _state(needs: Needs) -> None:
    host = needs.host
    if not needs.stages:
        report.note("all stages are finished; only the bundle is left to write")
        return
    report.note(
        f"needs about {report.megabytes(needs.memory_bytes)} of memory (stage '{needs.largest.stage}') "
        f"and {report.megabytes(needs.disk_bytes)} of disk\n"
        f"free: {host.memory_bytes / 1e9:,.1f} GB of memory ({host.memory_source}), "
        f"{host.disk_bytes / 1e9:,.1f} GB of disk"
    )


def _print(result: ConvertReport) -> None:
    from rpi_runtime.targets import parse_target

    for warning in {parse_target(c.delegate).description.warning for c in result.components} - {""}:
        report.warning(warning)
    rows = [
        (
            c.component if c.delegate == "cpu" else f"{c.component} for {c.delegate}",
            c.recipe,
            f"{c.bytes / 1e6:.2f}",
            f"{c.bits_per_weight:.2f}",
            f"{c.worst_cosine:.6f}" + ("" if c.passed else " !"),
            f"{c.seconds:.1f}",
            f"{c.peak_bytes / 1e6:.0f}",
        )
        for c in result.components
    ]
    if (table := result.embedding) is not None:
        size = "in decoder" if table.in_head else f"{table.bytes / 1e6:.2f}"
        bits = f"{table.bits_per_weight:.2f}"
        rows.append(
            (
                "embedding",
                table.dtype,
                size,
                bits,
                "",
                f"{table.seconds:.1f}",
                f"{table.peak_bytes / 1e6:.0f}",
            )
        )
    report.table(
        f"{result.bundle}: {result.model}, {report.megabytes(result.bundle_bytes)}",
        ("component", "recipe", "MB", "bits", "cosine", "seconds", "peak MB"),
        rows,
        right=("MB", "bits", "cosine", "seconds", "peak MB"),
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is not a list of whole numbers", f"For instance {option} 128,32."
        ) from None
