"""Which tiles suit the panels: how many elements some tile shows whole, and large enough to read.

What no tile shows whole must be put together from two, which a small decoder learns late or never. Per tile
side and most tiles: tiles and pixels per picture, and the share of elements whose name and value lie whole
inside one tile, thumbnail included, with capitals of at least 7 px (numbers on a scale: half of that).

    python -m benchmarks.tile_sides [--panels 300]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hypervl.config import preset
from hypervl.specs import vision_spec
from hypervl.training.targets import Place, inside
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.tiling import Grid, plan_grid
from vqa.panels.panel import Seen, make_panel

TRIED = ((192, 12), (192, 6), (256, 9), (256, 6), (320, 6), (320, 4), (384, 4), (384, 2), (448, 4))
LEGIBLE_PX = 7.0


def shown_whole(seen: Seen, grid: Grid, side: int) -> bool:
    for tile in grid.tiles:
        place = Place.of(tile, side)
        zoom = float(np.min(place.scale))
        least = LEGIBLE_PX if seen.element.scale is None else LEGIBLE_PX / 2
        large = seen.label_px * zoom >= LEGIBLE_PX and seen.text_px * zoom >= least
        if large and inside(place.box(seen.label), side) and inside(place.box(seen.body), side):
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--panels", type=int, default=300)
    count = parser.parse_args().panels
    specs: list[VisionSpec] = [
        replace(vision_spec(preset("nano")), tile_side=side, tile_sides=(side,), max_tiles=most)
        for side, most in TRIED
    ]
    elements, tiles, whole = 0, np.zeros(len(specs)), np.zeros(len(specs))
    for number in track(range(count), "panels"):
        panel = make_panel("validation", number)
        elements += len(panel.elements)
        for i, spec in enumerate(specs):
            grid = plan_grid(*panel.image.size, spec)
            tiles[i] += len(grid.tiles)
            whole[i] += sum(shown_whole(seen, grid, spec.tile_side) for seen in panel.elements)
    table = Table("tile side", "most tiles", "tiles per picture", "kilopixels per picture", "elements whole")
    for i, spec in enumerate(specs):
        each = tiles[i] / count
        table.add_row(
            f"{spec.tile_side} px",
            str(spec.max_tiles),
            f"{each:.1f}",
            f"{each * spec.tile_side**2 / 1e3:.0f}",
            f"{whole[i] / elements:.1%}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
