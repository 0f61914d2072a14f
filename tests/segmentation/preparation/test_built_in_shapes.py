"""Drawn scenes: their masks, names and variety."""

import numpy as np
import pytest
from PIL import Image

from braid.segmentation.preparation import built_in as shapes
from braid.segmentation.preparation.built_in import (
    _DIAMETERS,
    COLORS,
    SHAPES,
    VISIBLE,
    cover_of,
    draw_scene,
)

SIZE = 112
NAMES = {f"{color} {shape}" for color in COLORS for shape in SHAPES}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng(n), size=SIZE, most_shapes=6) for n in range(150)]


def inside(shape, x, y, radius, tilt):
    """Is each point within a shape around the origin? By its sides' half planes."""
    x, y = (
        x * np.cos(tilt) + y * np.sin(tilt),
        y * np.cos(tilt) - x * np.sin(tilt),
    )
    if shape == "circle":
        return x**2 + y**2 <= radius**2
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= radius / np.sqrt(2)
    if shape == "triangle":
        thirds = np.pi / 2 + 2 * np.pi * np.arange(3)[:, None, None] / 3
        return (x * np.cos(thirds) + y * np.sin(thirds) <= radius / 2).all(0)
    # A star's edge runs from a tip to the notch, a tenth of the turn on; angles are from a tip.
    angle = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    distance = np.hypot(x, y)
    tip, notch = np.array([1, 0]), 0.45 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    normal = np.array([notch[1] - tip[1], tip[0] - notch[0]])
    point = np.stack([distance * np.cos(angle), distance * np.sin(angle)], -1)
    return point @ normal <= radius * tip @ normal


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tilt", [0, 0.3, -0.2])
def test_a_shape_covers_what_geometry_says(shape, tilt):
    center, radius, fine = np.array([31.3, 24.8]), 17.5, 8
    y, x = (np.mgrid[: 50 * fine, : 60 * fine] + 0.5) / fine
    samples = inside(shape, x - center[0], y - center[1], radius, tilt)
    expected = samples.reshape(50, fine, 60, fine).mean((1, 3))
    covered = np.asarray(cover_of(shape, center, radius, tilt, (50, 60))) / 255
    assert np.abs(covered - expected).max() < 0.35  # of 4 x 4 samples a pixel
    assert covered.sum() == pytest.approx(expected.sum(), rel=0.04)
    for axis in (x[::fine, ::fine], y[::fine, ::fine]):  # no shift
        centroids = [(cover * axis).sum() / cover.sum() for cover in (covered, expected)]
        assert centroids[0] == pytest.approx(centroids[1], abs=0.12)


def test_masks_do_not_overlap_and_none_is_lost(scenes):
    for scene in scenes:
        assert 1 <= len(scene.masks) == len(scene.names) <= 6
        assert np.sum(scene.masks, axis=0).max() <= 1
        assert all(mask.shape == scene.pixels.shape[:2] for mask in scene.masks)
        assert all(mask.sum() > 30 for mask in scene.masks)
        assert scene.exhaustive
        assert set(scene.names) <= NAMES


def test_a_shape_has_its_color_and_the_background_has_none(scenes):
    pure = np.array(list(COLORS.values()))
    pure = pure / pure.sum(1, keepdims=True)
    colors = list(COLORS)
    for scene in scenes:
        for mask, name in zip(scene.masks, scene.names, strict=True):
            mean = scene.pixels[mask].mean(0)
            nearest = np.abs(pure - mean / mean.sum()).sum(1).argmin()
            assert colors[nearest] == name.split()[0]
        rest = scene.pixels[~np.any(scene.masks, axis=0)].mean(0)
        assert np.ptp(rest / rest.sum()) < 0.25


def test_a_hidden_shape_remains_visible_for_the_most_part(scenes):
    whole = {"circle": np.pi, "square": 2, "triangle": 3 * np.sqrt(3) / 4, "star": 1.32}
    overlapped = 0
    for scene in scenes:
        short = min(scene.pixels.shape[:2])
        for mask, name in zip(scene.masks, scene.names, strict=True):
            largest = whole[name.split()[1]] * (_DIAMETERS[1] * short / 2) ** 2
            smallest = whole[name.split()[1]] * (_DIAMETERS[0] * short / 2) ** 2
            assert VISIBLE * smallest * 0.85 < mask.sum() < 1.05 * largest
        grown = [np.pad(mask, 1) for mask in scene.masks]
        near = [grow | np.roll(grow, 1, 0) | np.roll(grow, 1, 1) for grow in grown]
        overlapped += np.sum(near, axis=0).max() > 1
    assert 30 < overlapped < 140  # scenes in which shapes touch


def test_shapes_of_one_color_do_not_overlap(monkeypatch):
    covers, place = [], shapes._place
    monkeypatch.setattr(
        shapes, "_place", lambda *of: (covers.append(cover := place(*of)), cover)[1]
    )
    for number in range(40):
        covers.clear()
        scene = draw_scene(np.random.default_rng(number), size=56, most_shapes=6)
        drawn = [np.asarray(cover) >= 128 for cover in covers if cover is not None]
        colors = [name.split()[0] for name in scene.names]
        visible = np.full(drawn[0].shape, "", "<U6")
        for own, color in zip(drawn, colors, strict=True):
            assert not (visible[own] == color).any()
            visible[own] = color


def test_a_caption_names_two_of_the_objects_or_the_only_one(scenes):
    for scene in scenes:
        (caption,) = scene.captions
        named = [name.removeprefix("a ") for name in caption.split(" and ")]
        assert len(set(named)) == len(named) == min(2, len(set(scene.names)))
        assert set(named) <= set(scene.names)


def test_everything_occurs(scenes):
    assert {name for scene in scenes for name in scene.names} == NAMES
    assert {len(scene.masks) for scene in scenes} == set(range(1, 7))
    shapes = [scene.pixels.shape[:2] for scene in scenes]
    assert 0.1 < np.mean([shape != (SIZE, SIZE) for shape in shapes]) < 0.4
    assert all(SIZE <= side <= 1.4 * SIZE for shape in shapes for side in shape)
    squares = [
        mask.sum() / np.prod([np.ptp(indices) + 1 for indices in mask.nonzero()])
        for scene in scenes
        for mask, name in zip(scene.masks, scene.names, strict=True)
        if name.endswith("square") and len(scene.masks) == 1
    ]
    assert max(squares) > 0.9 > 0.75 > min(squares)  # upright and tilted
    brightness = [scene.pixels.mean() for scene in scenes]
    assert np.ptp(brightness) > 80


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_shapes_than_the_most(most):
    counts = [
        len(draw_scene(np.random.default_rng(n), size=56, most_shapes=most).masks)
        for n in range(30)
    ]
    assert max(counts) == most


def test_a_scene_is_a_function_of_its_generator(scenes):
    again = draw_scene(np.random.default_rng(3), size=SIZE, most_shapes=6)
    assert (again.pixels == scenes[3].pixels).all()
    assert (again.names, again.captions) == (scenes[3].names, scenes[3].captions)
    assert not np.array_equal(again.pixels, scenes[4].pixels)


def test_larger_images_show_larger_shapes():
    large = draw_scene(np.random.default_rng(5), size=4 * SIZE, most_shapes=1)
    small = draw_scene(np.random.default_rng(5), size=SIZE, most_shapes=1)
    assert large.masks[0].mean() == pytest.approx(small.masks[0].mean(), rel=0.1)
    assert isinstance(Image.fromarray(large.pixels), Image.Image)
