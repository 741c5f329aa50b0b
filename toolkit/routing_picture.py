"""Draws what routing decided: tile borders over the photo, coloured by the side each tile is encoded at.

Warm colours are expensive, cold ones cheap, and every tile also says its side and tokens. Beside the photo:
how many tiles got which side, and the visual tokens against those of the unrouted picture.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from rpi_runtime.images import Picture
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.tiling import GREY, Grid, Tile
from toolkit.drawing import EMPTY, FAINT, INK, PAPER, WARM_TO_COLD, Font, font_of

# Small pictures are enlarged to the first, large ones reduced to the second.
MIN_LONG_SIDE_PX = 960
MAX_LONG_SIDE_PX = 1600

_TINT = 0.12

Area = tuple[int, int, int, int]  # left, upper, right, lower in px of the page


def draw_routing(
    picture: Picture, grid: Grid, sides: Sequence[int], spec: VisionSpec, out_path: str | os.PathLike[str]
) -> None:
    """Writes a PNG of at most `MAX_LONG_SIDE_PX` per side, legend included.

    `sides` has one entry per tile of `grid`, as `routing.route` gives them. Decodes `picture` if nobody did.
    """
    if len(sides) != len(grid.tiles):
        raise ValueError(f"{len(sides)} sides for {len(grid.tiles)} tiles")
    layout = _layout(picture, grid, len(spec.tile_sides))
    if picture.held_px == (0, 0):
        picture.decode(layout.photo[0], layout.photo[1])
    page = Image.new("RGB", layout.page, PAPER)
    colours = _colours(spec)
    for tile, side in zip(grid.tiles, sides, strict=True):
        area = layout.thumbnail if tile.is_thumbnail else layout.cell(grid, tile)
        _draw_tile(page, picture, tile, area, layout.unit, colours[side], f"{side} px", spec.tokens(side))
    _draw_legend(page, layout, grid, sides, spec)
    page.save(out_path, "PNG")


@dataclass(frozen=True)
class _Layout:
    """Where everything goes, in px. `unit` is a hundredth of the page's long side."""

    unit: float
    page: tuple[int, int]
    photo: tuple[int, int]  # at the page's upper left corner
    legend: Area
    thumbnail: Area

    def cell(self, grid: Grid, tile: Tile) -> Area:
        width, height = self.photo
        return (
            width * tile.column // grid.columns,
            height * tile.row // grid.rows,
            width * (tile.column + 1) // grid.columns,
            height * (tile.row + 1) // grid.rows,
        )


def _layout(picture: Picture, grid: Grid, kinds: int) -> _Layout:
    """The legend goes below a wide picture and to the right of a tall one."""
    width, height = picture.size
    if grid.tiles[0].fill != (0.0, 0.0, 1.0, 1.0):  # padded: show the canvas, a line would be too thin to see
        width, height = grid.columns, grid.rows
    long_side = min(max(*picture.size, MIN_LONG_SIDE_PX), MAX_LONG_SIDE_PX)
    unit = long_side / 100
    margin, thumbnail = round(2 * unit), round(15 * unit)
    text_height = round((10 + 3 * kinds) * unit)
    has_thumbnail = len(grid.tiles) > grid.columns * grid.rows
    if height <= width:
        legend_height = max(text_height, thumbnail + margin) + 2 * margin
        scale = min(long_side / width, (long_side - legend_height) / height)
        photo = (max(1, round(width * scale)), max(1, round(height * scale)))
        page = (photo[0], photo[1] + legend_height)
        top, right = photo[1] + margin, page[0] - margin
        text_right = right - thumbnail - 2 * margin if has_thumbnail else right
        return _Layout(
            unit,
            page,
            photo,
            legend=(margin, top, text_right, top + text_height),
            thumbnail=(right - thumbnail, top, right, top + thumbnail),
        )
    legend_width = round(40 * unit)
    scale = min(long_side / height, (long_side - legend_width - 2 * margin) / width)
    photo = (max(1, round(width * scale)), max(1, round(height * scale)))
    left = photo[0] + margin
    below = text_height + 2 * margin
    return _Layout(
        unit,
        (left + legend_width + margin, max(photo[1], below + thumbnail + 2 * margin)),
        photo,
        legend=(left, margin, left + legend_width, margin + text_height),
        thumbnail=(left, below, left + thumbnail, below + thumbnail),
    )


