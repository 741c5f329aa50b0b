"""`toolkit assemble`: a HyperVL checkpoint from public parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit import report
from toolkit.commands import options as opt

_Folder = Annotated[
    Path | None, typer.Option(help="SigLIP or SigLIP2 folder for this branch.", show_default=False)
]
_Projector = Annotated[
    Path | None, typer.Option(help="Projector of this branch, .safetensors.", show_default=False)
]


def assemble(
    output: Annotated[Path, typer.Argument(help="Checkpoint folder to write.", show_default=False)],
    preset: Annotated[
        str | None,
        typer.Option(help="Shapes what is not given: nano, 0.6b or 1.7b.", show_default="nano beside parts"),
    ] = None,
    vision_base: _Folder = None,
    vision_large: _Folder = None,
    decoder: Annotated[Path | None, typer.Option(help="Qwen3 or Llama folder.", show_default=False)] = None,
    projector_base: _Projector = None,
    projector_large: _Projector = None,
    vrc: Annotated[Path | None, typer.Option(help="VRC weights, .safetensors.", show_default=False)] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Tokenizer folder.", show_default="the decoder's, else one token per byte"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is initialised.")] = 0,
    dtype: Annotated[str, typer.Option(help="Stored as float32, bfloat16 or float16.")] = "float32",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing checkpoint.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Build a checkpoint from public parts; what is not given is initialised, and said so."""
    from converters.pipeline import need_convert_extra

    need_convert_extra()
    from hypervl.assemble import Sources
    from hypervl.assemble import assemble as build

    sources = Sources(
        preset, vision_base, vision_large, decoder, projector_base, projector_large, vrc, tokenizer
    )
    result = build(output, sources, seed=seed, dtype=dtype, replace=force)
    if as_json:
        report.print_json(result)
    else:
        report.table(
            f"{result.folder}: {result.config.name}, {dtype}",
            ("part", "parameters", "from"),
            [(p.name, f"{p.parameters:,}", p.source or f"INITIALISED, seed {seed}") for p in result.parts]
            + [("tokenizer", "", result.tokenizer)],
            right=("parameters",),
        )
    if result.initialised:
        report.warning(
            f"initialised and not trained: {', '.join(p.name for p in result.initialised)}. "
            "What passes through these parts means nothing until they are trained."
        )
