"""Analytic oracles of volume rendering: spheres, slabs, blobs."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from braid.radiance.scenes.cameras import Cameras, Rays
from braid.radiance.scenes.grids import Occupancy
from braid.radiance.student.marching import (
    Field,
    RadianceField,
    compositing_weights,
    march,
    render_rays,
    render_view,
    sample,
)

COLOR = torch.tensor([0.2, 0.5, 0.9])


def _box(extent: float = 1.0, voxels: int = 8) -> Occupancy:
    full = torch.ones(voxels, voxels, voxels, dtype=torch.bool)
    return Occupancy(full, torch.full((3,), -extent), torch.full((3,), extent))


def _field(density: Callable[[Tensor], Tensor], color: Tensor = COLOR) -> RadianceField:
    def field(points: Tensor, directions: Tensor, features: bool = True) -> Field:
        return Field(density(points), color.expand(len(points), 3), points[:, :0])

    return field


def _rays(*offsets: float) -> Rays:
    """Rays along +x through (., offset, 0), from x = -3."""
    origins = torch.tensor([[-3.0, offset, 0.0] for offset in offsets])
    return Rays(origins, torch.tensor([[1.0, 0.0, 0.0]]).expand(len(offsets), -1))


def _random_rays(count: int, seed: int = 0) -> Rays:
    generator = torch.Generator().manual_seed(seed)
    origins = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1) * 3
    target = 0.8 * (2 * torch.rand(count, 3, generator=generator) - 1)
    return Rays(origins, torch.nn.functional.normalize(target - origins, dim=1))


def test_homogeneous_sphere_shows_its_chords() -> None:
    radius, sigma = 0.7, 3.0
    offsets = (0.0, 0.3, 0.6, 0.69, 0.75)
    field = _field(lambda x: sigma * (x.norm(dim=1) < radius).float())
    result = march(field, _box(), _rays(*offsets), step=5e-4)
    chord = torch.tensor([2 * math.sqrt(max(0.0, radius**2 - b**2)) for b in offsets])
    alpha = 1 - torch.exp(-sigma * chord)
    torch.testing.assert_close(result.alpha, alpha, atol=2e-3, rtol=0)
    torch.testing.assert_close(result.rgb, alpha.unsqueeze(1) * COLOR, atol=2e-3, rtol=0)
    # Expected distance in a homogeneous chord, measured from its beginning.
    within = 1 / sigma - chord * torch.exp(-sigma * chord) / alpha.clamp_min(1e-9)
    expected = torch.where(alpha > 0, 3 - chord / 2 + within, 0.0)
    torch.testing.assert_close(result.depth, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("step", [2.0, 0.7, 0.01])
def test_homogeneous_slab_is_exact_at_any_step(step: float) -> None:
    rays = _random_rays(50)
    result = march(_field(lambda x: torch.full((len(x),), 1.3)), _box(), rays, step)
    inverse = 1 / rays.directions
    near = torch.minimum((-1 - rays.origins) * inverse, (1 - rays.origins) * inverse).amax(1)
    far = torch.maximum((-1 - rays.origins) * inverse, (1 - rays.origins) * inverse).amin(1)
    torch.testing.assert_close(result.alpha, 1 - torch.exp(-1.3 * (far - near)), atol=1e-5, rtol=0)


def test_blob_integrates_to_its_closed_form_with_second_order_convergence() -> None:
    """Integral of s0 exp(-r^2 / 2 s^2) along a ray at distance d: s0 sqrt(2 pi) s exp(-d^2/2s^2).

    The box cuts the ray at 2.5 s, where the slope is not small, so that the midpoint rule shows
    its own order.
    """
    s0, s, extent = 2.0, 0.4, 1.0
    field = _field(lambda x: s0 * torch.exp(-0.5 * (x / s).square().sum(1)))
    expected = []
    for offset in (0.0, 0.25):
        whole = s0 * math.sqrt(2 * math.pi) * s * math.exp(-0.5 * (offset / s) ** 2)
        expected.append(1 - math.exp(-whole * math.erf(extent / (s * math.sqrt(2)))))
    errors = []
    for steps in (20, 40, 80):
        alpha = march(field, _box(extent), _rays(0.0, 0.25), step=2 * extent / steps).alpha
        errors.append((alpha.double() - torch.tensor(expected).double()).abs().max().item())
    assert errors[2] < 1e-4
    assert 3.3 < errors[0] / errors[1] < 4.7
    assert 3.3 < errors[1] / errors[2] < 4.7


def test_weights_sum_to_one_minus_the_last_transmittance() -> None:
    generator = torch.Generator().manual_seed(0)
    ray = torch.sort(torch.randint(20, (300,), generator=generator)).values
    tau = 3 * torch.rand(300, generator=generator) ** 4
    tau[10] = 1e6
    weights = compositing_weights(ray, tau, 22)
    total = torch.zeros(22).index_add_(0, ray, weights)
    expected = -torch.expm1(-torch.zeros(22).index_add_(0, ray, tau))
    torch.testing.assert_close(total, expected, atol=1e-6, rtol=0)
    assert (weights >= 0).all()


def test_weights_are_the_product_of_transmittances_and_differentiable() -> None:
    tau = torch.tensor([0.5, 1.0, 0.2, 2.0], dtype=torch.float64, requires_grad=True)
    ray = torch.tensor([0, 0, 0, 2])
    alpha = 1 - torch.exp(-tau)
    clear = 1 - alpha
    expected = alpha * torch.stack(
        [torch.ones(()).double(), clear[0], clear[0] * clear[1], torch.ones(()).double()]
    )
    torch.testing.assert_close(compositing_weights(ray, tau, 3), expected)
    assert torch.autograd.gradcheck(lambda x: compositing_weights(ray, x, 3), tau)


def test_splitting_a_segment_changes_nothing() -> None:
    tau = torch.tensor([0.4, 1.2, 0.7])
    whole = compositing_weights(torch.zeros(3, dtype=torch.int64), tau, 1)
    split = torch.tensor([0.4, 0.3, 0.9, 0.7])
    parts = compositing_weights(torch.zeros(4, dtype=torch.int64), split, 1)
    merged = torch.stack([parts[0], parts[1] + parts[2], parts[3]])
    torch.testing.assert_close(merged, whole)


def test_order_of_rays_does_not_matter() -> None:
    field = _field(lambda x: 4 * (x[:, 0] > 0.1).float() + x[:, 1].abs())
    rays = _random_rays(60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    result = march(field, _box(), rays, 0.05)
    shuffled = march(field, _box(), Rays(rays.origins[order], rays.directions[order]), 0.05)
    torch.testing.assert_close(shuffled.rgb, result.rgb[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(shuffled.depth, result.depth[order], atol=1e-5, rtol=0)


def test_samples_are_every_step_whose_point_lies_in_an_occupied_voxel() -> None:
    voxels = torch.zeros(39, 36, 42, dtype=torch.bool)
    for index in ((20, 18, 21), (21, 18, 21), (5, 30, 38), (38, 0, 7)):
        voxels[index] = True
    grid = Occupancy(voxels, torch.tensor([-1.0, -0.8, -1.1]), torch.tensor([0.9, 0.8, 1.1]))
    generator = torch.Generator().manual_seed(0)
    rays, step = _random_rays(3000, seed=2), 0.03
    targets = grid.sample(3000, generator)
    rays = Rays(rays.origins, torch.nn.functional.normalize(targets - rays.origins, dim=1))
    packed = sample(grid, rays, step)
    everywhere = sample(Occupancy(torch.ones_like(voxels), grid.low, grid.high), rays, step)
    kept = grid.contains(everywhere.points)
    assert len(rays.origins) < int(kept.sum()) < len(kept) / 10
    for part, expected in zip(packed, everywhere, strict=True):
        torch.testing.assert_close(part, expected[kept])


def test_samples_are_sorted_and_their_steps_fill_the_box() -> None:
    samples = sample(_box(), _random_rays(30), 0.13)
    assert (samples.ray.diff() >= 0).all()
    same = samples.ray.diff() == 0
    assert (samples.t.diff()[same] > 0).all()
    ends = samples.t + samples.delta / 2
    torch.testing.assert_close(ends[:-1][same], (samples.t - samples.delta / 2)[1:][same])
    assert float(samples.delta.max()) <= 0.13 + 1e-6


def test_jitter_stays_within_its_step_and_is_reproducible() -> None:
    rays = _random_rays(40)
    middle = sample(_box(), rays, 0.1)
    first, again = (sample(_box(), rays, 0.1, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first.points, again.points)
    away = (first.t - middle.t) / middle.delta
    assert float(away.abs().max()) <= 0.5 + 1e-4
    assert abs(float(away.mean())) < 0.05
    assert float(away.std()) == pytest.approx(1 / math.sqrt(12), abs=0.03)


def test_rays_that_miss_give_nothing_and_rays_may_start_inside() -> None:
    origins = torch.tensor([[-3.0, 2, 0], [0.0, 0, 0], [5.0, 0, 0], [1.0, 1, 5]])
    directions = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [1.0, 0, 0], [0.0, 0, 1]])
    result = march(_field(lambda x: torch.ones(len(x))), _box(), Rays(origins, directions), 0.1)
    expected = torch.tensor([0, 1 - math.exp(-1), 0, 0])
    torch.testing.assert_close(result.alpha, expected, atol=1e-5, rtol=0)
    assert result.depth[[0, 2, 3]].tolist() == [0, 0, 0]
    only_misses = Rays(origins[:1], directions[:1])
    assert not march(_field(lambda x: torch.ones(len(x))), _box(), only_misses, 0.1).alpha.any()


def test_gradients_reach_the_field_through_color_alpha_and_depth() -> None:
    scale = torch.tensor(2.0, dtype=torch.float32, requires_grad=True)
    field = _field(lambda x: scale * (x.norm(dim=1) < 0.8).float())
    rays = _rays(0.0, 0.4)
    for part in ("rgb", "alpha", "depth"):
        value = getattr(march(field, _box(), rays, 0.01), part).sum()
        (grad,) = torch.autograd.grad(value, scale)
        with torch.no_grad():
            values = []
            for offset in (1e-2, -1e-2):
                scale += offset
                values.append(float(getattr(march(field, _box(), rays, 0.01), part).sum()))
                scale -= offset
        assert float(grad) == pytest.approx((values[0] - values[1]) / 2e-2, rel=2e-2)


@pytest.mark.parametrize("stop", [0.3, 0.05, 0.01])
@pytest.mark.parametrize("block", [1, 4, 50])
def test_early_termination_is_within_its_exact_bound(stop: float, block: int) -> None:
    """Of what a stopped ray leaves out, at most T_stop |c - background| is lost."""

    def field(points: Tensor, directions: Tensor, features: bool = True) -> Field:
        sigma = 6 * (1 + torch.sin(9 * points).prod(1))
        return Field(sigma, (0.5 + 0.5 * torch.cos(7 * points)).clamp(0, 1), points[:, :0])

    rays, background = _random_rays(300), torch.tensor([1.0, 1.0, 1.0])
    full = march(field, _box(), rays, 0.04)
    rgb, alpha, _ = render_rays(field, _box(), rays, 0.04, 40, stop, block)
    exact = full.rgb + (1 - full.alpha.unsqueeze(1)) * background
    stopped = rgb + (1 - alpha.unsqueeze(1)) * background
    furthest = (full.field.rgb - background).abs().amax()
    error = (stopped - exact).abs().amax(1)
    left_over = 1 - alpha
    assert (error <= torch.where(left_over < stop, left_over, 0.0) * furthest + 1e-5).all()
    assert (alpha <= full.alpha + 1e-5).all()
    if stop == 0.3 and block == 1:
        assert float(error.max()) > 0.01, "nothing was terminated"


def test_without_termination_blocks_and_chunks_change_nothing() -> None:
    camera = Cameras(torch.eye(4).unsqueeze(0), focal=12.0, width=10, height=8)
    camera.camera_to_world[0, 2, 3] = 3.0
    field = _field(lambda x: 3 * (x.norm(dim=1) < 0.9).float())
    whole = march(field, _box(), camera.view_rays(0), 0.03)
    for chunk, block in ((7, 3), (1000, 16)):
        view = render_view(field, _box(), camera, 0, 0.03, chunk=chunk, stop=0.0, block=block)
        torch.testing.assert_close(view.rgb.view(-1, 3), whole.rgb, atol=1e-5, rtol=0)
        torch.testing.assert_close(view.alpha.view(-1), whole.alpha, atol=1e-5, rtol=0)
        torch.testing.assert_close(view.depth.view(-1), whole.depth, atol=1e-4, rtol=0)


def test_sizes_that_are_not_positive_are_errors() -> None:
    camera = Cameras(torch.eye(4).unsqueeze(0), focal=12.0, width=10, height=8)
    field = _field(lambda x: torch.ones(len(x)))
    with pytest.raises(ValueError, match=r"above 0, got 0, 8, 0\.1"):
        render_view(field, _box(), camera, 0, 0.1, chunk=0)
    with pytest.raises(ValueError, match="above 0, got 32768, -1"):
        render_view(field, _box(), camera, 0, 0.1, block=-1)
    with pytest.raises(ValueError, match="step must be positive"):
        march(field, _box(), camera.view_rays(0), 0.0)
