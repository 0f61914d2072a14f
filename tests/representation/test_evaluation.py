from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from braid.common.rng import generator
from braid.representation.evaluation import Judgement, Space, interval, judge, standardised, status
from braid.representation.samples import Sample
from tests.clips.evaluated import CLOUD, CLUSTERS, K, N, sample

REQUIRED = {
    *("intra_inter", "silhouette", "davies_bouldin", "retrieval_at_10", "retrieval_chance"),
    *("silhouette_random", "retrieval_at_10_random", "linear_probe_random", "status"),
    *("usage_entropy", "max_share", "kernel_neighbours_0.05_p50", "kernel_mass_ratio_0.05"),
    *("stability_ari", "stability_nmi", "rank_me", "mean_cosine", "linear_probe_chance"),
}


def by_largest(x: Tensor, draw: torch.Generator) -> Tensor:
    return x.argmax(1)


def judged(points: np.ndarray, of: Sample | None = None, **other: Any) -> Judgement:
    settings = {
        "temperatures": (0.02, 0.05),
        "neighbours": (1, 5, 10),
        "cluster": by_largest,
        "resamples": 50,
        "seed": 0,
    }
    return judge(Space(points, points), of or sample(), **(settings | other))


def test_perfect_clusters_are_told_from_random_labels() -> None:
    figures = judged(CLUSTERS).figures
    assert set(figures) >= REQUIRED
    assert figures["status"] == "ok"
    assert figures["retrieval_at_10"] == figures["linear_probe"] == 1
    assert figures["family_agreement"] == 1
    assert figures["text_cosine"] == pytest.approx(1)
    assert figures["silhouette"] > 0.9 > 0.1 > figures["silhouette_random"]
    assert figures["retrieval_chance"] == pytest.approx(1 / K)
    assert figures["retrieval_at_10_random"] == pytest.approx(1 / K, abs=0.12)
    assert figures["keyframe_mse"] < 0.05 * figures["keyframe_mse_chance"]
    assert figures["kernel_mass_ratio_0.02"] > 100 > 1 > figures["kernel_mass_ratio_0.02_random"]


def test_a_cloud_is_no_better_than_random() -> None:
    figures = judged(CLOUD).figures
    assert figures["status"] == "no_better_than_random"
    assert figures["retrieval_at_10"] == pytest.approx(figures["retrieval_chance"], abs=0.1)
    assert figures["text_cosine_low"] <= figures["text_cosine"] <= figures["text_cosine_high"]


def test_a_line_and_an_overfull_class_are_collapsed() -> None:
    line = np.outer(np.linspace(-1, 1, N), np.ones(5)).astype(np.float32)
    assert judged(line).figures["status"] == "collapsed"
    uneven = np.where(np.arange(N) < 90, 0, np.arange(N) % K)
    assert judged(CLUSTERS, sample(uneven)).figures["status"] == "collapsed"


def test_same_seed_same_bytes_and_another_seed_others() -> None:
    first, again, other = (
        json.dumps(judged(CLOUD, seed=seed).figures, allow_nan=False) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_each_setting_shows_in_the_figures() -> None:
    figures = judged(CLOUD, neighbours=(3,), temperatures=(0.3,)).figures
    assert "retrieval_at_3" in figures
    assert "retrieval_at_10" not in figures
    assert "kernel_mass_ratio_0.3" in figures
    wide, narrow = judged(CLOUD, resamples=1).figures, judged(CLOUD, resamples=500).figures
    assert wide["silhouette_low"] == wide["silhouette_high"]
    assert narrow["silhouette_low"] < narrow["silhouette"] < narrow["silhouette_high"]


def test_retrieval_at_k_looks_at_the_k_nearest() -> None:
    found, of = judged(CLOUD), sample()
    same = of.labels[found.found] == of.labels[of.is_query][:, None]
    for k in (1, 5, 10):
        assert found.figures[f"retrieval_at_{k}"] == pytest.approx(same[:, :k].mean())


def test_what_a_judgement_hands_to_the_pictures() -> None:
    found, of = judged(CLUSTERS), sample()
    queries = int(of.is_query.sum())
    assert found.found.shape == (queries, 10)
    assert found.distances.shape == (queries, N - queries)
    assert found.distances.mean() == pytest.approx(1)
    assert not of.is_query[found.found].any()
    assert {name: len(each) for name, each in found.silhouettes.items()} == {
        "pseudo-classes": N,
        "random labels": N,
    }


def test_the_interval_covers_the_mean_as_a_normal_one_would() -> None:
    values = np.random.default_rng(0).normal(size=400)
    low, high = interval(values, 2000, generator(0))
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)
    assert interval(np.full(9, 0.5), 20, generator(0)) == (0.5, 0.5)


def test_status_wants_every_figure_above_random() -> None:
    names = ("silhouette", "linear_probe", "retrieval_at_10")
    good = {"rank_me": 9.0, "usage_share": 0.9}
    good |= {f"{name}_low": 0.2 for name in names} | {f"{name}_random": 0.1 for name in names}
    assert status(good, (1, 10)) == "ok"
    for name in names:
        assert status(good | {f"{name}_random": 0.2}, (1, 10)) == "no_better_than_random"
    assert status(good | {"rank_me": 1.5}, (1, 10)) == "collapsed"
    assert status(good | {"usage_share": 0.4}, (1, 10)) == "collapsed"


def test_standardised_features_have_unit_variance_and_keep_distances() -> None:
    features = (CLOUD * [1, 10, 100, 1, 1, 0] + 3).astype(np.float32)
    points = standardised(features, 6)
    unit = (features - features.mean(0))[:, :5] / features.std(0)[:5]
    first, second = np.linalg.norm(points[:9, None] - points[:9], axis=2), unit[:9, None] - unit[:9]
    np.testing.assert_allclose(first, np.linalg.norm(second, axis=2), rtol=1e-4)
    assert standardised(features, 2).shape == (N, 2)
    assert standardised(features, 99).shape == (N, 6)


def test_features_that_are_not_finite_are_named() -> None:
    broken = CLOUD.copy()
    broken[3, 2] = np.nan
    with pytest.raises(ValueError, match="expected finite values"):
        standardised(broken, 2)
    with pytest.raises(ValueError, match="expected finite values"):
        judge(
            Space(broken, CLOUD),
            sample(),
            temperatures=(0.1,),
            neighbours=(1,),
            cluster=by_largest,
            resamples=2,
            seed=0,
        )
