"""`toolkit run`: one question about any number of images, answered as it is decoded, then measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit import report
from toolkit.commands import options as opt

if TYPE_CHECKING:
    from rpi_runtime.run_report import RunReport


def run(
    bundle: opt.Bundle,
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    image: opt.Images = None,
    system: opt.System = None,
    routing: Annotated[
        Path | None, typer.Option("--routing", help="Draw the tiles over the image, coloured by chosen side, into this PNG.")
    ] = None,
    route: opt.Route = "tile",
    branch: opt.Branch = "base",
    max_new_tokens: opt.MaxNewTokens = 256,
    temperature: opt.Temperature = 0.0,
    top_k: opt.TopK = 0,
    top_p: opt.TopP = 1.0,
    min_p: opt.MinP = 0.0,
    repetition_penalty: opt.RepetitionPenalty = 1.0,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt as it stands, without the chat template.")] = False,
    threads: opt.Threads = None,
    backend: opt.Backend = "auto",
    weight_cache: opt.WeightCache = True,
    as_json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> None:
    """Answer a prompt about images on this device, and show what it cost."""
    from rpi_runtime.sampling import Sampling
    from rpi_runtime.session import Session

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    with Session.open(bundle, threads=threads, backend=backend, weight_cache=weight_cache, verbose=verbose) as session:
        generation = session.generate(
            prompt=prompt, images=image or [], system=system, routing=route, branch=branch, sampling=sampling,
            max_new_tokens=max_new_tokens, stop=stop or [], raw=raw, on_progress=opt.progress(),
        )  # fmt: skip
        pieces = []
        try:
            for piece in generation:
                pieces.append(piece)
                if not as_json:
                    sys.stdout.write(piece)
                    sys.stdout.flush()
        finally:
            if not as_json:
                sys.stdout.write("\n")
        result = generation.report
    if as_json:
        report.print_json({"answer": "".join(pieces), **report.plain(result)})
    else:
        show(result)
