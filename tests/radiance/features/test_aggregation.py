import math

import numpy as np
import pytest
import torch
from scipy.linalg import logm

from braid.radiance.features.aggregation import MIN_SIZE, extract_features
from braid.radiance.features.aggregation import aggregate as aggregate_with
from braid.radiance.gaussians.gaussians import Gaussians
from braid.radiance.scenes.grids import CellGrid
from tests.radiance.settings import aggregation_config, features_config

GRID = CellGrid((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), (4, 4, 4))
ONE_CELL = CellGrid((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), (1, 1, 1))


def aggregate(gaussians, grid, contribution=None, **settings):
    return aggregate_with(gaussians, grid, aggregation_config(**settings), contribution)


def scatter(count, degree=1, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return Gaussians(
        torch.rand(count, 3, generator=generator, dtype=dtype) * 1.9 - 0.95,
        normal(count, 3) * 0.4 - 2,
        normal(count, 4),
        normal(count),
        normal(count, (degree + 1) ** 2, 3),
    )


def group(features, name):
    schema = features.schema
    return features.values[:, schema.index(schema.select([name]))].double()


def slow_cell(gaussians, grid, cell, weighting):
    """One row in plain numpy, by the formulas."""
    inside = (grid.index(gaussians.means.double()) == cell).numpy()
    means = gaussians.means.double().numpy()[inside]
    scales = gaussians.log_scales.double().exp().numpy()[inside] / grid.edge
    opacity = gaussians.opacities.double().numpy()[inside]
    weight = opacity * (scales.prod(1) * (2 * math.pi) ** 1.5 if weighting == "mass" else 1)
    fraction = weight / weight.sum()
    low, edge = np.array(grid.lower), np.array(grid.edges)
    offset = (means - low) / edge - grid.coordinates(torch.tensor(cell)).numpy() - 0.5
    mean = fraction @ offset
    covariances = gaussians.covariances().double().numpy()[inside] / grid.edge**2
    outer = offset[:, :, None] * offset[:, None, :]
    total = np.tensordot(fraction, covariances + outer, 1) - np.outer(mean, mean)
    return {
        "position": mean,
        "sh_dc": fraction @ gaussians.sh.double().numpy()[inside][:, 0],
        "opacity": [-np.log1p(-opacity).sum()],
        "scale": np.log(np.exp(fraction @ np.log(scales))),
        "covariance": logm(total)[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]],
        "count": [math.log1p(inside.sum())],
    }


@pytest.mark.parametrize("weighting", ["opacity", "mass"])
def test_rows_follow_the_formulas(weighting):
    gaussians = scatter(300)
    features = aggregate(gaussians, GRID, weighting=weighting)
    for row in (0, 7, len(features.cells) - 1):
        for name, value in slow_cell(gaussians, GRID, int(features.cells[row]), weighting).items():
            np.testing.assert_allclose(group(features, name)[row], value, rtol=2e-5, atol=2e-6)


def test_one_gaussian_in_a_cell_is_itself():
    one = scatter(1, degree=2)
    features = aggregate(one, ONE_CELL)
    edge = ONE_CELL.edge
    covariance = one.covariances()[0].double().numpy() / edge**2
    expected = logm(covariance)[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
    np.testing.assert_allclose(group(features, "covariance")[0], expected, atol=1e-5)
    np.testing.assert_allclose(
        group(features, "scale")[0], one.log_scales[0] - math.log(edge), atol=1e-6
    )
    np.testing.assert_allclose(group(features, "position")[0], one.means[0] / edge, atol=1e-6)
    np.testing.assert_allclose(group(features, "sh_rest")[0], one.sh[0, 1:].flatten(), atol=1e-6)
    assert group(features, "std").abs().max() == 0


def test_a_gaussian_split_in_two_keeps_its_total_covariance():
    one = scatter(1, dtype=torch.float64)
    axis = one.rotations()[0, :, 0]
    size = one.log_scales.exp()[0, 0]
    shift = 0.6 * size * axis
    thinner = one.log_scales.clone()
    thinner[0, 0] = (size * 0.8).log()  # 0.8^2 + 0.6^2 = 1
    halves = [
        Gaussians(one.means + sign * shift, thinner, one.quaternions, one.opacity_logits, one.sh)
        for sign in (1, -1)
    ]
    pairs = zip(*(vars(half).values() for half in halves), strict=True)
    both = Gaussians(*(torch.cat(pair) for pair in pairs))
    torch.testing.assert_close(
        group(aggregate(both, ONE_CELL), "covariance"),
        group(aggregate(one, ONE_CELL), "covariance"),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("split", ["hard", "trilinear"])
def test_cells_together_hold_what_the_gaussians_hold(split):
    gaussians = scatter(2000, dtype=torch.float64)
    features = aggregate(gaussians, GRID, weighting="opacity", split=split)
    weight = features.weight.double()
    opacity = gaussians.opacities.clamp(max=0.99)
    assert weight.sum().item() == pytest.approx(opacity.sum().item(), rel=1e-6)
    assert features.count.double().sum().item() == pytest.approx(2000, rel=1e-6)
    depth = -torch.log1p(-opacity)
    assert group(features, "opacity").sum().item() == pytest.approx(depth.sum().item(), rel=1e-6)
    torch.testing.assert_close(
        (weight[:, None] * group(features, "sh_dc")).sum(0),
        (opacity[:, None] * gaussians.sh[:, 0]).sum(0),
        atol=1e-4,
        rtol=1e-6,
    )


@pytest.mark.parametrize("split", ["hard", "trilinear"])
def test_input_order_and_quaternion_sign_change_no_bit(split):
    gaussians = scatter(3000, degree=3)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(5))
    turned = gaussians[order]
    turned.quaternions = -turned.quaternions
    first, second = (aggregate(splats, GRID, split=split) for splats in (gaussians, turned))
    assert torch.equal(first.cells, second.cells)
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.weight, second.weight)


