"""Batches from the panel generator, each a function of its number and a level of difficulty alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hypervl.training.targets import Cells, DenseTargets, page_targets
from hypervl.training.tile_bytes import cut_bytes
from rpi_runtime.images import open_image
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.tiling import tile_picture, whole_picture
from vqa.panels.panel import Difficulty, Panel, make_panel
from vqa.panels.primer import Page, make_page

# What training goes through, easiest first: to answer, and to read.
LEVELS = (
    Difficulty(most_elements=2, camera=0.3, longest_px=420),
    Difficulty(most_elements=5, camera=0.6, longest_px=640),
    Difficulty(most_elements=12, camera=1.0, longest_px=900),
)
READING_LEVELS = (
    Difficulty(most_elements=24, camera=0.3, longest_px=540, crowded=0.8),
    Difficulty(most_elements=24, camera=0.6, longest_px=700, crowded=0.7),
    Difficulty(most_elements=24, camera=1.0, longest_px=900, crowded=0.25),
)
_PANELS_PER_BATCH = 1000  # numbers reserved for one batch
_TILES_PER_PANEL = 2
_FIRST_PAGE = 1_000_000
_EMPTY_SHARE = 0.15  # of tiles without any element that are kept
_PAGE_SHARES = (0.5, 0.35, 0.15)  # of dense batches, by level
_WHOLE_SHARES = (0.6, 0.6, 0.25)  # of panels, shown whole in one tile: many elements, and small ones
_SIDE_SHARES = (0.6, 0.3, 0.1)  # of dense batches at each tile side, the largest first


@dataclass(frozen=True)
class DenseBatch:
    images: np.ndarray  # [N, side, side, 3] uint8
    targets: DenseTargets


@dataclass(frozen=True)
class DenseSource:
    """Tiles with dense targets: `build(number, level)`; all tiles of a batch have one side."""

    spec: VisionSpec
    cells: Cells
    tiles: int = 3  # per batch at the full side; more at smaller ones
    seed: int = 0

    def build(self, number: int, level: int) -> DenseBatch:
        """Tiles of panels, or pages of the primer: those hold ten times as many words."""
        chance = random.Random(f"dense:{self.seed}:{number}")
        full, sides = self.spec.tile_side, self.spec.tile_sides
        if chance.random() < _PAGE_SHARES[level]:
            return self._pages(number, level)
        side = chance.choices(sides, _SIDE_SHARES[: len(sides)])[0]
        wanted = min(3 * self.tiles, round(self.tiles * (full / side) ** 2))
        made: list[tuple[np.ndarray, DenseTargets]] = []
        panel_number = number * _PANELS_PER_BATCH
        while len(made) < wanted:
            panel = make_panel("train", panel_number, READING_LEVELS[level], self.seed)
            panel_number += 1
            made += self._tiles(chance, panel, side, _WHOLE_SHARES[level])
        images, targets = zip(*made[:wanted], strict=True)
        return DenseBatch(np.stack(images), DenseTargets.stack(targets))

    def _pages(self, number: int, level: int) -> DenseBatch:
        first = _FIRST_PAGE + number * self.tiles  # behind the pages that `PrimerSource` showed
        pages = _pages(first, self.tiles, self.spec.tile_side, level, self.seed)
        images = np.stack([np.asarray(page.image) for page in pages])
        return DenseBatch(images, DenseTargets.stack([DenseTargets.of_page(p, self.cells) for p in pages]))

    def _tiles(
        self, chance: random.Random, panel: Panel, side: int, whole_share: float
    ) -> Iterator[tuple[np.ndarray, DenseTargets]]:
        """All of a panel in one tile, or some tiles of its grid in random order, with their targets."""
        picture = open_image(panel.image)
        whole = chance.random() < whole_share
        tiles = [whole_picture(*picture.size)] if whole else list(tile_picture(picture, self.spec).tiles)
        chance.shuffle(tiles)
        taken = 0
        for tile in tiles:
            targets = DenseTargets.of_tile(panel.elements, tile, side, self.cells)
            if not targets.patches[..., 0].any() and chance.random() > _EMPTY_SHARE:
                continue
            yield cut_bytes(picture, tile, side), targets
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
    pages: int = 3
    seed: int = 0

    def build(self, number: int, level: int) -> PrimerBatch:
        pages = _pages(number * self.pages, self.pages, self.side, level, self.seed)
        targets = np.zeros((self.pages, self.side // self.cell, self.side // self.cell), np.int16)
        for page, target in zip(pages, targets, strict=True):
            page_targets(page.characters, page.glyphs, self.cell, target)
        return PrimerBatch(np.stack([np.asarray(page.image) for page in pages]), targets)


def _pages(first: int, count: int, side: int, level: int, seed: int) -> list[Page]:
    strength = READING_LEVELS[level].camera
    return [make_page("train", first + i, side, strength, seed) for i in range(count)]
