"""The picture of a routing: colours are where the sides are, and the bar tells the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from rpi_runtime.images import open_image
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.tiling import plan_grid, tile_picture
from toolkit.routing_picture import MAX_LONG_SIDE_PX, MIN_LONG_SIDE_PX, draw_routing

SPEC = VisionSpec(
    tile_side=448,
    tile_sides=(448, 320, 224),
    max_tiles=12,
    thumbnail=True,
    patch_px=32,
    scales=(0.25, 0.5, 0.75, 1.0),
    vrc_side=224,
    auto_large_share=0.5,
)
VERMILION, YELLOW, BLUE = (0xD5, 0x5E, 0x00), (0xF0, 0xE4, 0x42), (0x00, 0x72, 0xB2)
COLOURS = {448: VERMILION, 320: YELLOW, 224: BLUE}


def drawn(image: Image.Image, sides: list[int], folder: Path) -> np.ndarray:
    """The page as `[height, width, 3]`; sides are repeated to as many as the grid has tiles."""
    picture = open_image(image)
    grid = plan_grid(*picture.size, SPEC)
    draw_routing(
        picture, grid, [sides[i % len(sides)] for i in range(len(grid.tiles))], SPEC, folder / "out.png"
    )
    with Image.open(folder / "out.png") as page:
        assert page.format == "PNG"
        return np.asarray(page)


@pytest.mark.parametrize(
    "size", [(1, 1), (30, 20), (600, 400), (400, 601), (5000, 4000), (20000, 20), (20, 20000), (9000, 2)]
)
def test_any_picture_gives_a_page_that_fits_a_screen(size: tuple[int, int], tmp_path: Path) -> None:
    page = drawn(Image.new("RGB", size, "grey"), [448, 224], tmp_path)
    assert max(page.shape[:2]) <= MAX_LONG_SIDE_PX
    assert max(page.shape[:2]) >= MIN_LONG_SIDE_PX * 0.8
    assert min(page.shape[:2]) >= 300


def test_each_tile_has_a_border_in_the_colour_of_its_side(tmp_path: Path) -> None:
    image = Image.fromarray(data.coffee())  # 600 x 400: 3 x 2 tiles and a thumbnail
    sides = [448, 320, 224, 224, 448, 320, 224]
    page = drawn(image, sides, tmp_path)
    width = page.shape[1]
    height = round(width * 400 / 600)
    for index, side in enumerate(sides[:6]):
        row, column = divmod(index, 3)
        right, lower = width * (column + 1) // 3 - 1, height * (row + 1) // 2 - 1
        assert tuple(page[lower, right]) == COLOURS[side]
        assert tuple(page[lower - height // 4, right - 1]) == COLOURS[side]


def test_the_bar_shows_the_share_of_tokens_that_each_side_takes(tmp_path: Path) -> None:
    page = drawn(Image.fromarray(data.coffee()), [448, 320, 224, 224, 448, 320, 224], tmp_path)
    empty = (0xE4, 0xE6, 0xE9)
    bar = next(row for row in page if (row == empty).all(axis=-1).sum() > 50)
    bar = bar[: np.flatnonzero((bar == empty).all(axis=-1))[-1] + 1]  # the thumbnail stands to the right
    pixels = [int((bar == colour).all(axis=-1).sum()) for colour in (VERMILION, YELLOW, BLUE, empty)]
    tokens = [2 * 196, 2 * 100, 3 * 49]
    expected = np.array([*tokens, 7 * 196 - sum(tokens)]) / (7 * 196)
    np.testing.assert_allclose(np.array(pixels) / sum(pixels), expected, atol=0.005)


def test_the_photo_stays_recognisable(tmp_path: Path) -> None:
    image = Image.fromarray(data.astronaut())
    page = drawn(image, [320], tmp_path)
    photo = np.asarray(image.resize((page.shape[1],) * 2)).astype(float)
    middle = slice(len(photo) // 4, 3 * len(photo) // 4)
    found, expected = page[middle, middle].astype(float), photo[middle, middle]
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95


def test_a_line_is_shown_as_the_model_sees_it(tmp_path: Path) -> None:
    page = drawn(Image.new("RGB", (20000, 20), "white"), [224], tmp_path)
    tile = page.shape[1] // 12
    column = page[: tile + 1, tile // 2 + tile * 3]
    assert (column.min(axis=1) > 200).sum() in range(2, 6), "the line, 11 of 448 px, is thin and visible"
    assert ((column.max(axis=1) > 90) & (column.max(axis=1) < 150)).sum() > tile * 0.5, "around it is grey"


def test_a_picture_that_was_tiled_already_can_be_drawn(tmp_path: Path) -> None:
    picture = open_image(Image.fromarray(data.coffee()))
    grid = tile_picture(picture, SPEC)
    draw_routing(picture, grid, [224] * 7, SPEC, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 10_000


def test_sides_that_belong_to_another_picture_are_refused(tmp_path: Path) -> None:
    picture = open_image(Image.fromarray(data.coffee()))
    with pytest.raises(ValueError, match="3 sides for 7 tiles"):
        draw_routing(picture, plan_grid(*picture.size, SPEC), [224] * 3, SPEC, tmp_path / "out.png")