def test_even_sums_that_cancel_do_not_depend_on_the_input_order():
    gaussians = scatter(300)
    gaussians.opacity_logits.zero_()  # equal weights, so that the large ones cancel
    gaussians.sh[:100], gaussians.sh[100:200] = 1e17, -1e17
    order = torch.randperm(300, generator=torch.Generator().manual_seed(5))
    first, second = (
        aggregate(splats, ONE_CELL, weighting="opacity") for splats in (gaussians, gaussians[order])
    )
    assert torch.equal(group(first, "sh_dc"), group(second, "sh_dc"))


def test_the_input_is_left_as_it_was():
    gaussians = scatter(50, dtype=torch.float64)
    gaussians.opacity_logits += 20
    before = gaussians.opacity_logits.clone()
    aggregate(gaussians, GRID)
    assert torch.equal(gaussians.opacity_logits, before)


def test_deviation_is_the_weighted_one():
    gaussians = scatter(40)
    features = aggregate(gaussians, ONE_CELL, weighting="opacity")
    dc = gaussians.sh[:, 0].double().numpy()
    fraction = (gaussians.opacities / gaussians.opacities.sum()).double().numpy()
    mean = fraction @ dc
    expected = np.sqrt(fraction @ (dc - mean) ** 2)
    names = features.schema.groups["std"]
    start = names.index("std_sh_0_r")
    np.testing.assert_allclose(group(features, "std")[0, start : start + 3], expected, rtol=1e-5)


def test_contributions_weigh_and_zero_ones_do_not_count():
    gaussians = scatter(100)
    contribution = torch.zeros(100)
    contribution[17] = 3.0
    features = aggregate(gaussians, GRID, weighting="contribution", contribution=contribution)
    assert len(features.cells) == 1
    torch.testing.assert_close(group(features, "sh_dc")[0].float(), gaussians.sh[17, 0])


def test_opaque_and_flat_gaussians_stay_finite():
    gaussians = scatter(20)
    gaussians.opacity_logits += 200
    gaussians.log_scales[:, 0] = -200
    features = aggregate(gaussians, GRID, weighting="opacity")
    assert torch.isfinite(features.values).all()
    thin = torch.full((len(features.cells),), MIN_SIZE).log().double()
    torch.testing.assert_close(group(features, "scale")[:, 0], thin)
    assert group(features, "opacity").max() <= 20 * math.log(100)


def test_a_grid_without_gaussians_is_refused():
    away = CellGrid((5.0, 5.0, 5.0), (6.0, 6.0, 6.0), (2, 2, 2))
    with pytest.raises(ValueError, match="no cell is occupied"):
        aggregate(scatter(10), away)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "contribution"}, r"contribution: expected shape \(10,\), got None"),
        ({"weighting": "contribution", "contribution": -torch.ones(10)}, "finite values >= 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        aggregate(scatter(10), GRID, **options)


def test_a_teacher_without_higher_harmonics_has_the_group_sh_all_the_same():
    stored = extract_features(scatter(300, degree=0), features_config())
    part = stored.select(["sh", "opacity"], harmonics=3)
    assert part.features.schema.columns == {"sh": slice(0, 3), "opacity": slice(3, 4)}
