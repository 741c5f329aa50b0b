"""What a camera and a room do to a panel: perspective, occlusion, light, lens, sensor, JPEG.

Strengths are bounded so that a person can still read what a question asks for: blur is in shares of the
smallest capitals, and elements that something lies over are reported, so that nobody asks about them.
"""

from __future__ import annotations

import io
import math
import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vqa.panels.scene import Box

Matrix = np.ndarray  # [3, 3] float64, homogeneous: upright px -> picture px


def view(chance: random.Random, size_px: tuple[int, int], panel: Box, strength: float) -> Matrix:
    """The homography of a camera that looks at `panel` a little from the side, and turned."""
    width, height = size_px
    centre = np.array([(panel[0] + panel[2]) / 2, (panel[1] + panel[3]) / 2])
    corners = np.array(
        [[panel[0], panel[1]], [panel[2], panel[1]], [panel[2], panel[3]], [panel[0], panel[3]]], float
    )
    angle = math.radians(chance.gauss(0, 2.5) * strength)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    moved = (corners - centre) @ turn.T + centre
    reach = 0.035 * strength * min(width, height)
    moved += np.array([[chance.uniform(-reach, reach) for _ in range(2)] for _ in range(4)])
    # Back inside the picture, a little smaller if need be.
    low, high = moved.min(0), moved.max(0)
    scale = min(1.0, *((np.array([width, height]) - 2) / np.maximum(1, high - low)))
    moved = (moved - (low + high) / 2) * scale + (low + high) / 2
    low, high = moved.min(0), moved.max(0)
    moved += np.maximum(0, 1 - low) - np.maximum(0, high - (np.array([width, height]) - 1))
    return _homography(corners, moved)


def _homography(source: np.ndarray, target: np.ndarray) -> Matrix:
    """The projective map that takes four points [4, 2] to four others."""
    rows, right = [], []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(right)), 1.0).reshape(3, 3)


def project(matrix: Matrix, box: Box) -> np.ndarray:
    """Corners [4, 2] of `box` in the picture, clockwise from the upper left."""
    return project_points(
        matrix, np.array([[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]]])
    )


def project_points(matrix: Matrix, points: np.ndarray) -> np.ndarray:
    """Where `points` [n, 2] of the upright picture come to lie."""
    moved = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return np.asarray(moved[:, :2] / moved[:, 2:])


def zoom(matrix: Matrix, x: float, y: float) -> float:
    """Picture px per upright px at a point: the root of the map's Jacobian, det(H) / w^3."""
    w = float(matrix[2] @ (x, y, 1.0))
    return abs(float(np.linalg.det(matrix)) / w**3) ** 0.5


def warp(upright: Image.Image, panel: Box, matrix: Matrix, background: Image.Image) -> Image.Image:
    """The panel as the camera sees it, in front of `background`."""
    inverse = np.linalg.inv(matrix)
    inverse /= inverse[2, 2]
    data = tuple(inverse.flatten()[:8])
    size = upright.size
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle(panel, fill=255)
    transform = Image.Transform.PERSPECTIVE
    seen = upright.transform(size, transform, data, Image.Resampling.BILINEAR)
    background.paste(seen, mask=mask.transform(size, transform, data, Image.Resampling.BILINEAR))
    return background


def cover(chance: random.Random, image: Image.Image, cap_px: float) -> Image.Image:
    """Draws a cable or a sticker across `image`; gives a mask, "L", of what it hides."""
    width, height = image.size
    mask = Image.new("L", image.size)
    pen = ImageDraw.Draw(mask)
    if chance.random() < 0.6:  # a cable that hangs from one edge to another
        thick = chance.uniform(0.5, 1.4) * cap_px
        points = [
            (chance.uniform(0, width), 0.0),
            (chance.uniform(0, width), height * chance.uniform(0.2, 0.8)),
            (chance.choice((0.0, float(width))), height * chance.uniform(0.3, 1.0)),
        ]
        curve = [_bezier(points, t / 24) for t in range(25)]
        pen.line(curve, fill=255, width=max(2, round(thick)), joint="curve")
    else:
        x, y = chance.uniform(0, width), chance.uniform(0, height)
        reach_x, reach_y = chance.uniform(1.5, 4) * cap_px, chance.uniform(1, 2.5) * cap_px
        pen.rectangle((x - reach_x, y - reach_y, x + reach_x, y + reach_y), fill=255)
    image.paste(tuple(chance.randint(0, 255) for _ in range(3)), mask=mask)
    return mask


