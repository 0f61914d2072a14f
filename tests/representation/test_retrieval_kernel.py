from __future__ import annotations

import numpy as np
import pytest

from braid.representation.retrieval import kernel_figures, mass_ratios

RNG = np.random.default_rng(0)


def test_effective_neighbours_go_from_one_to_all() -> None:
    distances = np.array([[0.1, 1.0, 1.4, 1.5]])
    figures = kernel_figures(distances, (0.01, 1e4))
    assert figures["kernel_neighbours_0.01_p50"] == pytest.approx(1)
    assert figures["kernel_neighbours_10000_p50"] == pytest.approx(4)


def test_effective_neighbours_of_two_unequal_weights() -> None:
    """Weights 3/4 and 1/4: one over 10/16."""
    figures = kernel_figures(np.array([[0.0, 0.1 * np.log(3)]]), (0.1,))
    assert figures["kernel_neighbours_0.1_p50"] == pytest.approx(1.6)


def test_percentiles_of_distances() -> None:
    distances = np.arange(101.0)[None]
    figures = kernel_figures(distances, ())
    assert list(figures.values()) == [10, 50, 90]


def test_mass_ratio_against_a_loop() -> None:
    distances, same = RNG.random((5, 7)), RNG.random((5, 7)) < 0.3
    weights = np.exp(-distances / 0.2)
    weights /= weights.sum(1, keepdims=True)
    ratio = weights[same].sum() / weights[~same].sum()
    assert mass_ratios(distances, same, (0.2,)) == {"kernel_mass_ratio_0.2": pytest.approx(ratio)}


def test_mass_ratio_of_equal_distances_is_the_ratio_of_counts() -> None:
    same = np.array([[True, False, False, False], [True, True, False, False]])
    found = mass_ratios(np.ones((2, 4)), same, (0.05,))
    assert found["kernel_mass_ratio_0.05"] == pytest.approx(3 / 5)


def test_mass_ratio_is_finite_where_no_mass_is_on_other_classes() -> None:
    found = mass_ratios(np.array([[0.0, 2.0]]), np.array([[True, False]]), (0.001,))
    assert np.isfinite(found["kernel_mass_ratio_0.001"])
