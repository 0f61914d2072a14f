import json

import pytest
import torch
from torch import Tensor

from braid.radiance.config import StudentConfig
from braid.radiance.student.grid_mlp import evaluate
from braid.radiance.student.marching import Field
from braid.radiance.student.student import KiloNeRF, fitted_resolution
from tests.radiance.settings import student_config

LOW, HIGH = [-1.0, -0.5, 0.0], [1.0, 0.5, 3.0]


def _sizes(margin: float = 0.0) -> StudentConfig:
    return student_config(density_scale=30.0, hidden=8, frequencies=3, margin=margin)


def _model(resolution: tuple[int, int, int] = (4, 2, 3), margin: float = 0.0) -> KiloNeRF:
    cells = torch.ones(resolution, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    return KiloNeRF.for_cells(cells, LOW, HIGH, _sizes(margin), generator)


def _points(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor(LOW), torch.tensor(HIGH)
    points = low + torch.rand(count, 3, generator=generator) * (high - low)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    return points, directions


def _in_cell(model: KiloNeRF, cell: tuple[int, int, int], within: list[float]) -> Tensor:
    return model.low + (torch.tensor(cell) + torch.tensor(within)) / model.cells_per_unit


def _assert_same(field: Field, other: Field, atol: float) -> None:
    for part, expected in zip(field, other, strict=True):
        torch.testing.assert_close(part, expected, atol=atol, rtol=0)


def test_one_cell_is_a_plain_network_over_the_box() -> None:
    model = _model((1, 1, 1))
    points, directions = _points(50)
    local = 2 * (points - torch.tensor(LOW)) / (torch.tensor(HIGH) - torch.tensor(LOW)) - 1
    network = torch.zeros(50, dtype=torch.int64)
    raw, features = evaluate(model.architecture, model.weights, network, local, directions)
    field = model(points, directions)
    torch.testing.assert_close(field.features, features, atol=1e-5, rtol=0)
    torch.testing.assert_close(field.rgb, torch.sigmoid(raw[:, 1:]), atol=1e-6, rtol=0)
    sigma = model.density_scale * torch.log1p(torch.exp(raw[:, 0] - 2.25))
    torch.testing.assert_close(field.sigma, sigma, atol=1e-5, rtol=1e-5)


def test_each_cell_uses_its_own_network() -> None:
    model = _model()
    cell = (2, 1, 0)
    point = _in_cell(model, cell, [0.3, 0.6, 0.5]).unsqueeze(0)
    before = model(point, torch.tensor([[0.0, 0, 1]]))
    network = int(model.network_of_cell[cell])
    with torch.no_grad():
        model.weights[torch.arange(24) != network] += 1
    _assert_same(model(point, torch.tensor([[0.0, 0, 1]])), before, 0)


def test_points_on_faces_belong_to_one_cell_and_the_last_face_stays_inside() -> None:
    model = _model()
    faces = torch.stack([_in_cell(model, (x, 0, 0), [0, 0.5, 0.5]) for x in range(5)])
    blend = model.blend(faces)
    assert blend.point.tolist() == [0, 1, 2, 3, 4]
    assert blend.network.tolist() == [model.network_of_cell[x, 0, 0] for x in (0, 1, 2, 3, 3)]
    torch.testing.assert_close(blend.local[:, 0], torch.tensor([-1.0, -1, -1, -1, 1]))


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_density_is_zero_outside_the_box_and_in_cells_without_a_network(margin: float) -> None:
    cells = torch.ones(4, 2, 3, dtype=torch.bool)
    cells[1, 1, 2] = False
    model = KiloNeRF.for_cells(cells, LOW, HIGH, _sizes(margin))
    empty = _in_cell(model, (1, 1, 2), [0.01, 0.5, 0.5])
    outside = torch.tensor([[1.01, 0, 1], [0, -0.51, 1], [0, 0, -0.01], [5, 5, 5]])
    points = torch.cat([empty.unsqueeze(0), outside])
    field = model(points, points)
    assert not field.sigma.any()
    assert not field.features.any()


def test_no_occupied_cell_is_an_error() -> None:
    with pytest.raises(ValueError, match="the 2x3x4 grid has no occupied cell"):
        KiloNeRF.for_cells(torch.zeros(2, 3, 4, dtype=torch.bool), LOW, HIGH, _sizes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": [2, 0, 2]}, "resolution"),
        ({"high": [1.0, -0.5, 3.0]}, "low < high"),
        ({"margin": 0.6}, "margin"),
        ({"layers": 1}, "layers"),
        ({"networks": 0}, "no occupied cell"),
    ],
)
def test_a_config_that_makes_no_sense_is_an_error(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KiloNeRF.from_config(_model().config | change)


def test_config_and_state_restore_the_model() -> None:
    cells = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(1)) > 0.4
    model = KiloNeRF.for_cells(cells, LOW, HIGH, _sizes(margin=0.1))
    restored = KiloNeRF.from_config(json.loads(json.dumps(model.config)))
    restored.load_state_dict(model.state_dict())
    points, directions = _points(100)
    _assert_same(restored(points, directions), model(points, directions), 0)


def test_blend_weights_sum_to_one_and_reach_up_to_eight_networks() -> None:
    model = _model(margin=0.3)
    points = _points(400)[0]
    blend = model.blend(points)
    total = torch.zeros(400).index_add_(0, blend.point, blend.weight)
    torch.testing.assert_close(total, torch.ones(400))
    assert torch.bincount(blend.point).max() == 8
    assert blend.weight.min() > 0
    assert blend.local.abs().max() <= 1.6 + 1e-5


def test_blend_is_even_on_a_face_and_absent_beyond_the_margin() -> None:
    model = _model(margin=0.1)
    on_face = _in_cell(model, (2, 1, 1), [0, 0.5, 0.5])
    away = _in_cell(model, (2, 1, 1), [0.101, 0.5, 0.5])
    blend = model.blend(torch.stack([on_face, away]))
    torch.testing.assert_close(blend.weight[blend.point == 0], torch.tensor([0.5, 0.5]))
    assert blend.weight[blend.point == 1].tolist() == [1.0]


def test_field_is_continuous_across_faces_with_a_margin_only() -> None:
    direction = torch.tensor([[0.0, 0.6, 0.8]]).expand(2, -1)
    for margin in (0.0, 0.2):
        model = _model(margin=margin)
        for axis in range(3):
            within = [0.4, 0.07, 0.3]
            sides = []
            for offset in (-1e-5, 1e-5):
                within[axis] = offset
                sides.append(_in_cell(model, (1, 1, 1), within))
            features = model(torch.stack(sides), direction).features
            jump = (features[0] - features[1]).abs().max()
            assert (jump < 1e-3) == (margin > 0)


def test_blend_stays_continuous_where_a_neighbor_has_no_network() -> None:
    cells = torch.ones(4, 2, 3, dtype=torch.bool)
    cells[1, 0, 1] = False
    generator = torch.Generator().manual_seed(0)
    model = KiloNeRF.for_cells(cells, LOW, HIGH, _sizes(margin=0.25), generator)
    sides = [_in_cell(model, (1, 1, 1), [offset, 0.05, 0.4]) for offset in (-1e-5, 1e-5)]
    sigma = model(torch.stack(sides), torch.tensor([[0.0, 0, 1]] * 2)).sigma.detach()
    assert abs(float(sigma[0] - sigma[1])) < 1e-3 * float(sigma[0])


def test_a_vanishing_margin_is_the_hard_grid() -> None:
    hard, soft = _model(margin=0.0), _model(margin=1e-6)
    points, directions = _points(300)
    _assert_same(soft(points, directions), hard(points, directions), 2e-5)


def test_gradients_of_a_blended_field_reach_every_contributing_network() -> None:
    model = _model(margin=0.2)
    corner = _in_cell(model, (1, 1, 1), [0.01, 0.01, 0.01]).unsqueeze(0)
    model(corner, torch.tensor([[0.0, 0, 1]])).sigma.sum().backward()
    assert model.weights.grad is not None
    reached = torch.nonzero(model.weights.grad.abs().sum(1)).squeeze(1)
    assert torch.equal(reached, model.network_of_cell[0:2, 0:2, 0:2].flatten().sort().values)


def test_density_scale_is_per_longest_cell_edge() -> None:
    assert _model((2, 1, 1)).density_scale == pytest.approx(30 / 3)
    assert _model((1, 1, 6)).density_scale == pytest.approx(30 / 2)


def test_a_fresh_field_is_a_gray_fog() -> None:
    model = _model()
    with torch.no_grad():
        field = model(*_points(500))
    depth_of_a_cell = field.sigma / model.cells_per_unit.min()
    assert 1 < float(depth_of_a_cell.mean()) < 6
    assert 0.4 < float(field.rgb.mean()) < 0.6


def test_resolution_fits_the_box_as_in_the_paper() -> None:
    assert fitted_resolution([-0.67, -1.2, -0.37], [0.67, 1.2, 1.03], 16) == (9, 16, 10)
    assert fitted_resolution([0, 0, 0], [1, 1, 0.001], 4) == (4, 4, 1)
    with pytest.raises(ValueError, match="cells must be at least 1"):
        fitted_resolution([0, 0, 0], [1, 1, 1], 0)