def _draw_tile(
    page: Image.Image,
    picture: Picture,
    tile: Tile,
    area: Area,
    unit: float,
    colour: str,
    label: str,
    tokens: int,
) -> None:
    left, upper, right, lower = area
    width, height = right - left, lower - upper
    cell = Image.new("RGB", (width, height), (round(GREY * 255),) * 3)
    fill = [round(share * size) for share, size in zip(tile.fill, (width, height) * 2, strict=True)]
    content = picture.crop(tile.box, max(1, fill[2] - fill[0]), max(1, fill[3] - fill[1]))
    cell.paste(Image.fromarray(content), (fill[0], fill[1]))
    cell = Image.blend(cell, Image.new("RGB", cell.size, colour), _TINT)
    draw = ImageDraw.Draw(cell)
    border = max(2, round(0.35 * unit))
    draw.rectangle((0, 0, width - 1, height - 1), outline=colour, width=border)
    size = min(2.2 * unit, width / 7.5, height / 4)
    _draw_chip(draw, (border, border), colour, (label, f"{tokens} tokens"), size)
    page.paste(cell, (left, upper))


def _draw_chip(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], colour: str, lines: tuple[str, str], size: float
) -> None:
    """Two lines of text on a patch of `colour`."""
    fonts = (font_of(size), font_of(0.7 * size))
    ink = INK if _brightness(colour) > 0.45 else PAPER
    inset = 0.35 * size
    width = max(draw.textlength(text, font=font) for text, font in zip(lines, fonts, strict=True))
    left, top = at
    draw.rectangle((left, top, left + width + 2 * inset, top + 2.2 * size + inset), fill=colour)
    draw.text((left + inset, top + 0.2 * size), lines[0], font=fonts[0], fill=ink)
    draw.text((left + inset, top + 1.4 * size), lines[1], font=fonts[1], fill=ink)


def _draw_legend(
    page: Image.Image, layout: _Layout, grid: Grid, sides: Sequence[int], spec: VisionSpec
) -> None:
    draw, unit, colours = ImageDraw.Draw(page), layout.unit, _colours(spec)
    left, top, right, _ = layout.legend
    small = font_of(1.9 * unit)
    used = sum(spec.tokens(side) for side in sides)
    unrouted = len(sides) * spec.tokens(spec.tile_sides[0])
    title = f"{used:,} of {unrouted:,} visual tokens"
    draw.text((left, top), title, font=_fitting(draw, title, 2.6 * unit, right - left), fill=INK)
    count = grid.columns * grid.rows
    tiles = "1 tile" if count == 1 else f"{grid.columns} × {grid.rows} tiles"
    if len(sides) > count:
        tiles += " and a thumbnail"
        at = (layout.thumbnail[0], layout.thumbnail[3] + 0.5 * unit)
        draw.text(at, "thumbnail", font=font_of(1.6 * unit), fill=FAINT)
    saved = f"{tiles}, {100 * (1 - used / unrouted):.0f} % of tokens saved"
    draw.text(
        (left, top + 3.8 * unit), saved, font=_fitting(draw, saved, 1.9 * unit, right - left), fill=FAINT
    )

    # A bar: all of it is the unrouted picture, its coloured parts are what each side takes.
    bar = top + 7.2 * unit
    draw.rectangle((left, bar, right, bar + 2 * unit), fill=EMPTY)
    start = float(left)
    for side in spec.tile_sides:
        end = start + (right - left) * sides.count(side) * spec.tokens(side) / unrouted
        if end > start:
            draw.rectangle((start, bar, end, bar + 2 * unit), fill=colours[side])
        start = end

    row = bar + 3.6 * unit
    for side in spec.tile_sides:
        count = sides.count(side)
        ink = INK if count else FAINT
        draw.rectangle((left, row, left + 2 * unit, row + 2 * unit), fill=colours[side])
        for offset, text in (
            (3.2, f"{side} px"),
            (12.5, f"{count} tile{'' if count == 1 else 's'}"),
            (21, f"{count * spec.tokens(side):,} tokens"),
        ):
            draw.text((left + offset * unit, row - 0.1 * unit), text, font=small, fill=ink)
        row += 3 * unit


def _colours(spec: VisionSpec) -> dict[int, str]:
    """The largest side is the warmest; the same side has the same colour in every picture of a bundle."""
    sides = sorted(spec.tile_sides, reverse=True)
    steps = max(1, len(sides) - 1)
    last = len(WARM_TO_COLD) - 1
    return {side: WARM_TO_COLD[i * last // steps] for i, side in enumerate(sides)}


def _brightness(colour: str) -> float:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _fitting(draw: ImageDraw.ImageDraw, text: str, size: float, width: float) -> Font:
    """A font of at most `size` in which `text` is no wider than `width`."""
    return font_of(math.floor(size * min(1.0, width / draw.textlength(text, font=font_of(size)))))
