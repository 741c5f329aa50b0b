"""What the pictures of reports have in common: colours and fonts."""

from __future__ import annotations

from pathlib import Path

from PIL import ImageFont

from rpi_runtime.errors import UsageError

PAPER, INK, FAINT, EMPTY = "#FFFFFF", "#1A1A1A", "#5F6368", "#E4E6E9"
# Okabe and Ito's, which people with any colour vision can tell apart.
WARM_TO_COLD = ("#D55E00", "#E69F00", "#F0E442", "#009E73", "#56B4E9", "#0072B2")
COLOURS = (*WARM_TO_COLD, "#CC79A7", "#000000")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def check_png(option: str, target: Path) -> None:
    """Refuses before the work what would fail after it. Raises `UsageError`."""
    if target.suffix.lower() != ".png":
        raise UsageError(
            f"{option} {str(target)!r} is not a .png", "A drawing is written as PNG: name it so."
        )
    if not target.parent.is_dir():
        raise UsageError(f"{option} {target}: there is no folder {target.parent}", "Create it first.")
    if target.is_dir():
        raise UsageError(f"{option} {target} is a folder", "Name a file in it.")


def font_of(size: float) -> Font:
    """`size` in px, at least 8."""
    points = max(8, round(size))
    try:
        return ImageFont.truetype("DejaVuSans.ttf", points)
    except (OSError, ImportError):  # no such font, or a Pillow without FreeType
        pass
    try:
        return ImageFont.load_default(points)
    except (TypeError, ImportError):  # Pillow before 10.1 has one font, of one size
        return ImageFont.load_default()
