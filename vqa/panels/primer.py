"""A page of a primer: one tile full of words and numbers, to learn letters from.

A panel is mostly empty; a stem that has to learn letters from panels sees ten of them per tile. Here it sees
a hundred, in the fonts, segments, colours and sizes of the panels, through the same camera.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from vqa.panels import camera
from vqa.panels import vocabulary as words
from vqa.panels.backgrounds import background
from vqa.panels.fonts import font_files, with_cap_height
from vqa.panels.scene import Box
from vqa.panels.segments import draw_segments, segments_width

NAME, NUMBER, CODE, UNIT = "name", "number", "code", "unit"


@dataclass(frozen=True)
class Printed:
    """Something printed on a page. Corners are px, [4, 2], clockwise from the upper left."""

    kind: str  # NAME, NUMBER, CODE or UNIT
    text: str
    corners: np.ndarray
    glyphs: np.ndarray  # as those of `Page`, its own


@dataclass(frozen=True)
class Page:
    image: Image.Image  # RGB, square
    characters: str
    glyphs: np.ndarray  # [characters, 4]: middle (x, y), width and height of each, px
    printed: tuple[Printed, ...]


def make_page(split: str, number: int, side: int, strength: float = 1.0, dataset_seed: int = 0) -> Page:
    """Page `number` of `side` px. The same arguments give the same pixels. `strength` is the camera's."""
    chance = random.Random(f"primer:{split}:{dataset_seed}:{number}")
    size = (side, side)
    image = Image.new("RGB", size, tuple(chance.randint(0, 255) for _ in range(3)))
    if chance.random() < 0.3:
        image = Image.blend(image, background(chance, split, size), chance.uniform(0.1, 0.5))
    draw, fonts = ImageDraw.Draw(image), font_files(split)
    found: list[tuple[str, float, float, float, float]] = []
    boxes: list[tuple[str, str, Box, slice]] = []
    y = chance.uniform(2, 8)
    smallest = 40.0
    while y < side - 12:
        cap = math.exp(chance.uniform(math.log(7.0), math.log(48.0 if chance.random() < 0.35 else 18.0)))
        smallest = min(smallest, cap)
        x = chance.uniform(-4, 10)
        while x < side - cap:
            kind, text = _text(chance)
            first = len(found)
            end = _print(chance, draw, image, chance.choice(fonts), kind, text, (x, y), cap, found)
            boxes.append((kind, text, (x, y, end, y + cap), slice(first, len(found))))
            x = end + chance.uniform(0.6, 2.0) * cap
        y += cap * chance.uniform(1.5, 2.2)
    whole = (0.0, 0.0, float(side), float(side))
    matrix = camera.view(chance, size, whole, 0.7 * strength)
    image = camera.warp(image, whole, matrix, background(chance, split, size))
    image = camera.photograph(chance, image, smallest, strength)
    zoom = camera.zoom(matrix, side / 2, side / 2)
    places = np.array([glyph[1:] for glyph in found])
    glyphs = np.concatenate([camera.project_points(matrix, places[:, :2]), places[:, 2:] * zoom], axis=1)
    printed = tuple(
        Printed(kind, text, camera.project(matrix, box), glyphs[own]) for kind, text, box, own in boxes
    )
    return Page(image, "".join(glyph[0] for glyph in found), glyphs, printed)


def _text(chance: random.Random) -> tuple[str, str]:
    kind = chance.choices((NUMBER, NAME, CODE, UNIT), (0.45, 0.3, 0.15, 0.1))[0]
    if kind == NUMBER:
        return kind, words.number(chance, chance.choice(words.QUANTITIES))
    if kind == NAME:
        return kind, words.name(chance, (*words.MEASURES, *words.DEVICES, *words.ALARMS, *words.PLATES))
    return kind, words.code(chance) if kind == CODE else chance.choice(words.UNITS)


def _print(
    chance: random.Random,
    draw: ImageDraw.ImageDraw,
    image: Image.Image,
    font_file: str,
    kind: str,
    text: str,
    corner: tuple[float, float],
    cap: float,
    found: list[tuple[str, float, float, float, float]],
) -> float:
    """Draws `text` with its upper left at `corner` and notes its glyphs; gives its right end."""
    x, y = corner
    segments = kind == NUMBER and chance.random() < 0.6
    face = image.getpixel(
        (min(image.width - 1, max(0, int(x + cap))), min(image.height - 1, int(y + cap / 2)))
    )
    assert isinstance(face, tuple)
    if segments or chance.random() < 0.25:  # on a plate of its own
        face = tuple(chance.randint(0, 255) for _ in range(3))
        font = with_cap_height(font_file, cap)
        width = segments_width(text, cap) if segments else font.getlength(text)
        draw.rectangle((x - 0.3 * cap, y - 0.25 * cap, x + width + 0.3 * cap, y + 1.25 * cap), fill=face)
    ink = _contrasting(chance, face)
    if segments:
        ghost: tuple[int, ...] | None = None
        if chance.random() < 0.5:
            ghost = tuple(round(f + 0.1 * (i - f)) for f, i in zip(face, ink, strict=True))
        draw_segments(draw, text, x, y, cap, ink, ghost, chance.uniform(0, 0.15))
        edges = [x + segments_width(text[:i], cap) for i in range(len(text) + 1)]
    else:
        font = with_cap_height(font_file, cap)
        draw.text((x, y + cap), text, ink, font, anchor="ls")
        edges = [x + font.getlength(text[:i]) for i in range(len(text) + 1)]
    for i, character in enumerate(text):
        if character != " ":
            found.append(
                (character, (edges[i] + edges[i + 1]) / 2, y + cap / 2, edges[i + 1] - edges[i], cap)
            )
    return edges[-1]


def _contrasting(chance: random.Random, face: tuple[int, ...]) -> tuple[int, int, int]:
    """A colour that stands out from `face`."""
    brightness = 0.3 * face[0] + 0.59 * face[1] + 0.11 * face[2]
    while True:
        ink = (chance.randint(0, 255), chance.randint(0, 255), chance.randint(0, 255))
        if abs(0.3 * ink[0] + 0.59 * ink[1] + 0.11 * ink[2] - brightness) > 70:
            return ink
