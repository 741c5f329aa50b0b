"""`toolkit eval`: questions about pictures, asked of one or several models in one or several ways."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rpi_runtime.errors import CheckFailed, EdgeError
from toolkit import report
from toolkit.commands import options as opt

if TYPE_CHECKING:
    from toolkit.eval_models import AskedModel
    from vqa.dataset import Dataset
    from vqa.evaluate import Arm
    from vqa.results import Answer, Ledger
    from vqa.summary import ArmSummary

REPORT_FILE = "report.json"


def evaluate(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help="Bundles and checkpoints to ask.", show_default=False),
    ],
    data: Annotated[Path, typer.Option(help="Folder with questions.jsonl and pictures.", show_default=False)],
    route: Annotated[
        list[str] | None,
        typer.Option(help="tile, image or fixed:<scale>; repeatable.", show_default="tile"),
    ] = None,
    branch: Annotated[
        list[str] | None, typer.Option(help="base, large or auto; repeatable.", show_default="base")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for answers, report and plots.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Ask the first pictures with this many questions.", show_default="all"),
    ] = None,
    by_type: Annotated[
        bool, typer.Option("--by-type", help="Show types and text sizes of all arms.")
    ] = False,
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Exit with 1 if the first arm's exact match is lower.", show_default=False
        ),
    ] = None,
    max_new_tokens: opt.MaxNewTokens = 32,
    memory: opt.Memory = None,
    delegate: opt.Delegate = "auto",
    threads: opt.Threads = None,
    device: opt.Device = None,
    as_json: opt.Json = False,
) -> None:
    """Ask every question of a dataset; count right answers, visual tokens, time and memory.

    Each MODEL with each --branch and each --route is one arm, and one row; the others are compared with the
    first. With -o the same command goes on where it was stopped, and a further MODEL, --route or --branch
    adds its own answers.
    """
    from rpi_runtime.backends.select import default_threads
    from toolkit.eval_models import open_models
    from toolkit.eval_view import AnswersBar, print_tables
    from vqa.dataset import Dataset
    from vqa.evaluate import evaluate as ask
    from vqa.evaluate import first_questions
    from vqa.results import Ledger, Run, questions_digest

    whole = Dataset.read(data)
    dataset = first_questions(whole, limit) if limit else whole
    threads = default_threads() if threads is None else threads
    opened = open_models(models, threads, max_new_tokens, memory, delegate)
    arms = _arms(opened, route or ["tile"], branch or ["base"])
    ledger = Ledger()
    if output is not None:
        fingerprints = {model.name: model.fingerprint for model in opened}
        ledger = Ledger.open(
            output, Run(questions_digest(whole), max_new_tokens, threads, fingerprints), whole
        )
        if ledger.answers:
            held = report.count(len(ledger.answers), "answer")
            report.note(f"{output} holds {held} of an earlier run, which it keeps.")
    # Bundles first: a checkpoint's weights stay in this process, and would count as the bundles' memory.
    order = sorted(arms, key=lambda arm: arms[arm].is_checkpoint)
    try:
        with AnswersBar() as bar:
            ask(dataset, [(arm, partial(arms[arm].answerer, arm)) for arm in order], ledger, bar)
    except KeyboardInterrupt:
        _say_how_to_go_on(ledger)
        raise report.Stopped from None
    answers = {arm: _of(arm, dataset, ledger) for arm in arms}
    summaries = _summaries(answers)
    result = {
        "data": str(data),
        "questions": len(dataset.questions),
        "pictures": len(dataset.by_image()),
        "max_new_tokens": max_new_tokens,
        "threads": threads,
        "arms": report.plain(summaries),
    }
    if output is not None:
        _write(output, result, summaries)
    if as_json:
        report.print_json({**result, "answers": [a for given in answers.values() for a in given]})
    else:
        print_tables(summaries, by_type=by_type)
    reached = summaries[0].scores.exact.value
    if min_accuracy is not None and reached < min_accuracy:
        raise CheckFailed(
            f"{summaries[0].label}: exact match is {reached:.1%}, below {min_accuracy:.1%}",
            "The table per question type says where answers are wrong.",
        )


def _arms(models: list[AskedModel], routes: list[str], branches: list[str]) -> dict[Arm, AskedModel]:
    """Every combination once, in the report's order. Raises `UsageError` for one that cannot be asked."""
    from rpi_runtime.routing import Routing
    from vqa.evaluate import Arm

    routings = [Routing.parse(route) for route in routes]
    arms = {Arm(m.name, routing, branch): m for m in models for branch in branches for routing in routings}
    for model in models:
        model.check([arm for arm, its in arms.items() if its is model])
    return arms


def _of(arm: Arm, dataset: Dataset, ledger: Ledger) -> list[Answer]:
    """Answers of `arm`, in the dataset's order."""
    given = {answer.id: answer for answer in ledger.answers if answer.arm == arm.label}
    return [given[question.id] for question in dataset.questions]


def _summaries(answers: dict[Arm, list[Answer]]) -> list[ArmSummary]:
    from vqa.summary import summarise

    first = next(iter(answers.values()))
    return [
        summarise(arm.label, arm.model, str(arm.routing), arm.branch, given, first)
        for arm, given in answers.items()
    ]


def _write(folder: Path, result: dict[str, Any], summaries: list[ArmSummary]) -> None:
    from vqa.plots import draw
    from vqa.results import replace_text

    replace_text(folder / REPORT_FILE, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    try:
        draw(summaries, folder)
    except EdgeError as error:  # a board measures without Matplotlib
        report.warning(f"no plots: {error.message}. {error.remedy} The same command then draws them.")


def _say_how_to_go_on(ledger: Ledger) -> None:
    if ledger.folder is None:
        report.note(
            f"{report.count(len(ledger.answers), 'answer')} lost; with -o FOLDER they are kept, and the run "
            "goes on."
        )
    else:
        report.note(
            f"{len(ledger.answers)} answers are in {ledger.folder}; the same command goes on from there."
        )
