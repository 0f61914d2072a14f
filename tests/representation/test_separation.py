from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from braid.metrics.distances import silhouettes
from braid.representation import separation

RNG = np.random.default_rng(0)
LABELS = np.arange(120) % 4
CENTERS = np.array([[9, 0, 0], [0, 9, 0], [0, 0, 9], [9, 9, 9]], np.float32)
CLUSTERS = (CENTERS[LABELS] + RNG.normal(size=(120, 3)) * 0.01).astype(np.float32)
CLOUD = RNG.normal(size=(120, 3)).astype(np.float32)
HELD_OUT = np.arange(120) % 3 == 0


def test_perfect_clusters_reach_the_extremes() -> None:
    assert separation.intra_inter(CLUSTERS, LABELS).mean() < 0.01
    assert silhouettes(CLUSTERS, LABELS).mean() > 0.99
    assert separation.davies_bouldin(CLUSTERS, LABELS) < 0.01
    assert separation.probe(CLUSTERS, LABELS, HELD_OUT).mean() == 1


def test_random_labels_separate_nothing() -> None:
    assert separation.intra_inter(CLOUD, LABELS).mean() > 2
    assert abs(silhouettes(CLOUD, LABELS).mean()) < 0.1
    assert separation.davies_bouldin(CLOUD, LABELS) > 3
    assert separation.probe(CLOUD, LABELS, HELD_OUT).mean() < 0.5


def test_intra_inter_on_a_line() -> None:
    """Class means 1 and 11, 10 apart; every point is 1 from its own."""
    points = np.array([[0], [2], [10], [12]], np.float32)
    np.testing.assert_allclose(separation.intra_inter(points, np.array([3, 3, 7, 7])), 0.1)


def test_silhouette_of_a_singleton_is_zero() -> None:
    points = np.array([[0], [1], [10]], np.float32)
    np.testing.assert_allclose(silhouettes(points, np.array([0, 0, 1])), [0.9, 8 / 9, 0])


def test_the_probe_is_not_fitted_to_its_test_clips() -> None:
    """In 400 dimensions it would fit any 120 labels."""
    points = RNG.normal(size=(120, 400)).astype(np.float32)
    assert separation.probe(points, LABELS, HELD_OUT).mean() < 0.6


def test_the_probe_does_not_depend_on_the_scale_of_the_space() -> None:
    small = separation.probe(CLOUD * np.float32(1e-3), LABELS, HELD_OUT)
    np.testing.assert_array_equal(small, separation.probe(CLOUD, LABELS, HELD_OUT))


def test_probe_chance_is_that_of_the_most_frequent_train_class() -> None:
    labels = np.array([1, 1, 0, 0, 0, 1])
    held_out = np.array([False, False, False, True, True, True])
    assert separation.probe_chance(labels, held_out) == pytest.approx(1 / 3)


def test_stability_of_the_same_and_of_unrelated_clusterings() -> None:
    def same(x: Tensor, draw: torch.Generator) -> Tensor:
        return torch.from_numpy(LABELS)

    def unrelated(x: Tensor, draw: torch.Generator) -> Tensor:
        return torch.randint(4, (len(x),), generator=draw)

    stable = separation.stability(CLOUD, same, 0)
    assert stable["stability_ari"] == stable["stability_nmi"] == pytest.approx(1)
    assert abs(stable["stability_ari_random"]) < 0.1
    assert stable == separation.stability(CLOUD, same, 0)
    assert abs(separation.stability(CLOUD, unrelated, 0)["stability_ari"]) < 0.1


def test_mean_cosine_against_a_loop() -> None:
    unit = CLOUD[:9] / np.linalg.norm(CLOUD[:9], axis=1, keepdims=True)
    slow = [unit[a] @ unit[b] for a in range(9) for b in range(9) if a != b]
    assert separation.mean_cosine(CLOUD[:9]) == pytest.approx(np.mean(slow), abs=1e-6)
    assert separation.mean_cosine(np.ones((5, 3), np.float32)) == pytest.approx(1)


def test_usage_of_even_and_of_empty_classes() -> None:
    even = separation.usage(np.array([5, 5, 5, 5]))
    assert even["usage_entropy"] == pytest.approx(math.log(4))
    assert even["usage_fraction"] == pytest.approx(1)
    one = separation.usage(np.array([7, 0, 0, 0]))
    assert (one["usage_perplexity"], one["usage_fraction"], one["max_fraction"]) == (1, 0.25, 1)


def test_one_class_or_one_point_is_named() -> None:
    with pytest.raises(ValueError, match="two pseudo-classes or more"):
        separation.intra_inter(CLOUD, np.zeros(120, int))
    with pytest.raises(ValueError, match="same point"):
        separation.intra_inter(np.ones((120, 2), np.float32), LABELS)
