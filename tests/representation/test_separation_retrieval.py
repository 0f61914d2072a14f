from __future__ import annotations

import numpy as np
import pytest

from braid.representation.separation import (
    cosine_agreement,
    kernel_percentiles,
    label_agreement,
    label_chance,
    mass_ratios,
    nearest_clips,
    query_distances,
    squared_error,
)

RNG = np.random.default_rng(0)
LABELS = RNG.integers(4, size=30)
IS_QUERY = RNG.random(30) < 0.4
POINTS = RNG.normal(size=(30, 5)).astype(np.float32)


def pairs() -> list[tuple[int, int]]:
    queries, train = np.flatnonzero(IS_QUERY), np.flatnonzero(~IS_QUERY)
    return [(query, clip) for query in queries for clip in train]


def test_distances_are_euclidean_in_units_of_their_mean() -> None:
    distances = query_distances(POINTS, IS_QUERY)
    slow = np.array([np.linalg.norm(POINTS[a] - POINTS[b]) for a, b in pairs()])
    np.testing.assert_allclose(distances.ravel(), slow / slow.mean(), rtol=1e-5)
    far = query_distances(POINTS + np.float32(100), IS_QUERY)
    np.testing.assert_allclose(far, distances, rtol=1e-3)


def test_neighbors_are_the_nearest_train_clips_and_never_a_query() -> None:
    neighbors = nearest_clips(query_distances(POINTS, IS_QUERY), IS_QUERY, 3)
    train = np.flatnonzero(~IS_QUERY)
    for query, near in zip(np.flatnonzero(IS_QUERY), neighbors, strict=True):
        distances = np.linalg.norm(POINTS[train] - POINTS[query], axis=1)
        assert near.tolist() == train[np.argsort(distances)[:3]].tolist()


def test_ties_go_to_the_earlier_clip() -> None:
    is_query = np.arange(200) == 1
    distances = np.where(np.arange(199) == 50, 0.5, 1.0)[None]
    assert nearest_clips(distances, is_query, 5).tolist() == [[51, 0, 2, 3, 4]]


def test_agreement_counts_neighbors_with_the_label_of_the_query() -> None:
    labels = np.array([0, 0, 1, 1])
    is_query = np.array([True, False, False, False])
    assert label_agreement(labels, is_query, np.array([[1, 2, 3]])).tolist() == [1 / 3]


def test_chance_levels_are_means_over_all_pairs() -> None:
    everything = np.tile(np.flatnonzero(~IS_QUERY), (IS_QUERY.sum(), 1))
    same = np.mean([LABELS[a] == LABELS[b] for a, b in pairs()])
    assert label_chance(LABELS, IS_QUERY) == pytest.approx(same)
    assert label_agreement(LABELS, IS_QUERY, everything).mean() == pytest.approx(same)
    unit = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)
    by_query, chance = cosine_agreement(POINTS, IS_QUERY, everything)
    assert chance == pytest.approx(np.mean([unit[a] @ unit[b] for a, b in pairs()]), abs=1e-6)
    assert by_query.mean() == pytest.approx(chance, abs=1e-6)
    by_query, chance = squared_error(POINTS, IS_QUERY, everything)
    slow = np.mean([np.square(POINTS[a] - POINTS[b]).mean() for a, b in pairs()])
    assert chance == pytest.approx(slow, rel=1e-5)
    assert by_query.mean() == pytest.approx(chance, rel=1e-5)


def test_a_zero_vector_has_cosine_zero() -> None:
    vectors = np.array([[0, 0], [1, 2], [2, 4]], np.float32)
    is_query = np.array([True, True, False])
    by_query, _ = cosine_agreement(vectors, is_query, np.array([[2], [2]]))
    np.testing.assert_allclose(by_query, [0, 1], atol=1e-6)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="train and in val or test"):
        query_distances(POINTS, np.zeros(30, bool))
    with pytest.raises(ValueError, match="same point"):
        query_distances(np.ones((30, 2), np.float32), IS_QUERY)
    with pytest.raises(ValueError, match=r"clips\.representation\.neighbors is 25"):
        nearest_clips(query_distances(POINTS, IS_QUERY), IS_QUERY, 25)


# ---- Kernel ----------------------------------------------------------------------------------


def test_effective_neighbors_go_from_one_to_all() -> None:
    distances = np.array([[0.1, 1.0, 1.4, 1.5]])
    metrics = kernel_percentiles(distances, (0.01, 1e4))
    assert metrics["kernel_neighbors_0.01_p50"] == pytest.approx(1)
    assert metrics["kernel_neighbors_10000_p50"] == pytest.approx(4)


def test_effective_neighbors_of_two_unequal_weights() -> None:
    """Weights 3/4 and 1/4: one over 10/16."""
    metrics = kernel_percentiles(np.array([[0.0, 0.1 * np.log(3)]]), (0.1,))
    assert metrics["kernel_neighbors_0.1_p50"] == pytest.approx(1.6)


def test_percentiles_of_distances() -> None:
    distances = np.arange(101.0)[None]
    metrics = kernel_percentiles(distances, ())
    assert list(metrics.values()) == [10, 50, 90]


def test_mass_ratio_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    distances, same = rng.random((5, 7)), rng.random((5, 7)) < 0.3
    weights = np.exp(-distances / 0.2)
    weights /= weights.sum(1, keepdims=True)
    ratio = weights[same].sum() / weights[~same].sum()
    assert mass_ratios(distances, same, (0.2,)) == {"kernel_mass_ratio_0.2": pytest.approx(ratio)}


def test_mass_ratio_of_equal_distances_is_the_ratio_of_counts() -> None:
    same = np.array([[True, False, False, False], [True, True, False, False]])
    ratios = mass_ratios(np.ones((2, 4)), same, (0.05,))
    assert ratios["kernel_mass_ratio_0.05"] == pytest.approx(3 / 5)


def test_mass_ratio_is_finite_where_no_mass_is_on_other_classes() -> None:
    ratios = mass_ratios(np.array([[0.0, 2.0]]), np.array([[True, False]]), (0.001,))
    assert np.isfinite(ratios["kernel_mass_ratio_0.001"])
