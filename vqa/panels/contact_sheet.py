"""Panels side by side, with what is asked about them, for a person to look at."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from rpi_runtime.errors import UsageError
from vqa.panels.dataset import check_split
from vqa.panels.panel import make_panel
from vqa.panels.questions import ask

_COLUMNS, _CELL, _CAPTION = 4, 320, 46  # px


def contact_sheet(path: Path, split: str, count: int, seed: int = 0) -> None:
    """Writes a PNG. Raises `UsageError` for an unknown split and a path that cannot be a PNG."""
    check_split(split)
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} is not a .png", "The sheet is written as PNG: name it so.")
    rows = -(-count // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _CELL, rows * (_CELL + _CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number in range(count):
        panel = make_panel(split, number, dataset_seed=seed)
        x, y = number % _COLUMNS * _CELL, number // _COLUMNS * (_CELL + _CAPTION)
        small = panel.image.copy()
        small.thumbnail((_CELL - 8, _CELL - 8))
        sheet.paste(small, (x + (_CELL - small.width) // 2, y + (_CELL - small.height) // 2))
        lines = [f"{one.text} {one.answer}" for one in ask(panel, 2)]
        lines.append(f"{panel.image.width} x {panel.image.height} px")
        for i, line in enumerate(lines):
            draw.text((x + 6, y + _CELL + 14 * i), line[:52], "black", font)
    sheet.save(path)
