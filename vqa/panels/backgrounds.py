"""What lies behind a panel: pieces of real photographs. The test split's are never seen in training."""

from __future__ import annotations

import random
from functools import lru_cache

from PIL import Image, ImageOps

from vqa.panels.fonts import package_folder

_TRAIN = (
    *(("skimage", f"data/{n}.png") for n in ("astronaut", "chelsea", "brick", "grass", "gravel")),
    *(("skimage", f"data/{n}.png") for n in ("coins", "ihc", "camera", "moon")),
    ("skimage", "data/rocket.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
_TEST = tuple(
    ("skimage", f"data/{n}") for n in ("motorcycle_left.png", "coffee.png", "hubble_deep_field.jpg")
)


def background(chance: random.Random, split: str, size: tuple[int, int]) -> Image.Image:
    """A random piece of a random photograph, RGB, stretched to `size`."""
    photo = _photo(*chance.choice(_TEST if split == "test" else _TRAIN))
    width = chance.uniform(0.3, 1.0) * photo.width
    height = min(photo.height, width * size[1] / size[0] * chance.uniform(0.7, 1.4))
    left = chance.uniform(0, photo.width - width)
    upper = chance.uniform(0, photo.height - height)
    piece = photo.resize(size, Image.Resampling.BILINEAR, (left, upper, left + width, upper + height))
    return ImageOps.mirror(piece) if chance.random() < 0.5 else piece


@lru_cache(maxsize=32)
def _photo(package: str, file: str) -> Image.Image:
    with Image.open(package_folder(package) / file) as image:
        return image.convert("RGB")
