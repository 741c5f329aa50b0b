"""`toolkit run`: one question about any number of images, answered as it is decoded, then measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit import report
from toolkit.commands import options as opt
from toolkit.memory_view import memory_options, plan_summary, tell_streaming
from toolkit.run_view import ProgressLine, stream, summary, tell_trial

if TYPE_CHECKING:
    from rpi_runtime.manifest import VisionSpec
    from rpi_runtime.run_report import ImageReport


def run(
    bundle: opt.Bundle,
    prompt: Annotated[str, typer.Option(help="What to ask.")],
    image: opt.Images = None,
    system: opt.System = None,
    routing: Annotated[
        Path | None,
        typer.Option("--routing", help="Draw the tiles and their chosen sides into this PNG."),
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
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it stands, without chat template.")
    ] = False,
    memory: opt.Memory = None,
    strict: opt.Strict = False,
    stream_weights: opt.StreamWeights = False,
    threads: opt.Threads = None,
    backend: opt.Backend = "auto",
    delegate: opt.Delegate = "auto",
    require_full_delegation: opt.FullDelegation = False,
    weight_cache: opt.WeightCache = True,
    device: opt.Device = None,
    as_json: opt.Json = False,
    verbose: opt.Verbose = False,
) -> None:
    """Answer a prompt about images, and show what it cost."""
    from rpi_runtime.sampling import Sampling
    from rpi_runtime.session import Session

    if routing is not None:
        _check_routing(routing, image or [])
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    with (
        Session.open(
            bundle,
            threads=threads,
            backend=backend,
            delegate=delegate,
            require_full_delegation=require_full_delegation,
            on_trial=tell_trial,
            weight_cache=weight_cache,
            verbose=verbose,
            **memory_options(
                memory, branch, strict=strict, stream_weights=stream_weights, pictures=bool(image)
            ),
        ) as session,
        ProgressLine() as progress,
    ):
        tell_streaming(session)
        generation = session.generate(
            prompt,
            image or [],
            system=system,
            routing=route,
            branch=branch,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            stop=stop or [],
            raw=raw,
            on_progress=progress,
        )
        stopped = stream(generation, progress, quiet=as_json)
        if stopped and not generation.text:
            raise KeyboardInterrupt
        result = generation.report
    if as_json:
        report.print_json(
            {
                "answer": generation.text,
                "token_ids": generation.token_ids,
                **report.plain(result),
                "plan": plan_summary(session.plan),
            }
        )
    else:
        summary(result, session.plan)
    if routing is not None and image:
        _draw(image[0], result.images[0], session.manifest.vision, routing)
        report.note(f"Tiles drawn in {routing}.")
    if stopped:
        raise report.Stopped


def _check_routing(target: Path, images: list[Path]) -> None:
    """Refuses at once what would fail, or do harm, after the answer."""
    from rpi_runtime.errors import UsageError
    from toolkit.drawing import check_png

    if len(images) != 1:
        raise UsageError(f"--routing draws one picture, not {len(images)}", "Give one --image.")
    check_png("--routing", target)
    if target.exists() and images[0].exists() and target.samefile(images[0]):
        raise UsageError(f"--routing {target} is the --image itself", "Choose another name for the drawing.")


def _draw(path: Path, done: ImageReport, spec: VisionSpec | None, target: Path) -> None:
    from rpi_runtime.images import open_image
    from rpi_runtime.tiling import plan_grid
    from toolkit.routing_picture import draw_routing

    assert spec is not None  # the picture was encoded
    picture = open_image(path)
    grid = plan_grid(*picture.size, spec)
    draw_routing(picture, grid, done.sides_px, spec, target)
