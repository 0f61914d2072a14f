"""Distances between sets of samples against closed forms and libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from braid.metrics.distances import (
    covered,
    energy_distance,
    frechet_distance,
    intra_inter,
    manifold,
    silhouettes,
    spread_failure,
    variance_ratio,
)

RANDOM = np.random.default_rng(0)


def test_the_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    first = RANDOM.normal(size=(400, 4)) @ RANDOM.normal(size=(4, 4))
    second = RANDOM.normal(size=(300, 4)) @ RANDOM.normal(size=(4, 4)) + 1
    c1, c2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    gap = first.mean(0) - second.mean(0)
    expected = gap @ gap + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(first, first + 2) == pytest.approx(16, rel=1e-6)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_a_degenerate_set_has_a_finite_frechet_distance() -> None:
    points = RANDOM.normal(size=(50, 6))
    still = np.ones((50, 6))
    expected = ((points.mean(0) - 1) ** 2).sum() + np.trace(np.cov(points, rowvar=False))
    assert frechet_distance(points, still) == pytest.approx(expected)


def test_the_energy_distance_is_near_zero_for_one_distribution_and_grows() -> None:
    draws = [RANDOM.normal(size=(400, 3)) for _ in range(2)]
    same = energy_distance(*draws)
    assert abs(same) < 0.02
    assert energy_distance(draws[0], draws[1] + 1) > 0.2
    assert energy_distance(draws[0], draws[1] * 0) > 0.2


def test_the_energy_distance_of_two_points_by_hand() -> None:
    first, second = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])
    between = (1 + 5 + 1 + 3) / 4
    assert energy_distance(first, second) == pytest.approx(2 * between - 2 - 4)


def test_the_energy_distance_of_matched_sets_leaves_out_the_matches() -> None:
    real, other = RANDOM.normal(size=(500, 8)), RANDOM.normal(size=(500, 8))
    assert energy_distance(real, real, matched=True) == pytest.approx(0, abs=1e-12)
    assert energy_distance(real, real + 1e-3, matched=True) == pytest.approx(0, abs=1e-5)
    assert energy_distance(real, real + 1e-3) < -0.01  # as if better than real samples
    independent = energy_distance(real, other + 1)
    assert energy_distance(real, other + 1, matched=True) == pytest.approx(independent, rel=0.01)


def test_real_samples_are_precise_and_cover_and_a_collapsed_set_is_seen() -> None:
    real, other = RANDOM.normal(size=(300, 4)), RANDOM.normal(size=(300, 4))
    good = manifold(real, other, 5)
    assert min(good["precision"], good["recall"], good["coverage"]) > 0.85
    assert good["density"] == pytest.approx(1, abs=0.2)
    collapsed = manifold(real, np.repeat(other[:1], 300, axis=0) * 0.01, 5)
    assert collapsed["precision"] == 1
    assert collapsed["recall"] == 0
    assert collapsed["coverage"] < 0.2
    assert covered(real, other, 5).mean() == good["coverage"]


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="3 real samples, expected more than 5"):
        manifold(np.zeros((3, 2)), np.zeros((9, 2)), 5)


def test_variance_within_classes() -> None:
    classes = torch.arange(200) % 2
    noise = torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = noise + 3 * classes[:, None, None, None]
    assert variance_ratio(images, images, classes) == pytest.approx(1)
    assert variance_ratio(0.5 * images + 3, images, classes) == pytest.approx(0.25)
    one_each = images[:2][classes]
    assert variance_ratio(one_each, images, classes) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("recall", "ratio", "failure"),
    [
        (0.5, 1.0, None),
        (0.5, 1.4, "scattered"),
        (0.05, 2.7, "scattered"),  # far too wide: recall is low as well
        (0.5, 0.3, "collapsed"),
        (0.05, 1.0, "collapsed"),
    ],
)
def test_what_is_wrong_with_the_spread_has_one_rule(
    recall: float, ratio: float, failure: str | None
) -> None:
    assert spread_failure(recall, ratio) == failure


def test_classes_without_extent_or_without_distance_have_limits() -> None:
    points = np.array([[0.0], [0.2], [2.0], [2.2]])
    np.testing.assert_allclose(intra_inter(points, np.array([3, 3, 7, 7])), 0.05)
    assert np.isinf(intra_inter(np.array([[0.0], [1.0]] * 2), np.array([0, 0, 1, 1]))).all()
    apart = silhouettes(points, np.array([3, 3, 7, 7]))
    np.testing.assert_allclose(apart, [1 - 0.2 / 2.1, 1 - 0.2 / 1.9, 1 - 0.2 / 1.9, 1 - 0.2 / 2.1])
    for labels in (np.zeros(4, int), np.arange(4)):
        assert silhouettes(points, labels).tolist() == [0, 0, 0, 0]
