import math

import torch

from braid.radiance.fitting.fitting import control_density
from braid.radiance.gaussians.gaussians import Gaussians
from tests.radiance.settings import teacher_config


def row_of(count: int) -> Gaussians:
    """Gaussians along x, opacity 0.5, of scale 0.1."""
    return Gaussians(
        torch.arange(count).float()[:, None] * torch.tensor([1.0, 0.0, 0.0]),
        torch.full((count, 3), math.log(0.1)),
        torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        torch.zeros(count),
        torch.arange(count).float()[:, None, None].expand(count, 1, 3),
    )


def control(gaussians, pressure, grow=0.2, capacity=100):
    config = teacher_config(
        density_grow=grow, density_capacity=capacity, prune_opacity=0.05, split_scale=2.0
    )
    generator = torch.Generator().manual_seed(0)
    return control_density(gaussians, pressure, config, voxel=0.5, generator=generator)


def test_faint_gaussians_are_pruned_and_nothing_else_changes():
    gaussians = row_of(10)
    gaussians.opacity_logits[[2, 7]] = -8.0
    changed, source, fresh = control(gaussians, torch.zeros(10), grow=0.0)
    assert source.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert not fresh.any()
    assert torch.equal(changed.means, gaussians.means[source])


def test_the_fraction_under_most_pressure_is_cloned_and_moved_apart():
    gaussians = row_of(10)
    changed, source, fresh = control(gaussians, torch.arange(10).float())
    assert source.tolist() == [*range(8), 9, 8, 9, 8]
    assert fresh.tolist() == [False] * 8 + [True] * 4
    assert torch.equal(changed.means[~fresh], gaussians.means[source[~fresh]])
    first, second = changed.means[fresh].view(2, 2, 3)
    torch.testing.assert_close((first - second).norm(dim=1), torch.full((2,), 0.5 * 0.1))
    torch.testing.assert_close((first + second) / 2, gaussians.means[[9, 8]])
    assert torch.equal(changed.log_scales, gaussians.log_scales[source])
    torch.testing.assert_close((1 - changed.opacities[fresh]) ** 2, torch.full((4,), 0.5))


def test_large_gaussians_are_split_into_smaller_ones_within():
    gaussians = row_of(10)
    gaussians.log_scales[9] = torch.log(torch.tensor([2.0, 0.1, 0.1]))
    changed, source, fresh = control(gaussians, torch.arange(10).float(), grow=0.1)
    children = changed[fresh]
    assert source[fresh].tolist() == [9, 9]
    torch.testing.assert_close(children.means.mean(dim=0), gaussians.means[9])
    assert (children.means[0] - children.means[1])[0].abs() > 0
    assert ((children.means - gaussians.means[9]).abs() < 4 * torch.tensor([2, 0.1, 0.1])).all()
    torch.testing.assert_close(
        children.log_scales, (gaussians.log_scales[9] - math.log(1.6)).expand(2, 3)
    )
    assert children.opacity_logits.eq(0).all()


def test_capacity_bounds_growth_but_prunes_nothing():
    gaussians = row_of(10)
    assert len(control(gaussians, torch.zeros(10), grow=1.0, capacity=13).gaussians) == 13
    assert len(control(gaussians, torch.zeros(10), grow=1.0, capacity=4).gaussians) == 10
