from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from braid.common.rng import generator
from braid.representation.evaluation import (
    Evaluation,
    Space,
    interval,
    make_spaces,
    standardized,
    status,
)
from tests.representation.clustered_sample import CLOUD, CLUSTERS, K, N, evaluated, sample

REQUIRED = {
    *("intra_inter", "silhouette", "davies_bouldin", "retrieval_at_10", "retrieval_chance"),
    *("silhouette_random", "retrieval_at_10_random", "linear_probe_random", "status"),
    *("usage_entropy", "max_fraction", "kernel_neighbors_0.05_p50", "kernel_mass_ratio_0.05"),
    *("stability_ari", "stability_nmi", "rank", "mean_cosine", "linear_probe_chance"),
}


def evaluation(points: np.ndarray, **changed: Any) -> Evaluation:
    return evaluated(Space(points, points), **changed)


def test_perfect_clusters_differ_from_random_labels() -> None:
    metrics = evaluation(CLUSTERS).metrics
    assert set(metrics) >= REQUIRED
    assert metrics["status"] == "ok"
    assert metrics["retrieval_at_10"] == metrics["linear_probe"] == 1
    assert metrics["family_agreement"] == 1
    assert metrics["text_cosine"] == pytest.approx(1)
    assert metrics["silhouette"] > 0.9 > 0.1 > metrics["silhouette_random"]
    assert metrics["retrieval_chance"] == pytest.approx(1 / K)
    assert metrics["retrieval_at_10_random"] == pytest.approx(1 / K, abs=0.12)
    assert metrics["keyframe_mse"] < 0.05 * metrics["keyframe_mse_chance"]
    assert metrics["kernel_mass_ratio_0.02"] > 100 > 1 > metrics["kernel_mass_ratio_0.02_random"]


def test_a_cloud_is_no_better_than_random() -> None:
    metrics = evaluation(CLOUD).metrics
    assert metrics["status"] == "no_better_than_random"
    assert metrics["retrieval_at_10"] == pytest.approx(metrics["retrieval_chance"], abs=0.1)
    assert metrics["text_cosine_low"] <= metrics["text_cosine"] <= metrics["text_cosine_high"]


def test_a_line_and_an_overfull_class_are_collapsed() -> None:
    line = np.outer(np.linspace(-1, 1, N), np.ones(5)).astype(np.float32)
    assert evaluation(line).metrics["status"] == "collapsed"
    uneven = np.where(np.arange(N) < 90, 0, np.arange(N) % K)
    assert evaluation(CLUSTERS, of=sample(uneven)).metrics["status"] == "collapsed"


def test_same_seed_same_bytes_and_another_seed_others() -> None:
    first, again, other = (
        json.dumps(evaluation(CLOUD, seed=seed).metrics, allow_nan=False) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_each_setting_changes_the_metrics() -> None:
    metrics = evaluation(CLOUD, neighbors=(3,), temperatures=(0.3,)).metrics
    assert "retrieval_at_3" in metrics
    assert "retrieval_at_10" not in metrics
    assert "kernel_mass_ratio_0.3" in metrics
    wide, narrow = evaluation(CLOUD, bootstrap=1).metrics, evaluation(CLOUD, bootstrap=500).metrics
    assert wide["silhouette_low"] == wide["silhouette_high"]
    assert narrow["silhouette_low"] < narrow["silhouette"] < narrow["silhouette_high"]


def test_retrieval_at_k_looks_at_the_k_nearest() -> None:
    space, of = evaluation(CLOUD), sample()
    same = of.labels[space.neighbors] == of.labels[of.is_query][:, None]
    for k in (1, 5, 10):
        assert space.metrics[f"retrieval_at_{k}"] == pytest.approx(same[:, :k].mean())


def test_what_the_figures_need() -> None:
    space, of = evaluation(CLUSTERS), sample()
    queries = int(of.is_query.sum())
    assert space.neighbors.shape == (queries, 10)
    assert space.distances.shape == (queries, N - queries)
    assert space.distances.mean() == pytest.approx(1)
    assert not of.is_query[space.neighbors].any()
    assert {name: len(values) for name, values in space.silhouettes.items()} == {
        "classes": N,
        "random labels": N,
    }


def test_the_headline_is_retrieval_at_the_most_neighbors() -> None:
    space = evaluation(CLOUD, neighbors=(3, 7))
    assert space.headline == {
        "silhouette": space.metrics["silhouette"],
        "retrieval": space.metrics["retrieval_at_7"],
        "linear_probe": space.metrics["linear_probe"],
        "status": "no_better_than_random",
    }


def test_the_interval_covers_the_mean_as_a_normal_one_would() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = interval(values, 2000, generator(0))
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)
    assert interval(np.full(9, 0.5), 20, generator(0)) == (0.5, 0.5)


def test_status_needs_every_metric_above_random() -> None:
    names = ("silhouette", "linear_probe", "retrieval_at_10")
    good = {"rank": 9.0, "usage_fraction": 0.9}
    good |= {f"{name}_low": 0.2 for name in names} | {f"{name}_random": 0.1 for name in names}
    assert status(good, (1, 10)) == "ok"
    for name in names:
        assert status(good | {f"{name}_random": 0.2}, (1, 10)) == "no_better_than_random"
    assert status(good | {"rank": 1.5}, (1, 10)) == "collapsed"
    assert status(good | {"usage_fraction": 0.4}, (1, 10)) == "collapsed"


def test_standardized_features_have_unit_variance_and_keep_distances() -> None:
    features = (CLOUD * [1, 10, 100, 1, 1, 0] + 3).astype(np.float32)
    points = standardized(features, 6)
    unit = (features - features.mean(0))[:, :5] / features.std(0)[:5]
    first, second = np.linalg.norm(points[:9, None] - points[:9], axis=2), unit[:9, None] - unit[:9]
    np.testing.assert_allclose(first, np.linalg.norm(second, axis=2), rtol=1e-4)
    assert standardized(features, 2).shape == (N, 2)
    assert standardized(features, 99).shape == (N, 6)


def test_features_that_are_not_finite_are_named() -> None:
    broken = CLOUD.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="expected finite values"):
        standardized(broken, 2)
    with pytest.raises(ValueError, match="expected finite values"):
        evaluated(Space(broken, CLOUD))


def test_the_space_of_the_quantizer_stays_as_it_is() -> None:
    spaces = make_spaces(CLUSTERS, {"mae": CLOUD}, 3)
    assert spaces["quantizer"].points is spaces["quantizer"].features is CLUSTERS
    assert spaces["mae"].features is CLOUD
    np.testing.assert_array_equal(spaces["mae"].points, standardized(CLOUD, 3))
