"""The camera of the panels: where points come to lie, against Pillow's own perspective transform."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from vqa.panels import camera
from vqa.panels.scene import Box

_SIZE = (320, 240)
_PANEL: Box = (20.0, 15.0, 300.0, 220.0)
_RED = (255, 0, 0)

# Four points that each stay in their own quarter of a square: a camera never turns a panel inside out.
_offset = st.floats(-20, 20)
_quadrangles = st.lists(_offset, min_size=8, max_size=8).map(
    lambda by: np.array([[0, 0], [100, 0], [100, 100], [0, 100]], float) + np.reshape(by, (4, 2))
)


def _view(seed: int, strength: float = 1.0) -> np.ndarray:
    return camera.view(random.Random(seed), _SIZE, _PANEL, strength)


@settings(deadline=None)
@given(_quadrangles, _quadrangles)
def test_a_homography_maps_four_corners_to_four_corners(source: np.ndarray, target: np.ndarray) -> None:
    matrix = camera._homography(source, target)
    np.testing.assert_allclose(camera.project_points(matrix, source), target, atol=1e-6)


@settings(deadline=None)
@given(_quadrangles, _quadrangles)
def test_the_inverse_leads_back(source: np.ndarray, target: np.ndarray) -> None:
    there = camera._homography(source, target)
    inside = source.mean(0) + 0.3 * (source - source.mean(0))
    back = camera.project_points(np.linalg.inv(there), camera.project_points(there, inside))
    np.testing.assert_allclose(back, inside, atol=1e-6)


def test_corners_of_a_box_are_given_clockwise_from_the_upper_left() -> None:
    np.testing.assert_array_equal(camera.project(np.eye(3), (1, 2, 3, 4)), [[1, 2], [3, 2], [3, 4], [1, 4]])


@pytest.mark.parametrize("seed", range(8))
def test_what_pillow_warps_lies_where_the_projection_says(seed: int) -> None:
    box: Box = (120.0, 60.0, 180.0, 130.0)
    upright = Image.new("RGB", _SIZE, "white")
    ImageDraw.Draw(upright).rectangle((120, 60, 179, 129), fill=_RED)
    matrix = _view(seed)
    warped = np.asarray(camera.warp(upright, _PANEL, matrix, Image.new("RGB", _SIZE, "black")), int)
    red = (warped[..., 0] > 128) & (warped[..., 1] < 128)
    corners = camera.project(matrix, box)
    expected = Image.new("1", _SIZE)
    # Pillow counts a pixel by its middle.
    ImageDraw.Draw(expected).polygon([tuple(corner) for corner in corners - 0.5], fill=1)
    differing = red ^ np.asarray(expected)
    edge = np.linalg.norm(corners - np.roll(corners, 1, axis=0), axis=1).sum()
    assert differing.sum() <= edge  # a pixel along each edge
    rows, columns = red.nonzero()
    np.testing.assert_allclose(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
        [*corners.min(0), *corners.max(0)],
        atol=1.5,
    )


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), strength=st.floats(0, 1))
def test_the_whole_panel_stays_in_the_picture(seed: int, strength: float) -> None:
    corners = camera.project(_view(seed, strength), _PANEL)
    assert corners.min() >= 0
    assert (corners.max(0) <= _SIZE).all()


@settings(deadline=None)
@given(seed=st.integers(0, 10_000))
def test_one_zoom_holds_for_the_whole_panel_within_a_third(seed: int) -> None:
    """Text heights in the picture are those of the drawing times the zoom; here it is measured."""
    matrix = _view(seed)
    zoom = abs(float(np.linalg.det(matrix[:2, :2]))) ** 0.5
    for x in np.linspace(_PANEL[0], _PANEL[2] - 1, 4):
        for y in np.linspace(_PANEL[1], _PANEL[3] - 1, 4):
            square = camera.project(matrix, (x, y, x + 1, y + 1))
            turned = np.roll(square, -1, axis=0)
            area = 0.5 * abs((square[:, 0] * turned[:, 1] - square[:, 1] * turned[:, 0]).sum())
            assert zoom == pytest.approx(area**0.5, rel=1 / 3)


def test_without_strength_the_photograph_is_the_drawing() -> None:
    image = Image.effect_noise(_SIZE, 40).convert("RGB")
    np.testing.assert_array_equal(camera.photograph(random.Random(0), image, 12, strength=0), image)
    np.testing.assert_allclose(_view(0, strength=0), np.eye(3), atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_a_cover_changes_what_its_mask_says_and_nothing_else(seed: int) -> None:
    before = Image.new("RGB", _SIZE, (1, 2, 3))
    after = before.copy()
    mask = np.asarray(camera.cover(random.Random(seed), after, 12.0)) > 0
    changed = (np.asarray(before) != np.asarray(after)).any(-1)
    assert mask.any()
    np.testing.assert_array_equal(changed, mask)
