import pytest
import torch

from braid.radiance.distillation.features import face_distance, mask_weight, weight_fraction
from braid.radiance.scenes.grids import CellGrid
from tests.radiance.mask_law import uniform_mask_mean

GRID = CellGrid((-1.0, 0.0, 0.0), (1.0, 3.0, 1.0), (4, 3, 2))


def uniform_points(count=400_000):
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.tensor(GRID.lower) + points * torch.tensor([2.0, 3.0, 1.0])


def test_distance_is_one_at_centers_and_zero_on_faces():
    points = torch.tensor([[-0.75, 0.5, 0.25], [-0.5, 0.5, 0.25], [-0.75, 0.5, 0.125]])
    torch.testing.assert_close(face_distance(points, GRID), torch.tensor([1.0, 0.0, 0.5]))


@pytest.mark.parametrize("threshold", [0.30, 0.45, 0.60])
def test_the_hard_mask_keeps_the_cube_of_the_rest(threshold):
    weight = mask_weight(face_distance(uniform_points(), GRID), threshold, 0.0)
    assert weight.mean().item() == pytest.approx((1 - threshold) ** 3, abs=2e-3)
    assert uniform_mask_mean(threshold, 0.0) == pytest.approx((1 - threshold) ** 3)


@pytest.mark.parametrize(("threshold", "soft"), [(0.30, 0.1), (0.45, 0.3), (0.60, 0.4), (0.0, 1.0)])
def test_the_soft_mask_has_its_closed_form_mean(threshold, soft):
    weight = mask_weight(face_distance(uniform_points(), GRID), threshold, soft)
    assert weight.mean().item() == pytest.approx(uniform_mask_mean(threshold, soft), abs=2e-3)


def test_the_soft_mask_rises_from_threshold_to_threshold_plus_transition():
    distance = torch.tensor([0.0, 0.3, 0.35, 0.4, 1.0])
    expected = torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0])
    torch.testing.assert_close(mask_weight(distance, 0.3, 0.1), expected, atol=1e-6, rtol=0)


def test_a_narrow_transition_tends_to_the_hard_mask():
    distance = torch.linspace(0, 1, 1000)
    hard, soft = (mask_weight(distance, 0.45, width) for width in (0.0, 1e-4))
    torch.testing.assert_close(hard, soft)


def test_the_weight_fraction_is_that_of_the_ray_s_main_cell():
    ray = torch.tensor([0, 0, 0, 1, 1, 3])
    cell = torch.tensor([5, 5, 2, 7, -1, 0])
    weights = torch.tensor([0.3, 0.3, 0.4, 0.1, 0.3, 0.0])
    fraction = weight_fraction(weights, ray, cell, rays=4)
    torch.testing.assert_close(fraction, torch.tensor([0.6, 0.6, 0.0, 0.0, 0.75, 0.0]))


def test_the_weight_fraction_is_that_of_a_loop_over_rays():
    draw = torch.Generator().manual_seed(0)
    ray = torch.randint(40, (600,), generator=draw).sort().values
    cell, weights = torch.randint(6, (600,), generator=draw), torch.rand(600, generator=draw)
    fraction = weight_fraction(weights, ray, cell, rays=40)
    for index in range(40):
        own = ray == index
        held = torch.bincount(cell[own], weights=weights[own], minlength=6)
        expected = torch.where(cell[own] == held.argmax(), held.max() / held.sum(), 0.0)
        torch.testing.assert_close(fraction[own], expected)
