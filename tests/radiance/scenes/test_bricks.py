"""The built-in scene: what its images must satisfy whatever the model looks like."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from braid.radiance.config import BUILT_IN_SCENES
from braid.radiance.scenes.blender import Views
from braid.radiance.scenes.bricks import (
    BOX,
    BRICKS,
    CAMERA_ANGLE_X,
    CAMERA_RADIUS,
    POLISHED,
    Lighting,
    Solids,
    hemisphere_poses,
    made_scene,
    make_bricks,
    model,
    rack,
    render_bricks,
)
from braid.radiance.scenes.cameras import Cameras
from tests.radiance.settings import bricks_config


def above(height: float, width: int) -> Cameras:
    """A camera on the z axis that looks straight down."""
    pose = torch.eye(4)[None].clone()
    pose[0, 2, 3] = height
    return Cameras(pose, 0.5 * width, width, width)


def solid(half: list[float], axis: int) -> Solids:
    return Solids(np.zeros((1, 3)), np.array([half]), np.array([axis]), np.full((1, 3), 0.5))


def test_a_boxs_coverage_is_its_projected_area() -> None:
    """The top face, at distance 4, spans 2 * 0.5 * focal / 4 pixels; edges are antialiased."""
    views = render_bricks(solid([0.5, 0.3, 1], BOX), above(5, 80), 8, Lighting())
    assert float(views.alpha.sum()) == pytest.approx((1.0 * 10) * (0.6 * 10), rel=0.03)
    assert set(views.alpha.unique().tolist()) <= {i / 64 for i in range(65)}


def test_a_cylinders_coverage_is_its_projected_area() -> None:
    views = render_bricks(solid([1, 1, 0.5], 2), above(4.5, 80), 4, Lighting())
    assert float(views.alpha.sum()) == pytest.approx(math.pi * 10**2, rel=0.01)


def test_axes_are_opengls_up_is_the_first_row_and_right_the_last_column() -> None:
    block = Solids(
        np.array([[1.0, 0.5, 0]]), np.full((1, 3), 0.2), np.array([BOX]), np.ones((1, 3))
    )
    alpha = render_bricks(block, above(5, 80), 2, Lighting()).alpha[0]
    rows, columns = torch.nonzero(alpha > 0.5, as_tuple=True)
    assert rows.float().mean() < 38
    assert columns.float().mean() > 42


def test_images_are_premultiplied_and_in_range() -> None:
    rgba = make_bricks(bricks_config(width=24, test=3), seed=0)["test"].rgba
    assert rgba.dtype == torch.float32
    assert bool((rgba >= 0).all())
    assert bool((rgba[..., :3] <= rgba[..., 3:] + 1e-6).all())
    assert bool(((rgba[..., 3] > 0) & (rgba[..., 3] < 1)).any())


def test_the_same_seed_gives_the_same_bytes_and_splits_are_independent() -> None:
    first = make_bricks(bricks_config(width=16, train=2, val=2), seed=3)
    again = make_bricks(bricks_config(width=16, train=2, val=2, test=5), seed=3)
    for split in ("train", "val"):
        assert torch.equal(first[split].rgba, again[split].rgba)
    other = make_bricks(bricks_config(width=16, train=2), seed=4)["train"]
    assert not torch.equal(first["train"].rgba, other.rgba)
    poses = [first[split].cameras.camera_to_world for split in ("train", "val")]
    assert not torch.isclose(poses[0], poses[1]).all(dim=(1, 2)).any()


def test_any_few_views_in_a_row_come_from_high_and_low() -> None:
    height = hemisphere_poses(60, np.random.default_rng(0))[:, 2, 3] / CAMERA_RADIUS
    tens = height.reshape(6, 10)
    assert bool((tens.amax(1) > 0.6).all())
    assert bool((tens.amin(1) < 0.4).all())


def test_cameras_stand_on_the_upper_hemisphere_and_look_at_the_origin() -> None:
    poses = hemisphere_poses(50, np.random.default_rng(0)).double()
    position, back = poses[:, :3, 3], poses[:, :3, 2]
    torch.testing.assert_close(position, CAMERA_RADIUS * back, rtol=0, atol=1e-5)
    assert bool((position[:, 2] > 0).all())
    rotation = poses[:, :3, :3]
    eye = torch.eye(3, dtype=torch.float64).expand(50, 3, 3)
    torch.testing.assert_close(rotation.mT @ rotation, eye, rtol=0, atol=1e-6)
    assert bool((torch.linalg.det(rotation) > 0).all())
    assert bool((rotation[:, 2, 1] > 0).all())  # the image's up is the world's


def test_the_whole_model_is_inside_every_view() -> None:
    views = make_bricks(bricks_config(width=48, train=24, supersample=2), seed=0)["train"]
    assert views.cameras.focal == pytest.approx(24 / math.tan(0.5 * CAMERA_ANGLE_X))
    border = torch.ones(48, 48, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert float(views.alpha[:, border].max()) == 0
    assert 0.15 < float((views.alpha > 0.5).float().mean()) < 0.5


def test_the_highlight_depends_on_the_view() -> None:
    """The same point of the roof from two places; without gloss it has one color."""
    shapes = model()
    cameras = Cameras(hemisphere_poses(40, np.random.default_rng(1)), 100.0, 40, 40)
    cameras = cameras[cameras.camera_to_world[:, 2, 3] > 3]
    for gloss, spread in ((Lighting().gloss, 0.05), (0.0, 0.0)):
        colors = point_colors(shapes, cameras, roof_point(), Lighting(gloss=gloss))
        assert len(colors) >= 5
        width = float((colors.max(0) - colors.min(0)).max())
        assert width > spread if spread else width < 1e-9


def roof_point() -> np.ndarray:
    """A point of the roof's top face, between four studs."""
    index = next(i for i, b in enumerate(BRICKS) if b.color == "white" and b.z == 12)
    shapes = model()
    return shapes.center[index] + [0, 0, shapes.half[index, 2]]


