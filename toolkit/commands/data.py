"""`toolkit data`: pictures of instrument panels with questions and answers, from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit import report
from toolkit.commands import options as opt
from toolkit.train_view import TrainProgress

data = typer.Typer(
    help="Make pictures of instrument panels, with questions.", no_args_is_help=True, rich_markup_mode=None
)

_Split = Annotated[str, typer.Option(help="train, validation or test.")]
_Seed = Annotated[int, typer.Option(min=0, help="Other seeds, other panels.")]


@data.command()
def sample(
    output: Annotated[Path, typer.Argument(help="PNG to write.", show_default=False)],
    split: _Split = "train",
    count: Annotated[int, typer.Option(min=1, max=100, help="Panels on the sheet.")] = 12,
    seed: _Seed = 0,
) -> None:
    """Draw a contact sheet: panels, each with two of its questions (none where all of it is covered)."""
    from vqa.panels.contact_sheet import contact_sheet

    contact_sheet(output, split, count, seed)
    report.note(f"{report.count(count, 'panel')} drawn in {output}.")


@data.command()
def make(
    output: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    split: _Split = "test",
    questions: Annotated[int, typer.Option(min=1, help="At least so many questions.")] = 2000,
    per_picture: Annotated[
        int, typer.Option(min=1, max=40, help="Questions about one picture, at most.")
    ] = 8,
    seed: _Seed = 0,
    as_json: opt.Json = False,
) -> None:
    """Write a dataset: pictures, and questions.jsonl."""
    from vqa.panels.dataset import make_dataset

    with TrainProgress("Nothing was written; the same command begins anew.") as progress:
        made = make_dataset(
            output, split, questions, per_picture, seed, lambda done, of: progress.show("questions", done, of)
        )
    if as_json:
        report.print_json(made)
    else:
        report.table(
            "",
            ("type", "questions"),
            [(name, made.types[name]) for name in sorted(made.types, key=lambda t: -made.types[t])],
            right=("questions",),
        )
        report.note(
            f"{report.count(made.questions, 'question')} about {report.count(made.pictures, 'picture')} "
            f"in {made.folder}."
        )
