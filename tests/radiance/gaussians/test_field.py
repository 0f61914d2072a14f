"""What is taken from the teacher agrees with slow, plain computations of the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from braid.radiance.gaussians.field import (
    contributions,
    gaussian_field,
    pixel_footprint,
    render_all,
    scan_space,
)
from braid.radiance.gaussians.gaussians import C0, Gaussians
from braid.radiance.gaussians.splat import render
from tests.radiance import splat_reference
from tests.radiance.settings import renders_config
from tests.radiance.tiny_teacher import RADIUS, ball, seeded, views


def weight_sums(gaussians: Gaussians, cameras) -> torch.Tensor:
    """Each Gaussian's compositing weights, by painting it alone white among black ones."""
    exact = Gaussians(*(tensor.double() for tensor in vars(gaussians).values()))
    total = []
    for index in range(len(exact)):
        sh = torch.full_like(exact.sh[:, :1], -0.5 / C0)  # black
        sh[index] = 0.5 / C0
        painted = replace(exact, sh=sh)
        seen = [
            splat_reference.render(painted, cameras, v).rgb[..., 0] for v in range(len(cameras))
        ]
        total.append(torch.stack(seen).sum())
    return torch.stack(total)


def test_contributions_are_the_sums_of_compositing_weights() -> None:
    gaussians, cameras = ball(12, opacity=0.7, size=0.2), views(2, 12)
    expected = weight_sums(gaussians, cameras)
    assert expected.min() < 0.8 * expected.max()  # occlusion tells them apart
    torch.testing.assert_close(
        contributions(gaussians, cameras).double(), expected, rtol=1e-3, atol=1e-3
    )


def test_contributions_sum_to_the_opacity_of_all_pixels() -> None:
    gaussians, cameras = ball(), views()
    alpha = sum(render(gaussians, cameras, view).alpha.sum() for view in range(len(cameras)))
    torch.testing.assert_close(contributions(gaussians, cameras).sum(), alpha, rtol=1e-4, atol=0)


def test_a_gaussian_that_no_view_sees_contributes_nothing() -> None:
    gaussians = ball()
    gaussians.means[7] = torch.tensor([0.0, 0.0, 50.0])
    assert contributions(gaussians, views())[7] == 0
    gaussians.means[:] = 50.0
    assert (contributions(gaussians, views()) == 0).all()


def test_renders_are_the_rasterizer_s_rounded_to_half() -> None:
    gaussians, cameras = ball(), views(2)
    renders = render_all(gaussians, cameras)
    assert renders.rgba.shape == (2, 16, 16, 4)
    assert renders.rgba.dtype == renders.depth.dtype == np.float16
    for view in range(2):
        expected = render(gaussians, cameras, view)
        rgba = torch.from_numpy(renders.rgba[view].astype(np.float32))
        torch.testing.assert_close(rgba[..., :3], expected.rgb, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(rgba[..., 3], expected.alpha, atol=1e-3, rtol=1e-3)
        depth = torch.from_numpy(renders.depth[view].astype(np.float32))
        torch.testing.assert_close(depth, expected.depth, atol=1e-3, rtol=1e-3)
    assert (renders.depth[renders.rgba[..., 3] == 0] == 0).all()


def test_a_pixel_s_footprint_is_distance_over_focal_length() -> None:
    cameras = views(5, 16)  # all look at the origin from a distance of 3
    assert abs(pixel_footprint(cameras) - 3 / cameras.focal) < 1e-5


def test_the_occupancy_holds_all_gaussians_within_two_standard_deviations() -> None:
    gaussians = ball()
    occupancy, _ = scan_space(gaussians, views(), renders_config(voxels=20), seeded())
    assert occupancy.contains(gaussians.means).all()
    offset = torch.nn.functional.normalize(torch.randn(60, 3, generator=seeded(5)))
    assert occupancy.contains(gaussians.means + 2 * 0.12 * offset).all()
    assert not occupancy.contains(torch.zeros(1, 3)).any()  # the ball is hollow
    assert max(occupancy.occupied.shape) == 20


def test_field_points_lie_in_occupied_voxels_and_are_seen_from_the_views() -> None:
    gaussians, cameras = ball(), views()
    occupancy, field = scan_space(gaussians, cameras, renders_config(field_points=500), seeded())
    assert len(field) == 500
    assert occupancy.contains(field.points).all()
    origins = cameras.camera_to_world[:, :3, 3]
    along = torch.nn.functional.normalize(field.points[:, None] - origins, dim=-1)
    best = (along * field.directions[:, None]).sum(-1).max(dim=1)
    torch.testing.assert_close(best.values, torch.ones(500))
    assert len(best.indices.unique()) == len(cameras)


def test_the_field_is_that_of_the_gaussians() -> None:
    gaussians, cameras = ball(), views()
    _, field = scan_space(gaussians, cameras, renders_config(field_points=300), seeded())
    sigma, rgb = gaussian_field(
        field.points,
        field.directions,
        gaussians.means,
        gaussians.covariances(),
        gaussians.opacities,
        (0.5 + C0 * gaussians.sh[:, 0]).clamp(0, 1),
        pixel_footprint(cameras),
    )
    assert torch.equal(field.sigma, sigma)
    assert torch.equal(field.rgb, rgb)
    near = (field.points.norm(dim=-1) - RADIUS).abs() < 0.05
    assert field.sigma[near].mean() > 2 * field.sigma[~near].mean()


def test_the_same_seed_gives_the_same_points() -> None:
    first, second = (scan_space(ball(), views(), renders_config(), seeded(3))[1] for _ in range(2))
    for name, tensor in vars(first).items():
        assert torch.equal(tensor, getattr(second, name)), name
