"""Which side each tile is encoded at, and which branch encodes it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rpi_runtime.errors import UsageError
from rpi_runtime.images import Picture, open_image
from rpi_runtime.manifest import VisionSpec
from rpi_runtime.routing import Routing, choose_branch, route, side_for
from rpi_runtime.tiling import Grid, tile_picture

SPEC = VisionSpec(
    tile_side=448,
    tile_sides=(448, 320, 224),
    max_tiles=12,
    thumbnail=True,
    patch_px=32,
    scales=(0.25, 0.5, 0.75, 1.0),
    vrc_side=64,
    auto_large_share=0.5,
)


def black_white_picture() -> tuple[Picture, Grid]:
    """Two tiles side by side, black and white, and a thumbnail."""
    image = Image.new("L", (800, 400))
    image.paste(255, (400, 0, 800, 400))
    picture = open_image(image)
    return picture, tile_picture(picture, SPEC)


class BrightnessVRC:
    """Black deserves the least, white the most; remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.seen.append(images)
        return -np.abs(np.asarray(SPEC.scales) - 0.25 - 0.75 * images.mean())


@pytest.mark.parametrize("text", ["tile", "image", "fixed:0.5", "fixed:1", " tile "])
def test_routing_is_written_as_it_is_read(text: str) -> None:
    assert str(Routing.parse(text)) == text.strip()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tyle", "Did you mean 'tile'"),
        ("", "fixed:<scale>"),
        ("fixd:0.5", "Did you mean 'fixed'"),
        ("fixed", "is not a number"),
        ("fixed:half", "'half' is not a number"),
        ("fixed:0", "above 0"),
        ("fixed:1.5", "at most 1"),
        ("fixed:nan", "above 0"),
        ("image:0.5", "takes no value"),
    ],
)
def test_a_wrong_routing_is_answered_with_the_right_ones(text: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        Routing.parse(text)
    assert says in str(error.value)
    assert "fixed:0.5" in error.value.remedy


def test_each_tile_gets_the_resolution_it_deserves() -> None:
    picture, grid = black_white_picture()
    vrc = BrightnessVRC()
    routed = route(picture, grid, SPEC, Routing(), vrc)
    assert routed.scales == (0.25, 1.0, 0.5)  # black, white, thumbnail (on a tie the cheaper)
    assert routed.sides == (224, 448, 224)
    assert routed.tokens == (49, 196, 49)
    assert (routed.total_tokens, routed.tokens_unrouted) == (294, 588)
    assert routed.grid_sides == (224, 448)
    assert [image.shape for image in vrc.seen] == [(1, 64, 64, 3)] * 3
    assert all(image.dtype == np.float32 for image in vrc.seen)
    assert [round(float(image.mean())) for image in vrc.seen[:2]] == [0, 1]


def test_per_image_one_look_at_the_thumbnail_decides_for_all() -> None:
    picture, grid = black_white_picture()
    vrc = BrightnessVRC()
    routed = route(picture, grid, SPEC, Routing("image"), vrc)
    assert routed.sides == (224, 224, 224)
    assert len(vrc.seen) == 1
    # The thumbnail of a 2:1 picture: black left, white right.
    assert vrc.seen[0][0, 32, :, 0].round().tolist() == [0.0] * 32 + [1.0] * 32


def test_per_image_works_without_a_thumbnail_in_the_grid() -> None:
    image = open_image(Image.new("L", (400, 400), 255))
    spec = dataclasses.replace(SPEC, thumbnail=False)
    assert route(image, tile_picture(image, spec), spec, Routing("image"), BrightnessVRC()).sides == (448,)


def test_a_fixed_scale_asks_nobody() -> None:
    picture, grid = black_white_picture()

    def refuse(images: np.ndarray) -> np.ndarray:
        raise AssertionError("the VRC was asked")

    assert route(picture, grid, SPEC, Routing.parse("fixed:0.6"), refuse).sides == (320, 320, 320)


@given(scale=st.floats(0.001, 1.0))
def test_a_side_is_never_smaller_than_asked_for_nor_larger_than_needed(scale: float) -> None:
    side = side_for(scale, SPEC)
    assert side in SPEC.tile_sides
    assert side + 1e-3 >= scale * SPEC.tile_side
    assert not any(scale * SPEC.tile_side <= other < side for other in SPEC.tile_sides)


def test_the_scale_of_a_side_is_that_side() -> None:
    assert [side_for(side / 448, SPEC) for side in SPEC.tile_sides] == [448, 320, 224]
    # 224 / 800 * 800 is 224.00000000000003
    assert side_for(224 / 800, dataclasses.replace(SPEC, tile_side=800, tile_sides=(800, 256, 224))) == 224


def test_without_a_full_side_the_largest_there_is_serves() -> None:
    assert side_for(1.0, dataclasses.replace(SPEC, tile_sides=(320, 224))) == 320


@pytest.mark.parametrize(
    ("policy", "sides", "available", "branch"),
    [
        ("base", (448,), ("base", "large"), "base"),
        ("large", (224,), ("base", "large"), "large"),
        ("auto", (448, 224), ("base", "large"), "large"),  # half of them is enough
        ("auto", (448, 224, 320), ("base", "large"), "base"),
        ("auto", (224, 320), ("large",), "large"),
        ("auto", (448, 448), ("base",), "base"),
        ("auto", (), ("base", "large"), "base"),
    ],
)
def test_the_branch_follows_the_policy(
    policy: str, sides: tuple[int, ...], available: tuple[str, ...], branch: str
) -> None:
    assert choose_branch(policy, sides, SPEC, available) == branch


@pytest.mark.parametrize(
    ("policy", "available", "says"),
    [
        ("large", ("base",), "no large vision branch"),
        ("base", ("large",), "no base vision branch"),
        ("auto", (), "no vision branch"),
        ("huge", ("base", "large"), "unknown branch 'huge'"),
        ("lrage", ("base",), "Did you mean 'large'"),
    ],
)
def test_a_branch_that_is_not_there_is_a_usage_error(
    policy: str, available: tuple[str, ...], says: str
) -> None:
    with pytest.raises(UsageError) as error:
        choose_branch(policy, (448,), SPEC, available)
    assert says in str(error.value)
    assert error.value.remedy
