"""Questions about pictures: a folder with `questions.jsonl` and the pictures that it names.

One JSON object per line:

    {"image": "images/000017.jpg", "question": "What does PUMP 2 read?", "answer": "3.4 bar",
     "type": "read", "text_px": 17.5, "id": "000017-3"}

`image` is a path inside the folder. `type` groups questions in a report; `text_px` is the height, in px of
the picture as the file has it, of what must be read to answer; `id` names the question, by default its line.
Those three may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rpi_runtime.errors import UsageError

QUESTIONS_FILE = "questions.jsonl"
UNTYPED = "other"


@dataclass(frozen=True)
class Question:
    image: Path  # the picture's file
    text: str
    answer: str
    type: str = UNTYPED
    text_px: float | None = None
    id: str = ""  # unique inside its dataset


@dataclass(frozen=True)
class Dataset:
    folder: Path
    questions: tuple[Question, ...]

    @classmethod
    def read(cls, folder: Path | str) -> Dataset:
        """Raises `UsageError`, naming file and line, for a folder, line, field or picture that is not
        right."""
        folder = Path(folder)
        source = folder / QUESTIONS_FILE
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder", _REMEDY)
        if not source.is_file():
            raise UsageError(f"{folder} has no {QUESTIONS_FILE}", _REMEDY)
        try:
            lines = source.read_text(encoding="utf-8-sig").splitlines()  # with or without a mark of order
        except UnicodeDecodeError:
            raise UsageError(f"{source} is not UTF-8 text", _REMEDY) from None
        questions = {
            number: _question(folder, line, f"{source}:{number}")
            for number, line in enumerate(lines, 1)
            if line.strip()
        }
        if not questions:
            raise UsageError(f"{source} holds no question", _REMEDY)
        named: dict[str, int] = {}
        for number, question in questions.items():
            first = named.setdefault(question.id, number)
            if first != number:
                raise UsageError(
                    f"{source}:{number}: the id {question.id!r} is that of line {first}, too",
                    "Ids must differ. A line without one has its number.",
                )
        return cls(folder, tuple(questions.values()))

    def by_image(self) -> dict[Path, list[Question]]:
        """Questions of each picture, in the file's order."""
        found: dict[Path, list[Question]] = {}
        for question in self.questions:
            found.setdefault(question.image, []).append(question)
        return found


def write_questions(folder: Path, questions: Iterable[Question]) -> None:
    """Writes `questions.jsonl`; the pictures must lie inside `folder`."""
    lines = []
    for question in questions:
        record: dict[str, Any] = {
            "image": question.image.relative_to(folder).as_posix(),
            "question": question.text,
            "answer": question.answer,
            "type": question.type,
            "text_px": None if question.text_px is None else round(question.text_px, 1),
            "id": question.id,
        }
        kept = {key: value for key, value in record.items() if value not in (None, "")}
        lines.append(json.dumps(kept, ensure_ascii=False))
    (folder / QUESTIONS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


_REMEDY = (
    f"A dataset is a folder with {QUESTIONS_FILE}, a line for each question: "
    '{"image": ..., "question": ..., "answer": ...}'
)


def _question(folder: Path, line: str, where: str) -> Question:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}", _REMEDY) from None
    if not isinstance(record, dict):
        raise UsageError(f"{where}: not a JSON object", _REMEDY)

    def text(field: str, default: str | None = None) -> str:
        value = record.get(field, default)
        if value is None:
            raise UsageError(f"{where}: {field!r} is missing", _REMEDY)
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise UsageError(f"{where}: {field!r} is {value!r}, expected a text", _REMEDY)
        return value

    name = PurePosixPath(text("image"))
    if name.is_absolute() or ".." in name.parts:
        raise UsageError(f"{where}: the picture {str(name)!r} lies outside {folder}", _REMEDY)
    if not (folder / name).is_file():
        raise UsageError(
            f"{where}: there is no picture {folder / name}", "Copy it there, or take the line out."
        )
    height = record.get("text_px")
    if height is not None and (
        isinstance(height, bool) or not isinstance(height, int | float) or not 0 < height < 1e6
    ):
        raise UsageError(f"{where}: 'text_px' is {height!r}, expected a number of px above 0", _REMEDY)
    return Question(
        folder / name,
        text("question"),
        text("answer"),
        text("type", UNTYPED),
        None if height is None else float(height),
        text("id", "") or where.rpartition(":")[2],
    )
