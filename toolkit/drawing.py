"""What the pictures of reports have in common: colours and fonts."""

from __future__ import annotations

from PIL import ImageFont

PAPER, INK, FAINT, EMPTY = "#FFFFFF", "#1A1A1A", "#5F6368", "#E4E6E9"
# Okabe and Ito's, which people with any colour vision can tell apart.
WARM_TO_COLD = ("#D55E00", "#E69F00", "#F0E442", "#009E73", "#56B4E9", "#0072B2")
COLOURS = (*WARM_TO_COLD, "#CC79A7", "#000000")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font_of(size: float) -> Font:
    """`size` in px, at least 8."""
    points = max(8, round(size))
    try:
        return ImageFont.truetype("DejaVuSans.ttf", points)
    except OSError:
        pass
    try:
        return ImageFont.load_default(points)
    except TypeError:  # Pillow before 10.1 has one font, of one size
        return ImageFont.load_default()
