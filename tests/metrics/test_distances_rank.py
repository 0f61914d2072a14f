"""Entropy and the effective rank, against closed forms."""

import math

import numpy as np
import pytest

from braid.metrics.distances import effective_rank, entropy

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(200, 8), (8, 200)])
def test_rank_of_orthogonal_features_is_full_and_of_a_line_one(shape: tuple[int, int]) -> None:
    orthogonal, _ = np.linalg.qr(RNG.normal(size=(200, 8)))
    features = orthogonal if shape == (200, 8) else orthogonal.T
    assert effective_rank(features.astype(np.float32)) == pytest.approx(8, rel=1e-4)
    line = np.outer(RNG.normal(size=shape[0]), RNG.normal(size=shape[1])).astype(np.float32)
    assert effective_rank(line) == pytest.approx(1, rel=1e-3)


def test_rank_of_unequal_singular_values() -> None:
    """3 and 1, which are 3/4 and 1/4 of their sum."""
    nats = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    features = np.array([[3, 0], [0, 1], [0, 0]], np.float32)
    assert effective_rank(features) == pytest.approx(math.exp(nats))


def test_rank_of_nothing_is_one() -> None:
    assert effective_rank(np.zeros((5, 4))) == 1


def test_entropy_counts_what_is_in_use() -> None:
    assert entropy(np.array([3, 3, 0, 3])) == pytest.approx(math.log(3))
    assert entropy(np.array([0, 7])) == 0
