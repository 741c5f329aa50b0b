"""Real inputs for parity and calibration: photographs and text that are shipped with the converters.

Parity and calibration never share one: a range that was fitted to a picture would look too good on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hypervl.checkpoint import Checkpoint
from hypervl.specs import vision_spec
from rpi_runtime.errors import UsageError
from rpi_runtime.images import open_image
from rpi_runtime.tiling import cut, tile_picture
from rpi_runtime.tokenizer import TextCodec

_DATA = Path(__file__).parent / "data"  # LICENCES.md there says where they come from


# Of a user's own: fewer say nothing of a camera; more only take time, and memory for what they are kept in.
LEAST_PHOTOS, MOST_PHOTOS = 4, 16


@dataclass(frozen=True)
class SampleSet:
    photos: tuple[str, ...]  # names in `_DATA`, or paths elsewhere
    text: str


PARITY = SampleSet(("chelsea.jpg", "rocket.jpg"), "parity.txt")
CALIBRATION = SampleSet(("astronaut.jpg", "coffee.jpg"), "calibration.txt")


def photos_of(folder: Path) -> tuple[str, ...]:
    """Paths of the pictures in `folder` that calibration looks at, spread evenly over them by name. Raises
    `UsageError` for a folder that is not there or holds too few, `ImageError` for one that cannot be read."""
    if not folder.is_dir():
        raise UsageError(f"--calibration {folder}: no such folder", "Name a folder with photographs.")
    kinds = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
    found = sorted(str(p.resolve()) for p in folder.iterdir() if p.suffix.lower() in kinds)
    if len(found) < LEAST_PHOTOS:
        raise UsageError(
            f"--calibration {folder} holds {len(found)} pictures, and calibration needs {LEAST_PHOTOS}",
            "Add photographs like those that the device will see.",
        )
    count = min(len(found), MOST_PHOTOS)
    chosen = tuple(found[i * len(found) // count] for i in range(count))
    for path in chosen:
        picture = open_image(path)
        picture.decode(*_SMALL_PX)
        picture.close()
    return chosen


_SMALL_PX = (64, 64)  # to see that a picture is whole


def tiles(source: SampleSet, checkpoint: Checkpoint, side: int, per_photo: int) -> Iterator[np.ndarray]:
    """Tiles cut as the device cuts them, [1, side, side, 3] float32 in [0, 1]: of each photograph the whole
    picture, then tiles spread over its grid."""
    spec = vision_spec(checkpoint.config)
    for name in source.photos:
        picture = open_image(_DATA / name)
        grid = tile_picture(picture, spec)
        ordered = sorted(grid.tiles, key=lambda tile: not tile.is_thumbnail)
        count = min(per_photo, len(ordered))
        for i in range(count):
            yield cut(picture, ordered[i * len(ordered) // count], side)
        picture.close()


def passages(source: SampleSet, checkpoint: Checkpoint, count: int, tokens: int) -> list[list[int]]:
    """`count` runs of `tokens` token ids, spread evenly over the text; shorter only if the whole text is."""
    text = (_DATA / source.text).read_text(encoding="utf-8")
    ids = TextCodec.from_checkpoint(checkpoint.folder).encode(text)
    last = max(0, len(ids) - tokens)
    starts = [i * last // max(1, count - 1) for i in range(count)]
    return [ids[start : start + tokens] for start in starts]
