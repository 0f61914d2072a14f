import math

import torch
from torch import Tensor

from braid.radiance.scenes.cameras import Cameras


def _cameras() -> Cameras:
    """Two 6 x 4 views: one unturned, one turned by a right angle about y and moved."""
    turned = torch.tensor([[0.0, 0, 1, 5], [0, 1, 0, 6], [-1, 0, 0, 7], [0, 0, 0, 1]])
    return Cameras(torch.stack([torch.eye(4), turned]), focal=10.0, width=6, height=4)


def _project(cameras: Cameras, view: int, points: Tensor) -> Tensor:
    """Pixel coordinates (x, y) of world points."""
    matrix = cameras.world_to_camera()[view]
    x, y, z = (points @ matrix[:3, :3].T + matrix[:3, 3]).unbind(1)
    center_x, center_y = 0.5 * cameras.width, 0.5 * cameras.height
    return torch.stack([cameras.focal * x / z + center_x, cameras.focal * y / z + center_y], 1)


def test_first_pixel_is_the_upper_left_seen_through_its_center() -> None:
    rays = _cameras().rays(torch.tensor([0]), torch.tensor([0]))
    expected = torch.tensor([-2.5, 1.5, -10.0]) / math.sqrt(2.5**2 + 1.5**2 + 100)
    torch.testing.assert_close(rays.directions[0], expected)
    assert rays.origins[0].tolist() == [0, 0, 0]


def test_directions_have_unit_length_and_average_to_the_optical_axis() -> None:
    cameras = _cameras()
    directions = cameras.view_rays(1).directions
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(cameras.pixels))
    axis = -cameras.camera_to_world[1, :3, 2]
    mean = torch.nn.functional.normalize(directions.mean(0), dim=0)
    torch.testing.assert_close(mean, axis, atol=1e-6, rtol=0)


def test_a_point_on_a_ray_projects_to_the_center_of_its_pixel() -> None:
    cameras = _cameras()
    for view in range(len(cameras)):
        rays = cameras.view_rays(view)
        pixels = _project(cameras, view, rays.origins + 3.0 * rays.directions)
        index = torch.arange(cameras.pixels)
        centers = torch.stack([index % 6 + 0.5, index // 6 + 0.5], dim=1)
        torch.testing.assert_close(pixels, centers, atol=1e-4, rtol=0)


def test_a_bundle_over_views_equals_the_single_views() -> None:
    cameras = _cameras()
    view, pixel = torch.tensor([1, 0, 1]), torch.tensor([3, 23, 17])
    rays = cameras.rays(view, pixel)
    for row in range(3):
        single = cameras.view_rays(int(view[row]))
        torch.testing.assert_close(rays.directions[row], single.directions[pixel[row]])
        assert torch.equal(rays.origins[row], single.origins[pixel[row]])


def test_a_choice_of_cameras_keeps_their_order_and_size() -> None:
    cameras = _cameras()
    chosen = cameras[[1, 0]]
    assert torch.equal(chosen.camera_to_world, cameras.camera_to_world.flip(0))
    assert (len(chosen), chosen.focal, chosen.pixels) == (2, 10.0, 24)
    assert len(cameras[:1]) == 1
