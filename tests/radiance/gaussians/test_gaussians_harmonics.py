import math

import numpy as np
import pytest
import torch

from braid.radiance.gaussians import gaussians as harmonics


def sphere_quadrature(order: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions and weights that integrate polynomials below degree 2 * order exactly."""
    z, weight_z = np.polynomial.legendre.leggauss(order)
    phi = np.arange(2 * order) * math.pi / order
    z, phi = (grid.ravel() for grid in np.meshgrid(z, phi, indexing="ij"))
    radius = np.sqrt(1 - z * z)
    directions = np.stack([radius * np.cos(phi), radius * np.sin(phi), z], axis=1)
    weights = np.repeat(weight_z, 2 * order) * math.pi / order
    return torch.from_numpy(directions), torch.from_numpy(weights)


def test_basis_is_orthonormal_over_the_sphere():
    directions, weights = sphere_quadrature(8)
    values = harmonics.basis(directions, 3)
    gram = values.T @ (weights[:, None] * values)
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), atol=1e-12, rtol=0)


def test_signs_are_those_of_gaussian_splatting():
    # Positive at these directions where the published renderer's constants say so.
    x, y, z = 0.6, 0.48, 0.64
    values = harmonics.basis(torch.tensor([x, y, z], dtype=torch.float64), 3)
    published = [
        0.28209479177387814,
        -0.4886025119029199 * y,
        0.4886025119029199 * z,
        -0.4886025119029199 * x,
        1.0925484305920792 * x * y,
        -1.0925484305920792 * y * z,
        0.31539156525252005 * (2 * z * z - x * x - y * y),
        -1.0925484305920792 * x * z,
        0.5462742152960396 * (x * x - y * y),
        -0.5900435899266435 * y * (3 * x * x - y * y),
        2.890611442640554 * x * y * z,
        -0.4570457994644658 * y * (4 * z * z - x * x - y * y),
        0.3731763325901154 * z * (2 * z * z - 3 * x * x - 3 * y * y),
        -0.4570457994644658 * x * (4 * z * z - x * x - y * y),
        1.445305721320277 * z * (x * x - y * y),
        -0.5900435899266435 * x * (x * x - 3 * y * y),
    ]
    torch.testing.assert_close(values, torch.tensor(published, dtype=torch.float64))


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_lower_degree_is_a_prefix_of_the_higher(degree):
    directions, _ = sphere_quadrature(3)
    values = harmonics.basis(directions, degree)
    assert values.shape == (len(directions), harmonics.coefficients(degree))
    torch.testing.assert_close(
        values, harmonics.basis(directions, 3)[:, : harmonics.coefficients(degree)]
    )
    assert harmonics.degree_of(values.shape[1]) == degree


def test_degree_zero_color_is_the_same_from_everywhere():
    rgb = torch.tensor([[0.2, 0.5, 0.9]]).repeat(18, 1)
    directions, _ = sphere_quadrature(3)
    sh = harmonics.base_coefficient(rgb)[:, None, :]
    torch.testing.assert_close(harmonics.colors(sh, directions.float()), rgb)


def test_color_is_clamped_below_at_zero():
    sh = torch.full((1, 1, 3), -10.0)
    assert harmonics.colors(sh, torch.tensor([[0.0, 0.0, 1.0]])).eq(0).all()


@pytest.mark.parametrize("degree", [-1, 4])
def test_unknown_degree_is_refused(degree):
    with pytest.raises(ValueError, match="from 0 to 3"):
        harmonics.basis(torch.zeros(1, 3), degree)


def test_odd_coefficient_count_is_refused():
    with pytest.raises(ValueError, match="1, 4, 9 or 16"):
        harmonics.degree_of(5)
