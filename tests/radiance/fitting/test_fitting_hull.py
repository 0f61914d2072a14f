import math

import pytest
import torch

from braid.radiance.fitting import fitting
from braid.radiance.scenes.cameras import Cameras

CENTER = torch.tensor([0.3, -0.2, 0.5])
RADIUS = 0.6


def orbit(views: int = 24, size: int = 48, distance: float = 4.0) -> Cameras:
    """Cameras on a Fibonacci sphere that look at CENTER."""
    poses = []
    for i in range(views):
        z = 1 - (2 * i + 1) / views
        phi = i * math.pi * (3 - math.sqrt(5))
        back = torch.tensor(
            [math.sqrt(1 - z * z) * math.cos(phi), math.sqrt(1 - z * z) * math.sin(phi), z]
        )
        right = torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]), back)
        right = torch.nn.functional.normalize(right, dim=0)
        pose = torch.eye(4)
        pose[:3, :3] = torch.stack([right, torch.linalg.cross(back, right), back], dim=1)
        pose[:3, 3] = CENTER + distance * back
        poses.append(pose)
    return Cameras(torch.stack(poses), 1.4 * size, size, size)


def ball(cameras: Cameras) -> torch.Tensor:
    """Premultiplied RGBA of a ball that is red where z is above its center, else blue."""
    images = []
    for view in range(len(cameras)):
        origins, directions = cameras.view_rays(view)
        offset = origins - CENTER
        along = (offset * directions).sum(dim=1)
        square = along**2 - (offset**2).sum(dim=1) + RADIUS**2
        top = (offset + (-along - square.clamp_min(0).sqrt())[:, None] * directions)[:, 2] > 0
        alpha = (square > 0).float()
        channels = [alpha * top, torch.zeros_like(alpha), alpha * ~top, alpha]
        images.append(torch.stack(channels, dim=1).view(cameras.height, cameras.width, 4))
    return torch.stack(images)


def test_hull_of_a_ball_is_its_surface():
    cameras = orbit()
    carved = fitting.visual_hull(cameras, ball(cameras)[..., 3], 24)
    distance = (carved.points - CENTER).norm(dim=1)
    assert distance.min() > RADIUS - 2 * carved.voxel
    assert distance.max() < RADIUS + 2 * carved.voxel
    assert len(carved.points) == pytest.approx(4 * math.pi * (RADIUS / carved.voxel) ** 2, rel=0.6)


def test_box_is_found_from_the_masks_alone():
    cameras = orbit()
    carved = fitting.visual_hull(cameras, ball(cameras)[..., 3], 24)
    expected = torch.stack([CENTER - RADIUS, CENTER + RADIUS])
    assert (carved.box - expected).abs().max() < 1.5 * carved.voxel
    assert carved.voxel == pytest.approx(2 * RADIUS / 24, rel=0.25)


def test_voxel_outside_the_view_of_some_cameras_is_not_carved_by_them():
    wide, narrow = orbit(), orbit(views=6)
    masks = ball(wide)[..., 3]
    aside = narrow.camera_to_world.clone()
    aside[:, :3, 3] += 20 * aside[:, :3, 0]  # these see nothing of the ball
    cameras = Cameras(torch.cat([wide.camera_to_world, aside]), wide.focal, 48, 48)
    box = torch.stack([CENTER - 1, CENTER + 1])
    _, alone = fitting._carve(wide, masks, box, 16, margin=0.0)
    _, both = fitting._carve(
        cameras, torch.cat([masks, torch.zeros(6, 48, 48)]), box, 16, margin=0.0
    )
    assert alone.any()
    assert torch.equal(alone, both)


def test_colors_are_those_of_the_side_that_is_seen():
    cameras = orbit()
    rgba = ball(cameras)
    carved = fitting.visual_hull(cameras, rgba[..., 3], 24)
    rgb = fitting.surface_colors(carved, cameras, rgba)
    height = carved.points[:, 2] - CENTER[2]
    assert rgb[height > 3 * carved.voxel, 0].mean() > 0.97
    assert rgb[height < -3 * carved.voxel, 2].mean() > 0.97


def test_initial_gaussians_are_round_and_colored():
    cameras = orbit()
    rgba = ball(cameras)
    carved = fitting.visual_hull(cameras, rgba[..., 3], 24)
    gaussians = fitting.initial_gaussians(carved, cameras, rgba, 2)
    assert gaussians.sh.shape == (len(carved.points), 9, 3)
    assert gaussians.sh[:, 1:].eq(0).all()
    assert gaussians.log_scales.exp().allclose(torch.tensor(0.6 * carved.voxel))
    torch.testing.assert_close(gaussians.opacities, torch.full_like(gaussians.opacities, 0.7))


@pytest.mark.parametrize("kind", ["empty masks", "poses that do not agree"])
def test_empty_hull_is_one_clear_error(kind):
    cameras = orbit()
    masks = torch.zeros(len(cameras), 48, 48)
    if kind != "empty masks":  # a blob in another corner of each image
        masks[::3, :6, :6] = masks[1::3, -6:, -6:] = masks[2::3, :6, -6:] = 1.0
    with pytest.raises(ValueError, match="visual hull of 24 views is empty at resolution 16"):
        fitting.visual_hull(cameras, masks, 16)
