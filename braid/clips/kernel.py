"""What the drift's kernel sees in a space: how far, how many neighbours, and of which class.

For a query clip i, gallery clips j at distances d_ij in mean distances, and a temperature tau:

    w_ij = softmax_j(-d_ij / tau),   effective neighbours = 1 / sum_j w_ij^2,
    mass ratio = sum of w_ij with j of i's class / sum of the others, both over all queries.

A kernel that sees one neighbour is a nearest-neighbour rule; one that sees them all is blind. These
are figures of real clips alone, before any training; a training's own are in its statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

PERCENTILES = (10, 50, 90)
_SMALLEST = float(np.finfo(np.float64).tiny)


def kernel_figures(
    distances: NDArray[np.float64],  # [q, g] in mean distances
    temperatures: Sequence[float],
) -> dict[str, float]:
    """Percentiles of distances, and of effective neighbours at each temperature."""
    figures = _percentiles("kernel_distance", distances)
    for tau in temperatures:
        weights = softmax(-distances / tau, axis=1)
        effective = 1 / np.square(weights).sum(axis=1)
        figures |= _percentiles(f"kernel_neighbours_{tau:g}", effective)
    return figures


def mass_ratios(
    distances: NDArray[np.float64],  # [q, g] in mean distances
    same: NDArray[np.bool_],  # [q, g] of one class
    temperatures: Sequence[float],
) -> dict[str, float]:
    """Kernel mass on the same class over that on the others, at each temperature."""
    ratios = {}
    for tau in temperatures:
        weights = softmax(-distances / tau, axis=1)
        positive, negative = weights[same].sum(), weights[~same].sum()
        ratios[f"kernel_mass_ratio_{tau:g}"] = float(positive / max(negative, _SMALLEST))
    return ratios


def _percentiles(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    found = np.percentile(values, PERCENTILES)
    return {f"{name}_p{each}": float(value) for each, value in zip(PERCENTILES, found, strict=True)}
