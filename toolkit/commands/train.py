"""`toolkit train`: what teaches a checkpoint something."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rpi_runtime.errors import UsageError
from toolkit import report
from toolkit.commands import options as opt
from toolkit.train_view import TrainProgress

if TYPE_CHECKING:
    from hypervl.training.panel_job import TrainingRecord
    from hypervl.training.vrc_evaluation import Measured
    from hypervl.training.vrc_report import VRCReport

train = typer.Typer(help="Train a checkpoint, or a part of one.", no_args_is_help=True, rich_markup_mode=None)
AUTO_EPS = (0.02, 0.05, 0.1, 0.2, 0.4)


@train.callback()
def _before_any_training() -> None:
    """Keeps `train` a group of commands, however many there are."""


_Output = Annotated[
    Path, typer.Option("--output", "-o", help="Checkpoint folder to write.", show_default=False)
]
_Work = Annotated[
    Path | None, typer.Option(help="Folder to keep work in, and to go on from.", show_default="OUTPUT.work")
]
_Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
_Scale = Annotated[float, typer.Option(help="Of the steps that the shipped weights took.")]
_Workers = Annotated[int, typer.Option(min=0, help="Processes that draw panels.")]
_Force = Annotated[bool, typer.Option("--force", help="Replace an existing checkpoint.")]


@train.command()
def base(
    output: _Output,
    preset: Annotated[str, typer.Option(help="Shapes of a model from random weights.")] = "nano",
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Checkpoint to go on from.", show_default="random weights"),
    ] = None,
    scale: _Scale = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and panels.")] = 0,
    workers: _Workers = 1,
    device: _Device = "auto",
    work: _Work = None,
    force: _Force = False,
    as_json: opt.Json = False,
) -> None:
    """Train a model to read instrument panels, from random weights or from a checkpoint.

    The stem learns letters, the large branch learns to read, the decoder learns to answer behind it.
    """
    _need("torch", "matplotlib", "skimage")
    from hypervl.training.panel_job import PanelOptions, train_base, train_further

    options = PanelOptions(output, work or _work_of(output), seed, scale, device, workers, replace=force)
    with _progress(options.work) as progress:
        if start is None:
            result = train_base(preset, options, progress.show_step)
        else:
            result = train_further(start, options, progress.show_step)
    _print_stages(result, as_json)


@train.command()
def decoder(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.", show_default=False)],
    output: _Output,
    preset: Annotated[str, typer.Option(help="Whose decoder's shape it has.")] = "nano",
    scale: _Scale = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and panels.")] = 0,
    workers: _Workers = 1,
    device: _Device = "auto",
    work: _Work = None,
    force: _Force = False,
    as_json: opt.Json = False,
) -> None:
    """Train a new decoder behind the large branch of a checkpoint, which stays as it is."""
    _need("torch", "matplotlib", "skimage")
    from hypervl.training.panel_job import PanelOptions, train_decoder

    options = PanelOptions(output, work or _work_of(output), seed, scale, device, workers, replace=force)
    with _progress(options.work) as progress:
        result = train_decoder(checkpoint, preset, options, progress.show_step)
    _print_stages(result, as_json)


@train.command()
def dcl(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.", show_default=False)],
    output: _Output,
    consistency: Annotated[str, typer.Option(help="both, kl, features or none.")] = "both",
    scale: _Scale = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the panels.")] = 0,
    workers: _Workers = 1,
    device: _Device = "auto",
    work: _Work = None,
    force: _Force = False,
    as_json: opt.Json = False,
) -> None:
    """Teach the base branch to stand in for the large one (Dual Consistency Learning)."""
    _need("torch", "matplotlib", "skimage")
    from hypervl.training.panel_job import PanelOptions, train_dcl

    options = PanelOptions(output, work or _work_of(output), seed, scale, device, workers, replace=force)
    with _progress(options.work) as progress:
        result = train_dcl(checkpoint, consistency, options, progress.show_step)
    _print_stages(result, as_json)


def _progress(work: Path) -> TrainProgress:
    return TrainProgress(f"{work} keeps what was done: the same command goes on from its last save.")


def _work_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.work")


def _print_stages(result: TrainingRecord, as_json: bool) -> None:
    if as_json:
        report.print_json(result)
        return
    report.table(
        f"{result.output}: {result.what}, on {result.device}",
        ("stage", "steps", "minutes", "loss", "right"),
        [
            (
                s.stage,
                f"{s.steps:,}",
                f"{s.seconds / 60:.1f}",
                f"{s.metrics['loss']:.3f}",
                ", ".join(
                    f"{k} {s.metrics[k]:.1%}" for k in ("character", "value", "exact") if k in s.metrics
                ),
            )
            for s in result.stages
        ],
        right=("steps", "minutes", "loss"),
    )


@train.command()
def vrc(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Folder with questions.jsonl and pictures.", show_default=False)],
    output: _Output,
    data_validation: Annotated[
        Path | None, typer.Option(help="The same to validate with.", show_default="a tenth of --data")
    ] = None,
    eps: Annotated[
        str,
        typer.Option(
            help="Loss of an answer that a smaller side may cost, as a share; several with commas, or auto."
        ),
    ] = "0.05",
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Of several eps: validation loss that may be lost, as a share.")
    ] = 0.02,
    floor: Annotated[
        float, typer.Option(help="Added to losses before they are compared, nats per answer token.")
    ] = 0.5,
    caution: Annotated[
        float, typer.Option(help="Weight of tiles that need the full side; above 1 keeps more tokens.")
    ] = 2.0,
    routing: Annotated[str, typer.Option("--for", help="Routing to train for: tile or image.")] = "tile",
    branch: Annotated[str, typer.Option(help="Vision branch that answers: base or large.")] = "base",
    with_question: Annotated[
        bool, typer.Option("--with-question", help="Also measure a router that sees the question; not kept.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="At most; it stops when validation does.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Of order, augmentation and split.")] = 0,
    device: _Device = "auto",
    work: _Work = None,
    force: _Force = False,
    as_json: opt.Json = False,
) -> None:
    """Teach the router of a checkpoint where this model needs pixels.

    The model answers your questions with tiles at all sides; the smallest that keeps the loss is learned.
    """
    tried = _eps(eps)
    _need("torch", "matplotlib")
    from hypervl.training.vrc_job import VRCOptions, train_vrc
    from hypervl.training.vrc_training import TrainSettings

    options = VRCOptions(
        checkpoint=checkpoint,
        data=data,
        output=output,
        work=work or _work_of(output),
        data_validation=data_validation,
        eps=tried,
        floor=floor,
        tolerance=tolerance,
        routing=routing,
        branch=branch,
        device=device,
        with_question=with_question,
        training=TrainSettings(epochs=epochs, seed=seed, caution=caution),
        replace=force,
    )
    with _progress(options.work) as progress:
        result = train_vrc(options, progress.show)
    if as_json:
        report.print_json(result)
    else:
        _print(result)
    if result.chosen.after.ratio(floor) > 1 + tolerance and len(result.tried) > 1:
        report.warning(f"no eps kept the validation loss within {tolerance:g}; the closest was taken.")


def _need(*modules: str) -> None:
    absent = [name for name in modules if find_spec(name) is None]
    if absent:
        raise UsageError(
            f"not installed: {', '.join(absent)}",
            "Training needs more than running: in the project's folder, pip install '.[train]'.",
        )


def _eps(text: str) -> tuple[float, ...]:
    if text == "auto":
        return AUTO_EPS
    try:
        return tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise UsageError(f"--eps {text!r} is not a number", "Give 0.05, or 0.02,0.1, or auto.") from None


def _print(result: VRCReport) -> None:
    chosen = result.chosen
    if len(result.tried) > 1:
        report.table(
            "tried on validation",
            ("eps", "tokens kept", "loss ratio", "labels right", ""),
            [
                (
                    f"{t.eps:g}",
                    f"{t.after.tokens_kept:.1%}",
                    f"{t.after.ratio(result.floor):.4f}",
                    f"{t.accuracy:.1%}",
                    "chosen" if t == chosen else "",
                )
                for t in result.tried
            ],
            right=("eps", "tokens kept", "loss ratio", "labels right"),
        )
    total = sum(chosen.labels)
    report.table(
        f"labels of {result.pictures} pictures, eps {chosen.eps:g}",
        ("scale", "views", "share", "in validation", "predicted right"),
        [
            (f"{scale:g}", count, f"{count / total:.1%}", sum(row), row[i])
            for i, (scale, count, row) in enumerate(
                zip(result.scales, chosen.labels, chosen.confusion, strict=True)
            )
        ],
        right=("scale", "views", "share", "in validation", "predicted right"),
    )

    def row(name: str, measured: Measured) -> tuple[str, ...]:
        ratio = measured.ratio(result.floor)
        return name, f"{measured.tokens_kept:.1%}", f"{measured.loss:.4f}", f"{ratio:.4f}"

    full = (f"{chosen.after.loss_full:.4f}", "1.0000")
    report.table(
        f"{chosen.after.questions} validation questions, {result.routing} routing",
        ("router", "tokens kept", "loss", "ratio"),
        [
            ("every tile at the full side", "100.0%", *full),
            row("before", result.before),
            row("after", chosen.after),
            row("the labels themselves", chosen.ideal),
        ],
        right=("tokens kept", "loss", "ratio"),
    )
    if result.question is not None:
        tried = result.question
        report.table(
            "an experiment: labels of single questions, and a router that sees the question",
            ("router", "labels right", "tokens kept", "loss", "ratio"),
            [
                (name, f"{accuracy:.1%}", *row("", routed)[1:])
                for name, accuracy, routed in (
                    ("the VRC above", tried.accuracy_plain, tried.plain),
                    ("with question", tried.accuracy, tried.with_question),
                    ("the labels themselves", 1.0, tried.ideal),
                )
            ],
            right=("labels right", "tokens kept", "loss", "ratio"),
        )
    report.pairs("", [("checkpoint", result.output), ("report, loss curve", result.work)])
