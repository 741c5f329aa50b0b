"""One panel picture from one seed: drawn, photographed, and with questions that it answers."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vqa.panels import camera
from vqa.panels.backgrounds import background
from vqa.panels.draw import draw_scene
from vqa.panels.fonts import font_files
from vqa.panels.scene import MOST_ELEMENTS, Element, sample_scene

SPLITS = ("train", "validation", "test")
# (width, height) in shares of the longer side.
_SHAPES = ((1, 1), (1, 1), (3, 2), (4, 3), (2, 1), (2, 3), (3, 4), (1, 2), (16, 9))


@dataclass(frozen=True)
class Difficulty:
    """How far a panel is from a clean drawing. Training begins with easy ones; test panels are `HARD`."""

    most_elements: int = MOST_ELEMENTS
    camera: float = 1.0  # strength of perspective, light, blur, noise
    shortest_px: int = 256  # of the longer side
    longest_px: int = 2048
    crowded: float = 0.0  # share of panels with as many elements as there is room for


HARD = Difficulty()


@dataclass(frozen=True)
class Seen:
    """An element as the picture shows it. Corners are px, [4, 2], clockwise from the upper left."""

    element: Element
    label: np.ndarray
    body: np.ndarray
    label_px: float  # height of the name's capitals
    text_px: float  # height of what must be read to know its value
    hidden: bool  # something lies over it
    characters: str  # of name, value and unit, without spaces
    glyphs: np.ndarray  # [characters, 4]: middle (x, y), width and height of each, px

    @property
    def smallest_px(self) -> float:
        """Height of the smallest thing that must be read, of name and value."""
        return min(self.text_px, self.label_px)

    @property
    def centre(self) -> tuple[float, float]:
        points = np.concatenate([self.label, self.body])
        low, high = points.min(0), points.max(0)
        return float((low[0] + high[0]) / 2), float((low[1] + high[1]) / 2)


@dataclass(frozen=True)
class Panel:
    seed: str
    image: Image.Image  # RGB
    elements: tuple[Seen, ...]


def make_panel(split: str, number: int, difficulty: Difficulty = HARD, dataset_seed: int = 0) -> Panel:
    """Panel `number` of a split. The same arguments give the same pixels."""
    seed = _seed(split, number, dataset_seed)
    chance = random.Random(seed)
    size = _size(chance, difficulty)
    crowded = chance.random() < difficulty.crowded
    scene = sample_scene(chance, size, split, difficulty.most_elements, crowded)
    upright, drawn = draw_scene(chance, scene, font_files(split))
    matrix = camera.view(chance, size, scene.panel, difficulty.camera)
    image = camera.warp(upright, scene.panel, matrix, background(chance, split, size))
    hides = None
    if chance.random() < 0.15 * difficulty.camera:
        hides = camera.cover(chance, image, scene.cap_px)
    image = camera.photograph(chance, image, scene.cap_px, difficulty.camera)
    seen = []
    for one in drawn:
        label, body = camera.project(matrix, one.label), camera.project(matrix, one.body)
        hidden = hides is not None and (_covers(hides, label) or _covers(hides, body))
        zoom = camera.zoom(matrix, (one.body[0] + one.body[2]) / 2, (one.body[1] + one.body[3]) / 2)
        boxes = np.array([glyph[1:] for glyph in one.glyphs])
        glyphs = np.concatenate([camera.project_points(matrix, boxes[:, :2]), boxes[:, 2:] * zoom], axis=1)
        characters = "".join(glyph[0] for glyph in one.glyphs)
        sizes = (one.label_px * zoom, one.text_px * zoom)
        seen.append(Seen(one.element, label, body, *sizes, hidden, characters, glyphs))
    return Panel(seed, image, tuple(seen))


def panel_size(
    split: str, number: int, difficulty: Difficulty = HARD, dataset_seed: int = 0
) -> tuple[int, int]:
    """The size in px that the picture of `make_panel` with these arguments has, without drawing it."""
    return _size(random.Random(_seed(split, number, dataset_seed)), difficulty)


def _seed(split: str, number: int, dataset_seed: int) -> str:
    return f"{split}:{dataset_seed}:{number}"


def _size(chance: random.Random, difficulty: Difficulty) -> tuple[int, int]:
    """Small pictures are as likely as large ones: the longer side is log-uniform."""
    longest = difficulty.shortest_px * (difficulty.longest_px / difficulty.shortest_px) ** chance.random()
    shape = chance.choice(_SHAPES)
    scale = longest / max(shape)
    return round(shape[0] * scale), round(shape[1] * scale)


def _covers(mask: Image.Image, corners: np.ndarray) -> bool:
    low, high = corners.min(0), corners.max(0)
    box = (int(low[0]) - 1, int(low[1]) - 1, int(high[0]) + 2, int(high[1]) + 2)
    return mask.crop(box).getbbox() is not None