def _bezier(points: list[tuple[float, float]], t: float) -> tuple[float, float]:
    a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t * t
    return (
        a * points[0][0] + b * points[1][0] + c * points[2][0],
        a * points[0][1] + b * points[1][1] + c * points[2][1],
    )


def photograph(chance: random.Random, image: Image.Image, cap_px: float, strength: float) -> Image.Image:
    """Light, lens, sensor and JPEG; `strength` from 0 (clean) to 1."""
    pixels = np.array(image, np.float32)
    height, width = pixels.shape[:2]
    # All of it is linear per channel: (x * contrast + offset) * light * white.
    contrast = 1 + strength * chance.uniform(-0.3, 0.2)
    white = np.array([1 + strength * chance.uniform(-0.12, 0.12) for _ in range(3)], np.float32)
    light = _light(chance, height, width, strength) * (1 + strength * chance.uniform(-0.3, 0.25))
    pixels *= np.float32(contrast)
    pixels += np.float32(128 * (1 - contrast))
    pixels *= light[..., None]
    pixels *= white
    if chance.random() < 0.35 * strength:
        pixels += _glare(chance, height, width)[..., None]
    sigma = strength * chance.uniform(0, 7)
    if sigma > 0.5:
        pixels += _noise(chance, height, width) * np.float32(sigma)
    np.clip(pixels, 0, 255, out=pixels)
    result = Image.fromarray(pixels.astype(np.uint8))
    blur = strength * chance.uniform(0, 0.055) * cap_px
    if blur > 0.3:
        result = result.filter(ImageFilter.GaussianBlur(blur))
    if chance.random() < 0.7 * strength:
        result = _jpeg(result, chance.randint(45, 95))
    return result


@lru_cache(maxsize=1)
def _noise_field() -> np.ndarray:
    """[1024, 1024, 3] float32: grey and coloured noise, made once; pictures take it from random places."""
    source = np.random.default_rng(0)
    grey = source.standard_normal((1024, 1024, 1), np.float32)
    return grey + 0.5 * source.standard_normal((1024, 1024, 3), np.float32)


def _noise(chance: random.Random, height: int, width: int) -> np.ndarray:
    field = _noise_field()
    rows = (np.arange(height) + chance.randrange(1024)) % 1024
    columns = (np.arange(width) + chance.randrange(1024)) % 1024
    return np.asarray(field[rows[:, None], columns])


def _light(chance: random.Random, height: int, width: int, strength: float) -> np.ndarray:
    """Brightness [height, width]: a slope, and perhaps the edge of a shadow."""
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None]
    angle = chance.uniform(0, 2 * math.pi)
    along = math.cos(angle) * columns + math.sin(angle) * rows
    light = 1 + strength * chance.uniform(0, 0.2) * along
    if chance.random() < 0.35 * strength:
        edge = chance.uniform(-0.7, 0.7)
        shade = np.clip(0.5 - (along - edge) * chance.uniform(3, 25), 0, 1)
        light = light * (1 - chance.uniform(0.2, 0.5) * shade)
    return np.asarray(light, np.float32)


def _glare(chance: random.Random, height: int, width: int) -> np.ndarray:
    """A bright spot, added: [height, width]."""
    rows = np.arange(height, dtype=np.float32)[:, None] - chance.uniform(0, height)
    columns = np.arange(width, dtype=np.float32)[None] - chance.uniform(0, width)
    radius = chance.uniform(0.05, 0.25) * min(width, height)
    spot = np.exp(-(rows**2 + (columns / chance.uniform(0.5, 2)) ** 2) / (2 * radius**2))
    return np.asarray(chance.uniform(40, 110) * spot, np.float32)


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as read:
        return read.convert("RGB")
