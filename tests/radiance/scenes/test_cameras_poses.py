"""New poses are rigid, look at the scene and stay in the range of the given ones."""

from __future__ import annotations

import torch

from braid.radiance.scenes.cameras import Cameras, gaze, look_at, random_poses, turntable
from tests.radiance.tiny_teacher import views

CENTER = torch.tensor([0.3, -0.2, 0.5])
UP = torch.tensor([0.0, 0.0, 1.0])


def dome(count: int = 24) -> Cameras:
    generator = torch.Generator().manual_seed(0)
    back = torch.randn(count, 3, generator=generator)
    back[:, 2] = back[:, 2].abs() + 0.2
    back = torch.nn.functional.normalize(back, dim=-1)
    distance = 3 + torch.rand(count, 1, generator=generator)
    return Cameras(look_at(CENTER + distance * back, back, UP), 50.0, 8, 8)


def test_gaze_is_the_point_that_all_views_look_at() -> None:
    torch.testing.assert_close(gaze(dome()), CENTER, atol=1e-5, rtol=0)


def test_look_at_is_rigid_even_from_straight_above() -> None:
    back = torch.stack([UP, -UP, torch.tensor([1.0, 0.0, 0.0])])
    rotation = look_at(back * 2, back, UP)[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).expand(3, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(3))


def test_random_poses_look_at_the_scene_from_the_same_zone() -> None:
    cameras = dome()
    poses = random_poses(cameras, 200, torch.Generator().manual_seed(1))
    torch.testing.assert_close(gaze(poses), CENTER, atol=1e-4, rtol=0)
    rotation = poses.camera_to_world[:, :3, :3]
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(200))
    distance = (poses.camera_to_world[:, :3, 3] - CENTER).norm(dim=-1)
    given = (cameras.camera_to_world[:, :3, 3] - CENTER).norm(dim=-1)
    assert given.min() - 1e-3 <= distance.min() <= distance.max() <= given.max() + 1e-3
    height = (poses.camera_to_world[:, :3, 3] - CENTER)[:, 2] / distance
    assert height.min() >= 0.0


def test_the_same_seed_gives_the_same_poses() -> None:
    first = random_poses(dome(), 5, torch.Generator().manual_seed(3))
    again = random_poses(dome(), 5, torch.Generator().manual_seed(3))
    assert torch.equal(first.camera_to_world, again.camera_to_world)


def test_a_turntable_goes_once_around_at_one_height_and_distance() -> None:
    cameras = views(9)
    around = turntable(cameras, 12)
    offset = around.camera_to_world[:, :3, 3] - gaze(cameras)
    up = torch.nn.functional.normalize(cameras.camera_to_world[:, :3, 1].mean(0), dim=0)
    distance = (cameras.camera_to_world[:, :3, 3] - gaze(cameras)).norm(dim=1).median()
    torch.testing.assert_close(offset.norm(dim=1), distance.expand(12))
    height = offset @ up
    torch.testing.assert_close(height, height[:1].expand(12), atol=1e-5, rtol=0)
    flat = offset - height[:, None] * up
    step = torch.nn.functional.cosine_similarity(flat, flat.roll(1, 0))
    torch.testing.assert_close(step, torch.full((12,), 3**0.5 / 2), atol=1e-5, rtol=0)
    back = torch.nn.functional.normalize(offset, dim=1)
    torch.testing.assert_close(around.camera_to_world[:, :3, 2], back, atol=1e-5, rtol=0)
