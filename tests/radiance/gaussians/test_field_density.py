import math

import pytest
import torch
from torch import Tensor

from braid.radiance.gaussians.field import gaussian_field, occupancy_of_gaussians, widened


def _isotropic(*scales: float) -> Tensor:
    return torch.stack([s**2 * torch.eye(3) for s in scales])


def _random(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, covariances, opacities and colors."""
    generator = torch.Generator().manual_seed(seed)
    factor = 0.2 * torch.randn(count, 3, 3, generator=generator)
    covariances = factor @ factor.transpose(1, 2) + 1e-3 * torch.eye(3)
    means = torch.randn(count, 3, generator=generator)
    opacities = torch.rand(count, generator=generator)
    return means, covariances, opacities, torch.rand(count, 3, generator=generator)


def test_occupancy_covers_each_gaussian_to_its_radius() -> None:
    means, covariances, opacities, _ = _random(20)
    opacities = opacities.clamp_min(0.05)
    blur, radius = 0.1, 2.5
    grid = occupancy_of_gaussians(means, covariances, opacities, 48, blur, radius)
    factor = torch.linalg.cholesky(covariances + 0.3 * blur**2 * torch.eye(3))
    generator = torch.Generator().manual_seed(1)
    z = torch.nn.functional.normalize(torch.randn(200, 20, 3, generator=generator), dim=2)
    points = means + torch.einsum("gij,pgj->pgi", factor, 0.99 * radius * z)
    assert grid.contains(points.reshape(-1, 3)).all()
    beyond = means + torch.einsum("gij,pgj->pgi", factor, (radius + 1.0) * z)
    assert grid.contains(beyond.reshape(-1, 3)).float().mean() < 0.8


def test_occupied_volume_of_one_gaussian_is_that_of_its_widened_ball() -> None:
    scale, blur, radius = 0.1, 0.3, 2.5
    args = (torch.zeros(1, 3), _isotropic(scale), torch.ones(1))
    grid = occupancy_of_gaussians(*args, 64, blur, radius)
    reach = radius * math.sqrt(scale**2 + 0.3 * blur**2)
    volume = float(grid.occupied.sum() * grid.voxel.prod())
    assert volume == pytest.approx(
        4 / 3 * math.pi * reach**3, rel=0.12
    )  # voxels touched by the surface count whole
    torch.testing.assert_close(grid.high - grid.low, torch.full((3,), 2 * reach))


def test_a_gaussian_smaller_than_a_voxel_still_occupies_its_own() -> None:
    means = torch.tensor([[0.0, 0, 0], [1.0, 1, 1], [0.37, 0.52, 0.71]])
    grid = occupancy_of_gaussians(means, _isotropic(1e-4, 1e-4, 1e-4), torch.ones(3), 8, 0.0)
    assert grid.contains(means).all()


def test_faint_gaussians_are_skipped() -> None:
    means = torch.tensor([[0.0, 0, 0], [3.0, 0, 0]])
    covariances = _isotropic(0.1, 0.1)
    grid = occupancy_of_gaussians(means, covariances, torch.tensor([0.5, 0.001]), 16, 0.0)
    assert float(grid.high[0]) < 1
    with pytest.raises(ValueError, match="no Gaussian reaches the opacity"):
        occupancy_of_gaussians(means, covariances, torch.tensor([0.5, 0.1]), 16, 0, min_opacity=0.9)


def test_filling_does_not_depend_on_the_size_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    means, covariances, opacities, _ = _random(30)
    whole = occupancy_of_gaussians(means, covariances, opacities, 32, 0.05)
    monkeypatch.setattr("braid.radiance.gaussians.field.PAIRS", 500)
    assert torch.equal(
        occupancy_of_gaussians(means, covariances, opacities, 32, 0.05).occupied, whole.occupied
    )


def test_voxels_are_cubic_and_their_number_is_that_on_the_longest_axis() -> None:
    means, covariances, opacities, _ = _random(30)
    means = means * torch.tensor([1.0, 3.0, 0.2])
    grid = occupancy_of_gaussians(means, covariances, opacities, 32, 0.05)
    assert max(grid.occupied.shape) == grid.occupied.shape[1] == 32
    torch.testing.assert_close(grid.voxel, grid.voxel[:1].expand(3))


def test_integral_of_a_gaussians_field_is_its_optical_depth() -> None:
    """Along any ray: -ln(1 - opacity) exp(-m^2 / 2), m the ray's least Mahalanobis distance."""
    mean = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)
    factor = torch.tensor([[0.3, 0, 0], [0.1, 0.2, 0], [-0.05, 0.1, 0.4]], dtype=torch.float64)
    covariance = (factor @ factor.T).unsqueeze(0)
    opacity = torch.tensor([0.7], dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.tensor([1.0, 2.0, -0.5]).double(), dim=0)
    t = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    points = torch.tensor([0.25, 0.1, 0.2]).double() + t.unsqueeze(1) * direction
    sigma, rgb = gaussian_field(
        points,
        direction.expand(len(t), -1),
        mean,
        covariance,
        opacity,
        torch.ones(1, 3).double(),
        blur=0.2,
    )
    precision = torch.linalg.inv(widened(covariance, 0.2))[0]
    offset = points - mean
    least = torch.einsum("pi,ij,pj->p", offset, precision, offset).min()
    expected = -torch.log(1 - opacity[0]) * torch.exp(-0.5 * least)
    torch.testing.assert_close(torch.trapezoid(sigma, t), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(rgb, torch.ones_like(rgb))


def test_field_sums_the_nearest_gaussians_and_mixes_their_colors_by_density() -> None:
    means, covariances, opacities, colors = _random(6)
    points, directions = _random(40, seed=3)[0], torch.tensor([[0.0, 0, 1]]).expand(40, -1)
    field = (points, directions, means, covariances, opacities, colors, 0.1)
    sigma, rgb = gaussian_field(*field, neighbors=6)
    parts = [
        gaussian_field(
            points,
            directions,
            *(tensor[i : i + 1] for tensor in (means, covariances, opacities, colors)),
            0.1,
        )[0]
        for i in range(6)
    ]
    densities = torch.stack(parts, dim=1)
    torch.testing.assert_close(sigma, densities.sum(1))
    dense = sigma > 1e-6
    mixed = densities @ colors / sigma.unsqueeze(1)
    torch.testing.assert_close(rgb[dense], mixed[dense], atol=1e-4, rtol=0)
    assert (gaussian_field(*field, neighbors=2)[0] <= sigma + 1e-6).all()
    torch.testing.assert_close(gaussian_field(*field, neighbors=8, chunk=7)[0], sigma)
