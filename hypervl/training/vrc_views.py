"""What a VRC looks at, cut as the device cuts it, and which pictures are kept for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from hypervl.training.loss_file import AskedPicture
from hypervl.training.tile_bytes import cut_bytes
from rpi_runtime.errors import UsageError
from rpi_runtime.images import open_image
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.tiling import Tile, tile_picture, whole_picture

VALIDATION_SHARE = 0.1
FEWEST_PICTURES = 4


def split(pictures: Sequence[AskedPicture], seed: int) -> tuple[list[AskedPicture], list[AskedPicture]]:
    """Training and validation pictures, a tenth for the latter; a picture that is there twice is on one side.

    Raises `UsageError` for fewer pictures than can be split.
    """
    digests = sorted(
        {p.digest for p in pictures}, key=lambda d: hashlib.sha256(f"{seed}:{d}".encode()).digest()
    )
    if len(digests) < FEWEST_PICTURES:
        raise UsageError(
            f"{len(digests)} different pictures are too few to keep some for validation",
            f"Give {FEWEST_PICTURES} or more, or --data-validation.",
        )
    kept = set(digests[: max(1, round(len(digests) * VALIDATION_SHARE))])
    return [p for p in pictures if p.digest not in kept], [p for p in pictures if p.digest in kept]


def viewed(picture: AskedPicture, routing: str) -> tuple[Tile, ...]:
    """The tiles that the VRC predicts for: all of them, or for the routing "image" the whole picture."""
    return picture.grid.tiles if routing == "tile" else (whole_picture(*picture.size),)


def load_views(
    pictures: Sequence[AskedPicture],
    routing: str,
    spec: VisionSpec,
    folder: Path,
    on_progress: Callable[[int, int], None],
) -> np.ndarray:
    """All views of `pictures` in order, [views, S, S, 3] uint8, mapped from a file in `folder`.

    Views that an earlier run cut are taken over. Raises `ImageError` naming a picture that cannot be
    decoded.
    """
    asked = [
        routing,
        spec.vrc_side,
        spec.tile_side,
        spec.max_tiles,
        spec.thumbnail,
        *(p.digest for p in pictures),
    ]
    path = folder / f"views-{hashlib.sha256(repr(asked).encode()).hexdigest()[:12]}.npy"
    if not path.is_file():
        count = sum(len(viewed(p, routing)) for p in pictures)
        scratch = path.with_suffix(".partial")
        size = (count, spec.vrc_side, spec.vrc_side, 3)
        views = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=size)
        row = 0
        for done, asked_picture in enumerate(pictures, 1):
            picture = open_image(asked_picture.path)
            tile_picture(picture, spec)  # decodes as many pixels as the device does
            for tile in viewed(asked_picture, routing):
                views[row] = cut_bytes(picture, tile, spec.vrc_side)
                row += 1
            on_progress(done, len(pictures))
        views.flush()
        del views
        scratch.replace(path)
    mapped: np.ndarray = np.load(path, mmap_mode="r")
    return mapped
