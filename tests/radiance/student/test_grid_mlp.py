"""The grid of MLPs against a per-point float64 gather, which shares none of its code."""

import pytest
import torch
from torch import Tensor

from braid.radiance.student.grid_mlp import Architecture, evaluate, make_tiles
from tests.radiance.settings import network_config

SMALL = Architecture(network_config(hidden=8, frequencies=5, direction_frequencies=2))
PAPER = Architecture(network_config(frequencies=10, direction_frequencies=4))


def _inputs(points: int, networks: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Unevenly many points, as along a surface: some networks get many, some none."""
    generator = torch.Generator().manual_seed(seed)
    skewed = torch.rand(points, generator=generator) ** 3
    network = (skewed * networks).long()
    positions = 2 * torch.rand(points, 3, generator=generator) - 1
    directions = torch.nn.functional.normalize(torch.randn(points, 3, generator=generator), dim=1)
    return network, positions, directions


def _parameters(architecture: Architecture, networks: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    parameters = architecture.initial(networks, generator)
    return parameters + 0.05 * torch.randn(parameters.shape, generator=generator)


def _encode(x: Tensor, frequencies: int) -> Tensor:
    waves = [wave(x * 2**k) for k in range(frequencies) for wave in (torch.cos, torch.sin)]
    return torch.cat([x, *waves], dim=1)


def _gathered(
    architecture: Architecture, parameters: Tensor, network: Tensor, x: Tensor, d: Tensor
) -> tuple[Tensor, Tensor]:
    """Each point's own weights, gathered, in float64."""

    def affine(layer: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("pi,pio->po", x, layer[:, :-1]) + layer[:, -1]

    *trunk, density, color, rgb = architecture.split(parameters.double()[network])
    hidden = _encode(x.double(), architecture.sizes.frequencies)
    for layer in trunk:
        hidden = affine(layer, hidden).relu()
    view = _encode(d.double(), architecture.sizes.direction_frequencies)
    mixed = affine(color, torch.cat([hidden, view], dim=1)).relu()
    return torch.cat([affine(density, hidden), affine(rgb, mixed)], dim=1), hidden


@pytest.mark.parametrize("architecture", [SMALL, PAPER])
def test_outputs_equal_a_per_point_gather(architecture: Architecture) -> None:
    parameters, inputs = _parameters(architecture, 37), _inputs(1500, 37)
    raw, features = evaluate(architecture, parameters, *inputs)
    expected_raw, expected_features = _gathered(architecture, parameters, *inputs)
    scale = expected_features.abs().max().item()
    torch.testing.assert_close(raw.double(), expected_raw, atol=1e-6, rtol=0)
    torch.testing.assert_close(features.double(), expected_features, atol=1e-6 * scale, rtol=0)


@pytest.mark.parametrize(("points", "networks"), [(1500, 37), (6000, 2)])
def test_gradients_equal_a_per_point_gather(points: int, networks: int) -> None:
    inputs = _inputs(points, networks)
    generator = torch.Generator().manual_seed(2)
    raw_weight = torch.randn(points, 4, generator=generator)
    feature_weight = torch.randn(points, SMALL.sizes.hidden, generator=generator)
    gradients = []
    for function in (evaluate, _gathered):
        parameters = _parameters(SMALL, networks).requires_grad_()
        raw, features = function(SMALL, parameters, *inputs)
        ((raw * raw_weight).sum() + (features * feature_weight).sum()).backward()
        gradients.append(parameters.grad)
    difference = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    assert difference < 1e-6


def test_gradients_of_features_alone_stop_at_the_trunk() -> None:
    parameters = _parameters(SMALL, 3).requires_grad_()
    evaluate(SMALL, parameters, *_inputs(50, 3))[1].sum().backward()
    assert parameters.grad is not None
    trunk = SMALL.split(parameters.grad)[: SMALL.sizes.layers - 1]
    heads = SMALL.split(parameters.grad)[SMALL.sizes.layers - 1 :]
    assert all(layer.any() for layer in trunk)
    assert not any(layer.any() for layer in heads)


def test_gradients_pass_a_float64_gradcheck() -> None:
    architecture = Architecture(network_config(hidden=3, layers=3, frequencies=1))
    network, positions, directions = _inputs(12, 3)
    parameters = _parameters(architecture, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda weights: evaluate(architecture, weights, network, positions, directions), parameters
    )


def test_networks_without_points_get_no_gradient() -> None:
    parameters = _parameters(SMALL, 5).requires_grad_()
    _, positions, directions = _inputs(40, 5)
    network = torch.arange(40) % 2 * 3
    evaluate(SMALL, parameters, network, positions, directions)[0].sum().backward()
    assert parameters.grad is not None
    assert (parameters.grad.abs().sum(1) > 0).tolist() == [True, False, False, True, False]


def test_equal_weights_everywhere_are_one_shared_network() -> None:
    network, positions, directions = _inputs(700, 9)
    one = _parameters(SMALL, 1)
    many = evaluate(SMALL, one.expand(9, -1).contiguous(), network, positions, directions)
    shared = evaluate(SMALL, one, torch.zeros_like(network), positions, directions)
    for part, expected in zip(many, shared, strict=True):
        torch.testing.assert_close(part, expected, atol=2e-6, rtol=0)


def test_order_of_points_does_not_matter() -> None:
    parameters, inputs = _parameters(SMALL, 11), _inputs(500, 11)
    order = torch.randperm(500, generator=torch.Generator().manual_seed(3))
    raw, features = evaluate(SMALL, parameters, *inputs)
    shuffled_raw, shuffled = evaluate(SMALL, parameters, *(tensor[order] for tensor in inputs))
    torch.testing.assert_close(shuffled_raw, raw[order], atol=2e-6, rtol=0)
    torch.testing.assert_close(shuffled, features[order], atol=5e-6, rtol=0)


def test_features_can_be_left_out() -> None:
    parameters, inputs = _parameters(SMALL, 4), _inputs(60, 4)
    raw, features = evaluate(SMALL, parameters, *inputs, features=False)
    assert features.shape == (60, 0)
    assert torch.equal(raw, evaluate(SMALL, parameters, *inputs)[0])


@pytest.mark.parametrize("points", [0, 1, 7, 5000])
def test_tiles_hold_every_row_once_with_its_own_network(points: int) -> None:
    network = _inputs(points, 3)[0]
    tiles = make_tiles(network, 3)
    kept = tiles.rows[~tiles.padding]
    assert torch.equal(kept.sort().values, torch.arange(points))
    assert torch.equal(tiles.rows[tiles.position], torch.arange(points))
    for chunk in tiles:
        owner = chunk.networks.repeat_interleave(chunk.length)
        assert torch.equal(network[chunk.rows], owner)


def test_a_network_with_most_points_is_cut_into_even_tiles() -> None:
    network = torch.zeros(5000, dtype=torch.int64)
    network[:3] = 1
    tiles = make_tiles(network, 2)
    assert tiles.networks.tolist() == [0, 0, 0, 1]
    assert len(tiles.rows) < 5000 + 60


def test_no_points_give_empty_outputs_and_zero_gradients() -> None:
    parameters = _parameters(SMALL, 2).requires_grad_()
    raw, features = evaluate(SMALL, parameters, *_inputs(0, 2))
    assert raw.shape == (0, 4)
    assert features.shape == (0, 8)
    raw.sum().backward()
    assert parameters.grad is not None
    assert not parameters.grad.any()


def test_parameter_count_is_the_papers() -> None:
    assert PAPER.parameters == 6212