def point_colors(
    shapes: Solids, cameras: Cameras, point: np.ndarray, lighting: Lighting
) -> np.ndarray:
    """The point's color in every view, by aiming each camera's middle pixel at it."""
    colors = []
    for pose in cameras.camera_to_world.double():
        back = pose[:3, 3] - torch.from_numpy(point)
        back = back / back.norm()
        right = torch.linalg.cross(pose[:3, 1], back)
        right = right / right.norm()
        aimed = torch.eye(4, dtype=torch.float64)
        aimed[:3] = torch.stack([right, torch.linalg.cross(back, right), back, pose[:3, 3]], dim=1)
        view = render_bricks(shapes, Cameras(aimed[None].float(), 1000.0, 1, 1), 1, lighting)
        colors.append(view.rgba[0, 0, 0, :3].numpy())
    return np.stack(colors)


def test_studs_inside_the_brick_above_are_left_out() -> None:
    shapes = model()
    assert 15 <= len(BRICKS) <= 30
    assert bool((shapes.axis[: len(BRICKS)] == BOX).all())
    uncovered = sum(b.studs_x * b.studs_y for b in BRICKS)
    assert len(BRICKS) < len(shapes) < len(BRICKS) + uncovered


@pytest.mark.parametrize(
    ("name", "value"), [("width", 0), ("train", 0), ("supersample", 0), ("width", -1)]
)
def test_sizes_below_one_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}\n.*greater than 0"):
        bricks_config(**{name: value})


def test_the_rack_is_thin_and_its_highlights_move_with_the_view() -> None:
    config = bricks_config(width=64, train=3, supersample=2)
    loader, shelves = (made_scene(name, config, seed=0)["train"] for name in BUILT_IN_SCENES)

    def edges(views: Views) -> float:
        alpha = views.alpha
        return float((alpha[:, 1:] - alpha[:, :-1]).abs().sum() / alpha.sum())

    assert edges(shelves) > 2 * edges(loader)
    dull = make_bricks(config, 0, rack(), replace(POLISHED, gloss=0.0))["train"]
    assert torch.equal(dull.alpha, shelves.alpha)
    gleam = (shelves.rgba - dull.rgba)[..., :3].amax(dim=-1)
    assert gleam.max() > 0.3
    assert 0.001 < float((gleam > 0.1).float().mean()) < 0.2
