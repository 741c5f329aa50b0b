"""A dataset folder of panels: pictures and `questions.jsonl`."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rpi_runtime.errors import UsageError, nearest
from vqa.dataset import Question, write_questions
from vqa.panels.panel import HARD, SPLITS, make_panel
from vqa.panels.questions import ask

_JPEG_QUALITY = 92


@dataclass(frozen=True)
class Made:
    folder: Path
    pictures: int
    questions: int
    types: dict[str, int]


def make_dataset(
    folder: Path,
    split: str,
    questions: int,
    per_picture: int = 8,
    seed: int = 0,
    on_question: Callable[[int, int], None] = lambda done, of: None,
) -> Made:
    """Writes panels 0, 1, ... of a split until they have at least `questions` questions.

    The same arguments give the same files. The folder appears when it is whole, or not at all. Raises
    `UsageError` for an unknown split and a folder that exists.
    """
    check_split(split)
    if folder.exists():
        raise UsageError(f"{folder} exists", "Choose another name, or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        scratch = Path(beside) / folder.name
        made = _write(scratch, split, questions, per_picture, seed, on_question)
        scratch.rename(folder)
    return replace(made, folder=folder)


def _write(
    scratch: Path,
    split: str,
    questions: int,
    per_picture: int,
    seed: int,
    on_question: Callable[[int, int], None],
) -> Made:
    (scratch / "images").mkdir(parents=True)
    found: list[Question] = []
    pictures = number = 0
    while len(found) < questions:
        panel = make_panel(split, number, HARD, seed)
        asked = ask(panel, per_picture)
        number += 1
        if not asked:  # everything on it is hidden
            continue
        pictures += 1
        file = scratch / "images" / f"{number - 1:06d}.jpg"
        panel.image.save(file, quality=_JPEG_QUALITY)
        found += [
            Question(file, one.text, one.answer, one.type, one.text_px, f"{number - 1:06d}-{i}")
            for i, one in enumerate(asked)
        ]
        on_question(min(len(found), questions), questions)
    write_questions(scratch, found)
    return Made(scratch, pictures, len(found), dict(Counter(question.type for question in found)))


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise nearest(split, SPLITS, "split")
