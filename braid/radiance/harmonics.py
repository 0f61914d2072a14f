"""Real spherical harmonics, degrees 0 to 3, in the sign convention of 3D Gaussian Splatting.

The basis is orthonormal over the unit sphere; the Condon-Shortley phase is kept, so that the
degree-1 functions are (-y, z, -x) up to scale. A splat's colour seen along d is
max(0, 0.5 + sum_k basis_k(d) f_k) (Kerbl et al. 2023).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_DEGREE = 3
C0 = math.sqrt(1 / (4 * math.pi))
C1 = math.sqrt(3 / (4 * math.pi))
C2 = math.sqrt(15 / (4 * math.pi))
C3 = math.sqrt(35 / (32 * math.pi))


def coefficients(degree: int) -> int:
    """Number of basis functions up to and including a degree."""
    return (degree + 1) ** 2


def degree_of(count: int) -> int:
    """The degree that has `count` basis functions.

    Raises:
        ValueError: if no degree from 0 to 3 has so many.
    """
    for degree in range(MAX_DEGREE + 1):
        if coefficients(degree) == count:
            return degree
    raise ValueError(f"expected 1, 4, 9 or 16 harmonic coefficients, got {count}")


def basis(
    directions: Tensor,  # [..., 3], unit length
    degree: int,
) -> Tensor:
    """Basis functions at the given directions, [..., (degree + 1)^2].

    Raises:
        ValueError: if the degree is not from 0 to 3.
    """
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"harmonic degree must be from 0 to {MAX_DEGREE}, got {degree}")
    x, y, z = directions.unbind(-1)
    terms = [torch.full_like(x, C0)]
    if degree >= 1:
        terms += [-C1 * y, C1 * z, -C1 * x]
    if degree >= 2:
        terms += _second(x, y, z)
    if degree >= 3:
        terms += _third(x, y, z)
    return torch.stack(terms, dim=-1)


def _second(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    return [
        C2 * x * y,
        -C2 * y * z,
        C2 / math.sqrt(12) * (2 * z * z - x * x - y * y),
        -C2 * x * z,
        C2 / 2 * (x * x - y * y),
    ]


def _third(x: Tensor, y: Tensor, z: Tensor) -> list[Tensor]:
    xx, yy, zz = x * x, y * y, z * z
    return [
        -C3 * y * (3 * xx - yy),
        C3 * math.sqrt(24) * x * y * z,
        -C3 * math.sqrt(0.6) * y * (4 * zz - xx - yy),
        C3 * math.sqrt(0.4) * z * (2 * zz - 3 * xx - 3 * yy),
        -C3 * math.sqrt(0.6) * x * (4 * zz - xx - yy),
        C3 * math.sqrt(6) * z * (xx - yy),
        -C3 * x * (xx - 3 * yy),
    ]


def colours(
    sh: Tensor,  # [G, (degree + 1)^2, 3]
    directions: Tensor,  # [G, 3], unit length, from the camera to the splat
) -> Tensor:
    """RGB of each splat seen along its direction, max(0, 0.5 + SH), [G, 3]."""
    values = basis(directions, degree_of(sh.shape[1]))
    return torch.relu(0.5 + (values[:, :, None] * sh).sum(dim=1))


def base_coefficient(
    rgb: Tensor,  # [..., 3]
) -> Tensor:
    """The degree-0 coefficient that shows a colour the same from everywhere, [..., 3]."""
    return (rgb - 0.5) / C0
