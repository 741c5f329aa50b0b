"""Batches from the panel generator, each a function of its number and a level of difficulty alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from hypervl.training.targets import (
    character_targets,
    page_targets,
    printed_targets,
    tile_targets,
    token_targets,
)
from hypervl.training.tile_bytes import cut_bytes
from rpi_runtime.images import open_image
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.tiling import tile_picture, whole_picture
from vqa.panels.panel import Difficulty, Panel, make_panel
from vqa.panels.primer import make_page

# What training goes through, easiest first: to answer, and to read.
LEVELS = (
    Difficulty(most_elements=2, camera=0.3, longest_px=420),
    Difficulty(most_elements=5, camera=0.6, longest_px=640),
    Difficulty(most_elements=12, camera=1.0, longest_px=900),
)
READING_LEVELS = (
    Difficulty(most_elements=24, camera=0.3, longest_px=640, crowded=0.8),
    Difficulty(most_elements=24, camera=0.6, longest_px=640, crowded=0.7),
    Difficulty(most_elements=24, camera=1.0, longest_px=900, crowded=0.5),
)
_PANELS_PER_BATCH = 1000  # numbers reserved for one batch
_TILES_PER_PANEL = 10
_FIRST_PAGE = 1_000_000
_EMPTY_SHARE = 0.15  # of tiles without any element that are kept
_PAGE_SHARES = (0.6, 0.4, 0.3)  # of dense batches, by level
# A tile of a larger panel shows one element whole; a small panel in one tile shows four.
_WHOLE_SHARE, _WHOLE_PX = 0.5, (256, 384)


@dataclass(frozen=True)
class DenseBatch:
    images: np.ndarray  # [N, side, side, 3] uint8
    targets: np.ndarray  # [N, g, g, fields] int16
    token_targets: np.ndarray  # [N, g / 2, g / 2, fields] int16
    characters: np.ndarray  # [N, c, c] int16, cells of what the stem gives


@dataclass(frozen=True)
class DenseSource:
    """Tiles with dense targets: `build(number, level)`; all tiles of a batch have one side."""

    spec: VisionSpec
    patch: int
    shuffle: int
    cell: int  # px that one cell of the stem's output stands for
    tiles: int = 12  # per batch at the full side; more at smaller ones
    seed: int = 0

    def build(self, number: int, level: int) -> DenseBatch:
        """Tiles of panels, or pages of the primer: those hold ten times as many words."""
        chance = random.Random(f"dense:{self.seed}:{number}")
        full = self.spec.tile_side
        if chance.random() < _PAGE_SHARES[level]:
            return self._pages(number, level)
        side = chance.choices(self.spec.tile_sides, [0.5**i for i in range(len(self.spec.tile_sides))])[0]
        wanted = min(3 * self.tiles, round(self.tiles * (full / side) ** 2))
        images: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        characters: list[np.ndarray] = []
        panel_number = number * _PANELS_PER_BATCH
        while len(images) < wanted:
            difficulty, whole = READING_LEVELS[level], chance.random() < _WHOLE_SHARE
            if whole:
                shortest, longest = _WHOLE_PX
                difficulty = replace(difficulty, shortest_px=shortest, longest_px=longest, crowded=1.0)
            panel = make_panel("train", panel_number, difficulty, self.seed)
            panel_number += 1
            for image, target, character in self._tiles(chance, panel, side, whole):
                images.append(image)
                targets.append(target)
                characters.append(character)
        stacked = np.stack(targets[:wanted])
        tokens = np.stack([token_targets(target, self.shuffle) for target in stacked])
        return DenseBatch(np.stack(images[:wanted]), stacked, tokens, np.stack(characters[:wanted]))

    def _pages(self, number: int, level: int) -> DenseBatch:
        side = self.spec.tile_side
        first = _FIRST_PAGE + number * self.tiles  # behind the pages that `PrimerSource` showed
        images, targets = [], []
        characters = np.zeros((self.tiles, side // self.cell, side // self.cell), np.int16)
        for i in range(self.tiles):
            page = make_page("train", first + i, side, READING_LEVELS[level].camera, self.seed)
            images.append(np.asarray(page.image))
            targets.append(printed_targets(page.printed, side, self.patch))
            page_targets(page.characters, page.glyphs, self.cell, characters[i])
        stacked = np.stack(targets)
        tokens = np.stack([token_targets(target, self.shuffle) for target in stacked])
        return DenseBatch(np.stack(images), stacked, tokens, characters)

    def _tiles(
        self, chance: random.Random, panel: Panel, side: int, whole: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Some tiles of a panel in random order, or all of it in one, with their targets."""
        picture = open_image(panel.image)
        tiles = [whole_picture(*picture.size)] if whole else list(tile_picture(picture, self.spec).tiles)
        chance.shuffle(tiles)
        taken = 0
        for tile in tiles:
            target = tile_targets(panel.elements, tile, side, self.patch)
            if not target[..., 0].any() and chance.random() > _EMPTY_SHARE:
                continue
            characters = character_targets(panel.elements, tile, side, self.cell)
            yield cut_bytes(picture, tile, side), target, characters
            taken += 1
            if taken == _TILES_PER_PANEL:
                return


@dataclass(frozen=True)
class PrimerBatch:
    images: np.ndarray  # [N, side, side, 3] uint8
    characters: np.ndarray  # [N, c, c] int16


@dataclass(frozen=True)
class PrimerSource:
    """Pages of the primer at the full side."""

    side: int
    cell: int
    pages: int = 12
    seed: int = 0

    def build(self, number: int, level: int) -> PrimerBatch:
        strength = READING_LEVELS[level].camera
        pages = [
            make_page("train", number * self.pages + i, self.side, strength, self.seed)
            for i in range(self.pages)
        ]
        targets = np.zeros((self.pages, self.side // self.cell, self.side // self.cell), np.int16)
        for page, target in zip(pages, targets, strict=True):
            page_targets(page.characters, page.glyphs, self.cell, target)
        return PrimerBatch(np.stack([np.asarray(page.image) for page in pages]), targets)
