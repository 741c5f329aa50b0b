"""A small dataset of real photographs: three pictures, seven questions, two of them without a text size."""

from __future__ import annotations

from pathlib import Path

import skimage.data
from PIL import Image

from vqa.dataset import Question, write_questions


def write(folder: Path) -> Path:
    """Writes the dataset into `folder`, which may exist, and gives it back."""
    (folder / "images").mkdir(parents=True)
    for name in ("astronaut", "coffee", "chelsea"):
        pixels = getattr(skimage.data, name)()
        Image.fromarray(pixels).resize((220, 150)).save(folder / "images" / f"{name}.jpg", quality=90)
    rows = [
        ("astronaut", "Who is this?", "an astronaut", "what", None),
        ("astronaut", "What does the patch read?", "NASA", "read", 14.0),
        ("astronaut", "How many people are there?", "1", "count", 90.0),
        ("coffee", "What is in the cup?", "coffee", "what", None),
        ("coffee", "How many spoons are there?", "1", "count", 30.0),
        ("chelsea", "What is this?", "a cat", "what", 120.0),
        ("chelsea", "Which time is it?", "not shown", "read", 20.0),
    ]
    questions = [
        Question(folder / "images" / f"{name}.jpg", text, answer, kind, text_px, id=f"{name}-{number}")
        for number, (name, text, answer, kind, text_px) in enumerate(rows)
    ]
    write_questions(folder, questions)
    return folder
