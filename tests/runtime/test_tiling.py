"""Grids and tiles. transformers' InternVL tiling and Pillow's resize are the oracles."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from rpi_runtime.images import open_image
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.tiling import GREY, MAX_STRETCH, Grid, closest_arrangement, cut, plan_grid, tile_picture

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
SIDES = st.integers(1, 30000)
PHOTO = Image.fromarray(data.astronaut())


def grid_of(width: int, height: int, **changes: object) -> Grid:
    return plan_grid(width, height, dataclasses.replace(SPEC, **changes))


@pytest.mark.parametrize("max_tiles", [1, 2, 4, 6, 9, 12, 24])
def test_the_grid_is_the_one_that_transformers_chooses(max_tiles: int) -> None:
    oracle = pytest.importorskip(
        "transformers.models.got_ocr2.image_processing_pil_got_ocr2"
    ).get_optimal_tiled_canvas
    rng = np.random.default_rng(max_tiles)
    log_uniform = np.exp(rng.uniform(0, np.log(30000), (1500, 2))).astype(int)
    # Equal distances occur at whole and half ratios, and where the area decides.
    ties = [
        (w * k, h * k) for w in range(1, 9) for h in range(1, 9) for k in (1, 50, 112, 224, 448, 634, 1000)
    ]
    for width, height in [*map(tuple, log_uniform.tolist()), *ties]:
        expected = oracle((height, width), (448, 448), 1, max_tiles)
        assert closest_arrangement(width, height, 448, max_tiles) == expected, (width, height)


@settings(max_examples=500, deadline=None)
@given(width=SIDES, height=SIDES, max_tiles=st.integers(1, 24), thumbnail=st.booleans())
@example(width=1, height=1, max_tiles=12, thumbnail=True)
@example(width=20000, height=20, max_tiles=12, thumbnail=True)
@example(width=1, height=30000, max_tiles=12, thumbnail=True)
def test_tiles_cover_every_picture_once(width: int, height: int, max_tiles: int, thumbnail: bool) -> None:
    grid = grid_of(width, height, max_tiles=max_tiles, thumbnail=thumbnail)
    tiles = grid.tiles[: grid.columns * grid.rows]
    assert len(tiles) <= max_tiles
    assert [t.index for t in grid.tiles] == list(range(len(grid.tiles)))
    assert [(t.row, t.column) for t in tiles] == [
        (r, c) for r in range(grid.rows) for c in range(grid.columns)
    ]
    # Neighbours share their edges exactly, and the outer edges are the picture's.
    first_row, first_column = tiles[: grid.columns], tiles[:: grid.columns]
    for cells, near, far, length in ((first_row, 0, 2, width), (first_column, 1, 3, height)):
        assert cells[0].box[near] == 0
        assert cells[-1].box[far] == length
        assert all(a.box[far] == b.box[near] for a, b in pairwise(cells))
        assert all(t.box[near] < t.box[far] for t in cells)
    for tile in tiles:
        assert tile.box[::2] == first_row[tile.column].box[::2]
        assert tile.box[1::2] == first_column[tile.row].box[1::2]
    last = grid.tiles[len(tiles) :]
    assert len(last) == (1 if thumbnail and len(tiles) > 1 else 0)
    assert all(t.is_thumbnail and t.box == (0, 0, width, height) for t in last)


@settings(max_examples=500, deadline=None)
@given(width=SIDES, height=SIDES, max_tiles=st.integers(1, 24), side=st.sampled_from([32, 224, 448]))
@example(width=20000, height=20, max_tiles=12, side=32)
def test_no_axis_is_stretched_more_than_twice_the_other(
    width: int, height: int, max_tiles: int, side: int
) -> None:
    for tile in grid_of(width, height, max_tiles=max_tiles).tiles:
        left, upper, right, lower = tile.fill
        assert 0 <= left < right <= 1
        assert 0 <= upper < lower <= 1
        across = (right - left) / (tile.box[2] - tile.box[0])
        down = (lower - upper) / (tile.box[3] - tile.box[1])
        assert 1 / (MAX_STRETCH * 1.0001) <= across / down <= MAX_STRETCH * 1.0001
        # Grey is only where the bound asks for it.
        if (right - left, lower - upper) != (1, 1):
            assert max(across / down, down / across) == pytest.approx(MAX_STRETCH)


def test_a_grid_asks_for_as_many_pixels_as_its_content_has() -> None:
    assert grid_of(4000, 3000).content_px == (4 * 448, 3 * 448)
    assert grid_of(640, 400, max_tiles=1).content_px == (448, 448)
    width, height = grid_of(20000, 20).content_px
    assert (width, height) == (12 * 448, 11)


@pytest.mark.parametrize(("width", "height"), [(900, 600), (511, 512), (333, 1000), (1800, 1350)])
def test_full_size_tiles_are_the_whole_canvas_resized_and_cut(width: int, height: int) -> None:
    image = PHOTO.resize((width, height), Image.Resampling.BICUBIC)
    picture = open_image(image)
    grid = tile_picture(picture, SPEC)
    canvas = image.resize((grid.columns * 448, grid.rows * 448), Image.Resampling.BICUBIC)
    expected = np.asarray(canvas).astype(np.float32) / 255
    for tile in grid.tiles[: grid.columns * grid.rows]:
        part = expected[tile.row * 448 :, tile.column * 448 :][:448, :448]
        error = np.abs(cut(picture, tile, 448)[0] - part) * 255
        # Pillow begins with the axis that is less work, and rounds and clips to 8 bits in between.
        assert error.max() <= 8, tile
        assert error.mean() < 0.2, tile


@pytest.mark.parametrize("side", [224, 320, 448])
def test_a_tile_is_resampled_from_the_source_to_its_side_in_one_step(side: int) -> None:
    image = PHOTO.resize((1000, 500), Image.Resampling.BICUBIC)
    picture = open_image(image)
    for tile in tile_picture(picture, SPEC).tiles:
        expected = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=tile.box))
        found = cut(picture, tile, side)
        assert found.shape == (1, side, side, 3)
        assert found.dtype == np.float32
        assert np.array_equal(np.rint(found[0] * 255), expected)


def test_a_line_is_centred_on_grey_and_keeps_its_colour() -> None:
    picture = open_image(Image.new("RGB", (20000, 20), (255, 0, 51)))
    grid = tile_picture(picture, SPEC)
    assert (grid.columns, grid.rows) == (12, 1)
    tile = cut(picture, grid.tiles[5], 448)[0]
    content = np.flatnonzero((tile != GREY).any(axis=(1, 2)))
    assert content[0] + content[-1] in (446, 447, 448)
    assert len(content) == 11  # 20 px at 5376/20000 is 5.4 px, twice as high is 10.75
    np.testing.assert_allclose(tile[content], np.broadcast_to([1, 0, 0.2], (11, 448, 3)), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 30000), (30000, 1), (2, 3), (20000, 20)])
@pytest.mark.parametrize("side", [32, 448])
def test_tiles_of_the_strangest_pictures_have_content(size: tuple[int, int], side: int) -> None:
    picture = open_image(Image.new("L", size, 255))
    for tile in tile_picture(picture, SPEC).tiles:
        values = np.unique(cut(picture, tile, side))
        assert values.max() == 1
        assert set(values.tolist()) <= {GREY, 1.0}
