import pytest
import torch

from braid.radiance.features.table import fit_standardization, training_cells
from braid.radiance.scenes.cells import CellGrid


def rows(count=400, channels=5):
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1e-3, 1.0, 30.0, 1e-2, 5.0])[:channels]
    return torch.randn(count, channels, generator=generator) * spread + spread * 2


@pytest.mark.parametrize("robust", [False, True])
def test_the_transform_is_affine(robust):
    values = rows()
    fitted = fit_standardization(values, robust=robust)
    back = fitted.transform(values) * fitted.scale + fitted.mean
    assert ((back - values).abs() / fitted.scale).max() < 1e-6


def test_training_rows_have_mean_zero_and_deviation_one():
    z = fit_standardization(rows()).transform(rows())
    torch.testing.assert_close(z.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(5), atol=1e-5, rtol=0)


def test_values_are_clipped():
    values = torch.cat([rows(), torch.full((1, 5), 1e9)])
    fitted = fit_standardization(rows(), clip=4.0)
    assert fitted.transform(values).max() == 4.0


def test_a_constant_channel_passes_through_centered():
    values = torch.cat([rows(channels=1), torch.full((400, 1), 7.0)], dim=1)
    fitted = fit_standardization(values)
    assert fitted.scale[1] == 1.0
    assert fitted.transform(values)[:, 1].abs().max() == 0
    assert fitted.transform(torch.tensor([[0.0, 7.5]]))[0, 1] == pytest.approx(0.5)


def test_robust_scales_ignore_outliers_and_fall_back_where_most_rows_are_equal():
    values = rows(channels=2)
    values[:20, 1] = 1e6
    fitted = fit_standardization(values, robust=True)
    assert fitted.scale[1] < 2.0
    mostly_zero = torch.zeros(100, 1)
    mostly_zero[:10] = 3.0
    scale = fit_standardization(mostly_zero, robust=True).scale
    torch.testing.assert_close(scale, mostly_zero.std(0, correction=0))


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="at least one training cell"):
        fit_standardization(torch.empty(0, 3))


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
