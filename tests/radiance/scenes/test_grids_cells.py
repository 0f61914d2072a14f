import pytest
import torch

from braid.radiance.scenes.grids import CellGrid, cubic_grid, points_grid

GRID = CellGrid((-1.0, 0.0, 2.0), (1.0, 1.5, 4.0), (4, 3, 5))


def test_every_cell_center_is_in_its_own_cell():
    cells = torch.arange(GRID.count)
    lower, edges = torch.tensor(GRID.lower), torch.tensor(GRID.edges)
    centers = lower + (GRID.coordinates(cells) + 0.5) * edges
    assert torch.equal(GRID.index(centers), cells)


def test_a_face_belongs_to_one_cell_and_the_upper_face_of_the_box_is_inside():
    points = torch.tensor([[0.0, 0.5, 2.5], [1.0, 1.5, 4.0], [-1.0, 0.0, 2.0]])
    where = GRID.coordinates(GRID.index(points))
    assert where.tolist() == [[2, 1, 1], [3, 2, 4], [0, 0, 0]]


def test_points_outside_have_no_cell():
    points = torch.tensor([[1.001, 0.5, 3.0], [0.0, -0.001, 3.0], [0.0, 0.5, float("nan")]])
    assert GRID.index(points).tolist() == [-1, -1, -1]


def test_trilinear_weights_sum_to_one_and_reproduce_the_place():
    points = torch.rand(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    place = 0.5 + points * (torch.tensor(GRID.resolution) - 1)  # between the outermost centers
    world = torch.tensor(GRID.lower) + place * torch.tensor(GRID.edges, dtype=torch.float64)
    cells, weights = GRID.corners(world)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(500, dtype=torch.float64))
    mean = (weights[..., None] * (GRID.coordinates(cells) + 0.5)).sum(1)
    torch.testing.assert_close(mean, place)


def test_a_point_at_a_cell_center_belongs_wholly_to_that_cell():
    center = torch.tensor([[-0.25, 0.75, 3.0]])
    cells, weights = GRID.corners(center)
    assert cells[0, weights[0].argmax()] == GRID.index(center)[0]
    assert weights.max() == pytest.approx(1.0)


def test_cubic_grid_covers_the_box_with_cubes():
    grid = cubic_grid((-1.0, -2.0, 0.0), (1.0, 2.5, 0.4), 9)
    assert grid.resolution == (4, 9, 1)
    assert grid.edges == pytest.approx((0.5, 0.5, 0.5))
    assert grid.lower == pytest.approx((-1.0, -2.0, -0.05))
    assert all(low <= given for low, given in zip(grid.lower, (-1.0, -2.0, 0.0), strict=True))


def test_points_grid_holds_all_points():
    points = torch.randn(1000, 3, generator=torch.Generator().manual_seed(1))
    assert points_grid(points, 16).contains(points).all()


@pytest.mark.parametrize(
    ("upper", "resolution", "message"),
    [
        ((0.0, 1.0, 1.0), (1, 1, 1), "lower < upper"),
        ((1.0, 1.0, float("inf")), (1, 1, 1), "lower < upper"),
        ((1.0, 1.0, 1.0), (4, 0, 4), "resolution >= 1"),
    ],
)
def test_an_impossible_grid_is_refused(upper, resolution, message):
    with pytest.raises(ValueError, match=message):
        CellGrid((0.0, 0.0, 0.0), upper, resolution)
