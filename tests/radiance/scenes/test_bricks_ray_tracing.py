"""Closed forms of the analytic ray tracer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from braid.radiance.scenes.bricks import (
    BOX,
    Lighting,
    Solids,
    chord,
    in_shadow,
    normals,
    screen_rectangles,
    shade,
)


def solids(*rows: tuple[list[float], list[float], int]) -> Solids:
    center, half, axis = zip(*rows, strict=True)
    color = np.full((len(rows), 3), 0.5)
    return Solids(np.array(center, float), np.array(half, float), np.array(axis), color)


def unit(*vector: float) -> np.ndarray:
    return np.array(vector) / np.linalg.norm(vector)


def test_a_ray_enters_and_leaves_a_box_at_its_faces() -> None:
    enter, leave = chord(
        np.array([1.0, 0, 0]), np.array([0.5, 1, 2]), BOX, np.array([[-3.0, 0, 0]]), np.eye(3)[[0]]
    )
    assert (enter[0], leave[0]) == pytest.approx((3.5, 4.5))


def test_a_diagonal_ray_crosses_a_cube_from_corner_to_corner() -> None:
    direction = unit(1, 1, 1)
    enter, leave = chord(np.zeros(3), np.ones(3), BOX, -3 * np.ones((1, 3)), direction[None])
    assert (enter[0], leave[0]) == pytest.approx((2 * math.sqrt(3), 4 * math.sqrt(3)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("offset", [0.0, 0.3, 0.69, 0.71])
def test_a_ray_across_a_cylinder_has_the_length_of_a_discs_chord(axis: int, offset: float) -> None:
    across, aside = (axis + 1) % 3, (axis + 2) % 3
    half = np.full(3, 0.7)
    half[axis] = 0.2
    origin, direction = np.zeros((1, 3)), np.zeros((1, 3))
    origin[0, across], origin[0, aside], direction[0, across] = -5, offset, 1
    enter, leave = chord(np.zeros(3), half, axis, origin, direction)
    if offset > 0.7:
        assert enter[0] > leave[0]
    else:
        reach = math.sqrt(0.7**2 - offset**2)
        assert (enter[0], leave[0]) == pytest.approx((5 - reach, 5 + reach))


@pytest.mark.parametrize(("offset", "hits"), [(0.69, True), (0.71, False)])
def test_a_ray_along_a_cylinder_enters_through_its_cap(offset: float, hits: bool) -> None:
    origin, direction = np.array([[offset, 0, 5.0]]), np.array([[0, 0, -1.0]])
    enter, leave = chord(np.zeros(3), np.array([0.7, 0.7, 0.2]), 2, origin, direction)
    assert (enter[0] <= leave[0]) == hits
    if hits:
        assert (enter[0], leave[0]) == pytest.approx((4.8, 5.2))


@pytest.mark.parametrize("axis", [BOX, 0, 1, 2])
def test_chords_are_where_points_along_the_ray_are_inside(axis: int) -> None:
    """Against dense sampling of each ray with the definition of the shape."""
    rng = np.random.default_rng(axis + 1)
    half = rng.uniform(0.3, 0.8, 3)
    if axis != BOX:
        half[[i for i in range(3) if i != axis]] = 0.6
    center = rng.normal(size=3) * 0.2
    origins = rng.normal(size=(300, 3))
    origins *= 4 / np.linalg.norm(origins, axis=1, keepdims=True)
    towards = rng.normal(size=(300, 3)) * 0.6 - origins
    directions = towards / np.linalg.norm(towards, axis=1, keepdims=True)
    enter, leave = chord(center, half, axis, origins, directions)
    t = np.linspace(2, 6, 4001)
    local = (origins[:, None] + t[:, None] * directions[:, None] - center) / half
    inside = (np.abs(local) <= 1).all(-1)
    if axis != BOX:
        plane = [i for i in range(3) if i != axis]
        inside &= (local[..., plane] ** 2).sum(-1) <= 1
    length = inside.sum(1) * 1e-3
    np.testing.assert_allclose(np.maximum(leave - enter, 0), length, atol=3e-3)
    assert 0.2 < (length > 0).mean() < 0.9


def test_normals_of_faces_caps_and_mantles() -> None:
    shapes = solids(([1, 0, 0], [1, 2, 3], BOX), ([0, 0, 0], [0.5, 0.5, 1], 2))
    slant = 0.5 / math.sqrt(2)
    points = np.array([[2, 1.9, 2.9], [0.1, -2, 0], [0.4, 0, 1], [slant, -slant, 0.9]])
    expected = [[1, 0, 0], [0, -1, 0], [0, 0, 1], unit(1, -1, 0)]
    np.testing.assert_allclose(normals(shapes, points, np.array([0, 0, 1, 1])), expected)


def test_a_box_shades_the_point_behind_it_alone() -> None:
    shapes = solids(([0, 0, 2], [0.5, 0.5, 0.1], BOX))
    light = unit(1, 0, 1)
    points = np.array([[-2.0, 0, 0], [0, 0, 0], [-2, 0.6, 0], [2, 0, 4], [-1, 0, 1]])
    np.testing.assert_array_equal(in_shadow(shapes, points, light), [1, 0, 0, 0, 1])


def test_shadows_do_not_depend_on_the_order_of_points_or_solids() -> None:
    rng = np.random.default_rng(0)
    rows = [(list(rng.normal(size=3)), [0.2] * 3, axis) for axis in (BOX, 0, 1, 2)]
    points = rng.normal(size=(500, 3)) - [0, 0, 2]
    light = unit(0.3, -0.2, 0.9)
    shadow = in_shadow(solids(*rows), points, light)
    order = rng.permutation(500)
    np.testing.assert_array_equal(
        in_shadow(solids(*rows[::-1]), points[order], light), shadow[order]
    )
    brute = np.zeros(500, bool)
    for center, half, axis in rows:
        enter, leave = chord(np.array(center), np.array(half), axis, points, light)
        brute |= (enter < leave) & (leave > 0)
    np.testing.assert_array_equal(shadow, brute)
    assert 0.01 < shadow.mean() < 0.9


def test_screen_rectangles_bound_the_projected_box() -> None:
    corners = solids(([0, 0, 5], [1, 0.5, 1], BOX)).corners()
    left, top, right, bottom = screen_rectangles(corners, np.eye(4), 40.0, 50, 60)[0]
    assert (left, right) == (25 - 10, 25 + 10)
    assert (top, bottom) == (30 - 5, 30 + 5)


def test_lambert_and_blinn_phong_have_their_closed_forms() -> None:
    lighting = Lighting(
        direction=(0, 0, 2), sky=(0, 0, 1), ambient=0.2, diffuse=0.4, gloss=0.3, shininess=2
    )
    tilt = math.radians(60)
    normal = np.array([[0, math.sin(tilt), math.cos(tilt)]] * 3)
    view = np.array([[0, 0, 1.0], [0, 1, 0], [0, 0, 1]])
    shadow = np.array([False, False, True])
    seen = shade(np.full((3, 3), 0.5), normal, view, shadow, lighting)
    sky = 0.2 * (0.75 + 0.25 * 0.5)
    matt = 0.5 * (sky + 0.4 * 0.5)
    halfway = math.cos(tilt - math.radians(45))
    expected = [matt + 0.3 * 0.25, matt + 0.3 * halfway**2, 0.5 * sky]
    np.testing.assert_allclose(seen, np.array(expected)[:, None] * np.ones(3))
