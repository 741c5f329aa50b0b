"""Seven-segment digits, drawn as polygons."""

from __future__ import annotations

from PIL import ImageDraw

Colour = tuple[int, ...]

# Segments that each character lights: a top, b upper right, c lower right, d bottom, e lower left, f upper
# left, g middle.
_LIT = {
    "0": "abcdef", "1": "bc", "2": "abged", "3": "abgcd", "4": "fgbc", "5": "afgcd", "6": "afgedc",
    "7": "abc", "8": "abcdefg", "9": "abcdfg", "-": "g",
}  # fmt: skip
_WIDTH, _GAP, _DOT = 0.54, 0.22, 0.22  # shares of the height


def segments_width(text: str, height_px: float) -> float:
    return sum(_advance(character) for character in text) * height_px


def _advance(character: str) -> float:
    return _DOT if character == "." else _WIDTH + _GAP


def draw_segments(
    draw: ImageDraw.ImageDraw,
    text: str,
    left: float,
    upper: float,
    height_px: float,
    lit: Colour,
    unlit: Colour | None,
    slant: float,
) -> None:
    """Digits, "-" and "." of `height_px`; `slant` leans them to the right by that share of the height."""
    thick = 0.13 * height_px
    x = left
    for character in text:
        if character == ".":
            draw.ellipse(
                (
                    x - 0.06 * height_px,
                    upper + height_px - 1.3 * thick,
                    x + 0.09 * height_px,
                    upper + height_px + 1,
                ),
                fill=lit,
            )
        else:
            for segment, shape in _SHAPES.items():
                colour = lit if segment in _LIT[character] else unlit
                if colour is not None:
                    points = [
                        (x + (px * _WIDTH + slant * (0.5 - py)) * height_px, upper + py * height_px)
                        for px, py in shape
                    ]
                    draw.polygon(points, fill=colour)
        x += _advance(character) * height_px


def _bar(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    """A segment between two points of the digit's box (x in widths, y in heights), pointed at both ends."""
    half = 0.065
    wide = half / _WIDTH
    if y0 == y1:
        return [
            (x0, y0),
            (x0 + wide, y0 - half),
            (x1 - wide, y0 - half),
            (x1, y0),
            (x1 - wide, y0 + half),
            (x0 + wide, y0 + half),
        ]
    return [
        (x0, y0),
        (x0 + wide, y0 + half),
        (x0 + wide, y1 - half),
        (x0, y1),
        (x0 - wide, y1 - half),
        (x0 - wide, y0 + half),
    ]


_L, _R, _T, _M, _B = 0.13, 0.87, 0.07, 0.5, 0.93
_SHAPES = {
    "a": _bar(_L, _T, _R, _T), "b": _bar(_R, _T, _R, _M), "c": _bar(_R, _M, _R, _B),
    "d": _bar(_L, _B, _R, _B), "e": _bar(_L, _M, _L, _B), "f": _bar(_L, _T, _L, _M),
    "g": _bar(_L, _M, _R, _M),
}  # fmt: skip
