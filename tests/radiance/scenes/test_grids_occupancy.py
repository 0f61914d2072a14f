import pytest
import torch
from torch import Tensor

from braid.radiance.scenes.cameras import Rays
from braid.radiance.scenes.grids import Occupancy


def _grid(*occupied: tuple[int, int, int], shape: tuple[int, int, int] = (4, 6, 8)) -> Occupancy:
    """Cubic voxels of edge 0.5 from (-1, 0, 1)."""
    voxels = torch.zeros(shape, dtype=torch.bool)
    for index in occupied:
        voxels[index] = True
    low = torch.tensor([-1.0, 0.0, 1.0])
    return Occupancy(voxels, low, low + 0.5 * torch.tensor(shape))


def _center(index: tuple[int, int, int]) -> Tensor:
    return torch.tensor([-1.0, 0.0, 1.0]) + 0.5 * (torch.tensor(index) + 0.5)


def test_contains_is_true_inside_occupied_voxels_only() -> None:
    grid = _grid((1, 2, 3), (3, 5, 7))
    points = torch.stack([_center((1, 2, 3)), _center((1, 2, 4)), _center((3, 5, 7)), grid.high])
    assert grid.contains(points).tolist() == [True, False, True, True]
    beyond = torch.stack([grid.high + 1e-3, grid.low - 1e-3, torch.full((3,), 99.0)])
    assert not grid.contains(beyond).any()


def test_tight_box_surrounds_the_occupied_voxels() -> None:
    low, high = _grid((1, 2, 3), (2, 2, 5)).tight_box(padding=0.25)
    assert low == [-0.75, 0.75, 2.25]
    assert high == [0.75, 1.75, 4.25]


def test_tight_box_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no occupied voxel"):
        _grid().tight_box()


def test_cells_are_those_that_overlap_an_occupied_voxel() -> None:
    grid = _grid((0, 0, 0), (3, 2, 4))
    cells = grid.cells((2, 3, 4), grid.low.tolist(), grid.high.tolist())
    assert torch.nonzero(cells).tolist() == [[0, 0, 0], [1, 1, 2]]
    coarse = grid.cells((1, 4, 1), grid.low.tolist(), grid.high.tolist())
    # 6 voxels on 4 cells of 1.5: voxel 2 overlaps cell 1 alone, voxel 0 cell 0.
    assert torch.nonzero(coarse)[:, 1].tolist() == [0, 1]


def test_cells_finer_than_voxels_cover_the_whole_voxel() -> None:
    grid = _grid((1, 2, 3))
    cells = grid.cells((8, 12, 16), grid.low.tolist(), grid.high.tolist())
    expected = grid.occupied
    for axis in range(3):
        expected = expected.repeat_interleave(2, dim=axis)
    assert torch.equal(cells, expected)


def test_every_point_of_an_occupied_voxel_lies_in_a_chosen_cell() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = _grid((0, 1, 2), (3, 3, 3), (2, 5, 7))
    low, high = grid.tight_box(padding=0.1)
    shape = (3, 4, 5)
    cells = grid.cells(shape, low, high)
    points = grid.sample(500, generator)
    edge = (torch.tensor(high) - torch.tensor(low)) / torch.tensor(shape)
    index = ((points - torch.tensor(low)) / edge).long()
    assert cells[tuple(index.unbind(1))].all()


def test_samples_are_uniform_over_the_occupied_voxels() -> None:
    grid = _grid((0, 0, 0), (3, 5, 7), (3, 5, 6))
    points = grid.sample(3000, torch.Generator().manual_seed(0))
    assert grid.contains(points).all()
    fraction = (points[:, 0] < -0.5).float().mean()
    assert abs(fraction - 1 / 3) < 0.03


def test_state_restores_the_grid() -> None:
    grid = _grid((0, 1, 2), (3, 3, 3))
    restored = Occupancy.from_state(grid.state())
    for name, tensor in restored.state().items():
        assert torch.equal(tensor, grid.state()[name])


def test_coarse_look_up_never_misses_an_occupied_voxel_within_its_reach() -> None:
    generator = torch.Generator().manual_seed(0)
    voxels = torch.rand(21, 18, 23, generator=generator) < 0.002
    grid = Occupancy(voxels, torch.zeros(3), torch.tensor([2.1, 1.8, 2.3]))
    points = torch.rand(4000, 3, generator=generator) * grid.high
    away = 2 * torch.rand(4000, 3, generator=generator) - 1
    nearby = (points + away * grid.coarse_reach).clamp(torch.zeros(3), grid.high)
    rays = Rays(points, torch.tensor([[0.0, 0, 1]]).expand(4000, -1))
    seen = grid.near_along(rays, torch.arange(4000), torch.zeros(4000, 1))[:, 0]
    hit = grid.contains(nearby)
    assert hit.any()
    assert seen[hit].all()
    assert not seen.all()
