from __future__ import annotations

import numpy as np
import pytest

from braid.representation.retrieval import (
    cosine_agreement,
    distances_to_gallery,
    label_agreement,
    label_chance,
    nearest_clips,
    squared_error,
)

RNG = np.random.default_rng(0)
LABELS = RNG.integers(4, size=30)
IS_QUERY = RNG.random(30) < 0.4
POINTS = RNG.normal(size=(30, 5)).astype(np.float32)


def pairs() -> list[tuple[int, int]]:
    queries, gallery = np.flatnonzero(IS_QUERY), np.flatnonzero(~IS_QUERY)
    return [(query, each) for query in queries for each in gallery]


def test_distances_are_euclidean_in_units_of_their_mean() -> None:
    found = distances_to_gallery(POINTS, IS_QUERY)
    slow = np.array([np.linalg.norm(POINTS[a] - POINTS[b]) for a, b in pairs()])
    np.testing.assert_allclose(found.ravel(), slow / slow.mean(), rtol=1e-5)
    far = distances_to_gallery(POINTS + np.float32(100), IS_QUERY)
    np.testing.assert_allclose(far, found, rtol=1e-3)


def test_neighbours_are_the_nearest_gallery_clips_and_never_a_query() -> None:
    found = nearest_clips(distances_to_gallery(POINTS, IS_QUERY), IS_QUERY, 3)
    gallery = np.flatnonzero(~IS_QUERY)
    for query, near in zip(np.flatnonzero(IS_QUERY), found, strict=True):
        distances = np.linalg.norm(POINTS[gallery] - POINTS[query], axis=1)
        assert near.tolist() == gallery[np.argsort(distances)[:3]].tolist()


def test_ties_go_to_the_earlier_clip() -> None:
    is_query = np.arange(200) == 1
    distances = np.where(np.arange(199) == 50, 0.5, 1.0)[None]
    assert nearest_clips(distances, is_query, 5).tolist() == [[51, 0, 2, 3, 4]]


def test_agreement_counts_neighbours_with_the_label_of_the_query() -> None:
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
        distances_to_gallery(POINTS, np.zeros(30, bool))
    with pytest.raises(ValueError, match="same point"):
        distances_to_gallery(np.ones((30, 2), np.float32), IS_QUERY)
    with pytest.raises(ValueError, match=r"representation\.neighbours asks for 25"):
        nearest_clips(distances_to_gallery(POINTS, IS_QUERY), IS_QUERY, 25)
