import pytest
import torch

from braid.radiance.features.table import (
    explained_variance,
    fit_standardization,
    training_cells,
)
from braid.radiance.scenes.grids import CellGrid


def rows(count=400, channels=5):
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1e-3, 1.0, 30.0, 1e-2, 5.0])[:channels]
    return torch.randn(count, channels, generator=generator) * spread + spread * 2


EACH = {str(channel): slice(channel, channel + 1) for channel in range(5)}
EACH_OF_TWO = dict(list(EACH.items())[:2])
GROUPS = {"a": slice(0, 3), "b": slice(3, 5)}


@pytest.mark.parametrize("robust", [False, True])
@pytest.mark.parametrize("columns", [EACH, GROUPS])
def test_the_transform_is_affine(robust, columns):
    values = rows()
    fitted = fit_standardization(values, columns, robust=robust)
    back = fitted.invert(fitted.transform(values))
    assert ((back - values).abs() / fitted.scale).max() < 1e-6


def test_training_rows_have_mean_zero_and_deviation_one():
    z = fit_standardization(rows(), EACH).transform(rows())
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(5), atol=1e-5, rtol=0)


def test_channels_of_a_group_keep_their_sizes_relative_to_each_other():
    values = rows()
    z = fit_standardization(values, GROUPS).transform(values)
    for channels in GROUPS.values():
        assert z[:, channels].var(0, correction=0).mean() == pytest.approx(1, rel=1e-5)
    ratio = values[:, 1].std() / values[:, 2].std()
    assert z[:, 1].std() / z[:, 2].std() == pytest.approx(ratio.item(), rel=1e-5)


def test_values_are_clipped_in_deviations_of_their_own_channel():
    values = torch.cat([rows(), torch.full((1, 5), 1e9)])
    fitted = fit_standardization(rows(), GROUPS, clip=4.0)
    deviation = rows().std(0, correction=0) / fitted.scale
    torch.testing.assert_close(fitted.transform(values).amax(0), 4 * deviation)


def test_a_constant_group_passes_through_centered():
    values = torch.cat([rows(channels=1), torch.full((400, 1), 7.0)], dim=1)
    fitted = fit_standardization(values, EACH_OF_TWO)
    assert fitted.scale[1] == 1.0
    assert fitted.transform(values)[:, 1].abs().max() == 0
    assert fitted.transform(torch.tensor([[0.0, 7.5]]))[0, 1] == pytest.approx(0.5)


def test_robust_scales_ignore_outliers_and_fall_back_where_most_rows_are_equal():
    values = rows(channels=2)
    values[:20, 1] = 1e6
    fitted = fit_standardization(values, EACH_OF_TWO, robust=True)
    assert fitted.scale[1] < 2.0
    mostly_zero = torch.zeros(100, 1)
    mostly_zero[:10] = 3.0
    scale = fit_standardization(mostly_zero, {"0": slice(0, 1)}, robust=True).scale
    torch.testing.assert_close(scale, mostly_zero.std(0, correction=0))


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="at least one training cell"):
        fit_standardization(torch.empty(0, 3), GROUPS)


def test_whole_blocks_validate_and_the_split_is_fixed():
    grid = CellGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (16, 16, 16))
    cells = torch.arange(grid.count)
    training = training_cells(grid, cells, block=4, validation=0.25)
    block = grid.coordinates(cells) // 4 @ torch.tensor([16, 4, 1])
    for number in range(64):
        assert len(set(training[block == number].tolist())) == 1
    assert (~training).float().mean() == 0.25
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))
    shuffled = training_cells(grid, cells[order], block=4, validation=0.25)
    assert torch.equal(shuffled, training[order])
    held_out = grid.coordinates(cells[~training]).float() // 4
    assert (held_out.unique(dim=0).std(0) > 0.5).all()  # spread over the box


def test_one_block_cannot_be_split():
    grid = CellGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 4, 4))
    with pytest.raises(ValueError, match="lie in one block"):
        training_cells(grid, torch.arange(64), block=4, validation=0.1)


def test_explained_variance_of_many_rows_is_that_of_the_whole_table():
    draw = torch.Generator().manual_seed(0)
    target = 3 + torch.randn(5000, 4, generator=draw)  # more rows than are summed at once
    predicted = target + 0.5 * torch.randn(5000, 4, generator=draw)
    explained = explained_variance(predicted, target, {"a": slice(0, 1), "b": slice(1, 4)})
    for group, columns in (("a", [0]), ("b", [1, 2, 3])):
        part, truth = predicted[:, columns].double(), target[:, columns].double()
        error = (part - truth).square().sum()
        expected = 1 - error / (truth - truth.mean(0)).square().sum()
        assert explained[group] == pytest.approx(float(expected), abs=1e-12)
