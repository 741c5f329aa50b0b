"""Answers on disk, one line each as they come, so that a run that was stopped goes on where it was.

    run.json        what the answers belong to: `Run`
    results.jsonl   one `Answer` a line

A run goes on by whole pictures: what was answered of a picture that was not finished is asked again. The
answers are then the very ones of a run that was never stopped, for the questions of one picture share a KV
cache.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rpi_runtime.errors import UsageError
from vqa.dataset import QUESTIONS_FILE, Dataset

RUN_FILE = "run.json"
RESULTS_FILE = "results.jsonl"
FORMAT = 1  # of both files, and of the rules by which answers are judged


@dataclass(frozen=True)
class Run:
    """What answers depend on beside arm and question. Not their number: more may be asked later."""

    questions: str  # `questions_digest`
    max_new_tokens: int
    threads: int
    models: Mapping[str, str]  # name -> fingerprint
    format: int = FORMAT


@dataclass(frozen=True)
class Answer:
    """One answer of one arm, judged, and what it cost. Times are without opening graphs."""

    arm: str  # `Arm.label`
    id: str  # of the question
    image: str  # relative to the dataset's folder
    type: str
    text_px: float | None
    question: str
    expected: str
    answer: str
    exact: bool
    numeric: bool
    new_picture: bool  # the first question about it; the others find it in the KV cache
    visual_tokens: int
    visual_tokens_unrouted: int  # all tiles at the full side
    new_tokens: int
    first_token_ms: float  # from the question to the first token; a new picture is opened, routed and encoded
    answer_ms: float  # from the question to the last token
    peak_resident_bytes: int  # of the process since the arm began; 0 where the system does not tell


def questions_digest(dataset: Dataset) -> str:
    """sha256 (hex) of the questions and of the names and sizes in bytes of their pictures.

    Not of the pictures' bytes: on a board, reading gigabytes of them would take longer than many a run.
    """
    digest = hashlib.sha256((dataset.folder / QUESTIONS_FILE).read_bytes())
    for image in dataset.by_image():
        digest.update(f"{image.relative_to(dataset.folder).as_posix()}\0{image.stat().st_size}\0".encode())
    return digest.hexdigest()


class Ledger:
    """The answers of a run, in the order in which they were given; kept in a folder if there is one."""

    def __init__(self, folder: Path | None = None, answers: Sequence[Answer] = ()) -> None:
        self.folder = folder
        self.answers = list(answers)

    @classmethod
    def open(cls, folder: Path, run: Run, dataset: Dataset) -> Ledger:
        """Begins a run in `folder`, or goes on with the one that is there. Drops answers to unfinished
        pictures.

        Raises `UsageError` for a folder that holds something else, or answers that `run` would not give.
        """
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is a file", "Results take a folder: choose another name.")
        known: Mapping[str, str] = {}
        if (folder / RUN_FILE).exists():
            known = _check_same(folder, run)
        elif folder.exists() and any(folder.iterdir()):
            raise UsageError(
                f"{folder} holds other files, and no {RUN_FILE}", "Choose a new or an empty folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(
            folder / RUN_FILE, json.dumps({**asdict(run), "models": {**known, **run.models}}, indent=2) + "\n"
        )
        results = folder / RESULTS_FILE
        lines = results.read_bytes().split(b"\n") if results.exists() else []
        answers = _whole_pictures([a for a in map(_answer, lines) if a is not None], dataset)
        replace_text(results, "".join(map(_line, answers)))
        return cls(folder, answers)

    def add(self, answer: Answer) -> None:
        self.answers.append(answer)
        if self.folder is not None:
            with (self.folder / RESULTS_FILE).open("a", encoding="utf-8") as file:
                file.write(_line(answer))


def _check_same(folder: Path, run: Run) -> Mapping[str, str]:
    """The models that the run in `folder` knows. Raises `UsageError` with all that differs from `run`."""
    path = folder / RUN_FILE
    try:
        held = Run(**json.loads(path.read_text(encoding="utf-8")))
        models = dict(held.models)
    except (ValueError, TypeError):
        raise UsageError(f"{path} cannot be read", "Choose another folder, or remove this one.") from None
    different = [
        f"model {name} has changed"
        for name in run.models
        if models.get(name, run.models[name]) != run.models[name]
    ]
    if held.questions != run.questions:
        different.append("the questions or their pictures have changed")
    if held.format != run.format:
        different.append(f"it was written by another version (format {held.format}, now {run.format})")
    different += [
        f"{name} was {getattr(held, name)}, now {getattr(run, name)}"
        for name in ("max_new_tokens", "threads")
        if getattr(held, name) != getattr(run, name)
    ]
    if different:
        raise UsageError(
            f"{folder} holds the answers of another run: {'; '.join(different)}",
            "Choose another folder, or remove this one to begin anew.",
        )
    return models


def _answer(line: bytes) -> Answer | None:
    """None for a line that a killed run left unfinished."""
    try:
        record: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.keys() != {field.name for field in fields(Answer)}:
        return None
    return Answer(**record)


def _whole_pictures(answers: Sequence[Answer], dataset: Dataset) -> list[Answer]:
    wanted = Counter(question.image.relative_to(dataset.folder).as_posix() for question in dataset.questions)
    given = Counter((answer.arm, answer.image) for answer in answers)
    return [answer for answer in answers if given[answer.arm, answer.image] == wanted[answer.image]]


def _line(answer: Answer) -> str:
    return json.dumps(asdict(answer), ensure_ascii=False) + "\n"


def replace_text(path: Path, text: str) -> None:
    """Writes `path` so that there is always the old or the new text."""
    scratch = path.with_name(f"{path.name}.partial")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
