import numpy as np
import torch
from sklearn.linear_model import Ridge

from braid.radiance.features.table import RIDGE, TILE, apply_heads, fit_heads


def batch(count=400, networks=7):
    draw = torch.Generator().manual_seed(0)
    network = torch.randint(networks, (count,), generator=draw)
    return torch.randn(count, 5, generator=draw), torch.randn(count, 3, generator=draw), network


def test_a_head_is_the_ridge_regression_of_its_network_s_points():
    x, y, network = batch()
    heads = fit_heads(x, y, network, 7)
    for index in range(7):
        own = network == index
        centered = x[own].double() - x[own].double().mean(0)
        penalty = RIDGE * float(centered.square().sum(0).mean())
        reference = Ridge(alpha=penalty).fit(x[own].double().numpy(), y[own].double().numpy())
        np.testing.assert_allclose(heads[index, :-1].T, reference.coef_, atol=1e-5)
        np.testing.assert_allclose(heads[index, -1], reference.intercept_, atol=1e-5)


def test_tiled_application_is_the_product_point_by_point():
    x, y, network = batch(50 * TILE)
    network[: 20 * TILE + 3] = 4  # more than a tile, and one that is not full
    heads = fit_heads(x, y, network, 9)  # networks 7 and 8 have no point
    expected = torch.stack([h[-1] + row @ h[:-1] for h, row in zip(heads[network], x, strict=True)])
    torch.testing.assert_close(apply_heads(heads, x, network), expected, atol=1e-5, rtol=1e-5)


def test_a_network_without_points_and_features_without_variance_predict_means():
    x, y, network = batch(networks=3)
    x[network == 1] = 2.0
    heads = fit_heads(x, y, network, 4)
    torch.testing.assert_close(heads[3, -1], y.mean(0))
    mean = y[network == 1].mean(0)
    torch.testing.assert_close(apply_heads(heads, x, network)[network == 1][0], mean)
    none = fit_heads(x[:, :0], y, network, 4)
    torch.testing.assert_close(none[1, 0], mean)


def test_no_points_have_no_prediction():
    heads = torch.zeros(4, 6, 3, requires_grad=True)
    predicted = apply_heads(heads, torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert predicted.shape == (0, 3)
    predicted.sum().backward()
