import math

import numpy as np
import pytest
import torch

from braid.pseudo_classes.occupancy import (
    inertia_metrics,
    near_empty_below,
    occupancy_metrics,
    occupancy_table,
    recommended_classes,
)
from braid.pseudo_classes.quantizer import PseudoClasses

FULL = 248_320


def metrics(*counts):
    clusters = torch.tensor(counts)
    return occupancy_metrics(clusters, clusters[clusters > 0])


def full(weights):
    """The metrics of Wan-synth's clips in proportion to `weights`, [K]."""
    counts = (FULL * weights / weights.sum()).round().long()
    counts[0] += FULL - counts.sum()
    return occupancy_metrics(counts, counts[counts > 0])


def test_metrics_of_a_small_partition():
    clusters, classes = torch.tensor([60, 30, 9, 1]), torch.tensor([60, 30, 10])
    fractions = np.array([0.6, 0.3, 0.1])
    entropy = -(fractions * np.log(fractions)).sum()
    unmerged = -(np.array([0.6, 0.3, 0.09, 0.01]) * np.log([0.6, 0.3, 0.09, 0.01])).sum()
    assert occupancy_metrics(clusters, classes) == {
        "train_clips": 100,
        "K": 4,
        "classes": 3,
        "mean_occupancy": pytest.approx(100 / 3),
        "median_occupancy": 30.0,
        "p10": pytest.approx(14.0),
        "p90": pytest.approx(54.0),
        "max_fraction": pytest.approx(0.6),
        "entropy": pytest.approx(entropy),
        "perplexity": pytest.approx(math.exp(entropy)),
        "perplexity_fraction": pytest.approx(math.exp(entropy) / 4),
        "perplexity_fraction_unmerged": pytest.approx(math.exp(unmerged) / 4),
        "singleton_fraction": 0.25,
        "near_empty_below": 4,
        "near_empty_fraction": 0.25,
        "status": "near_empty_classes",
        "recommended_K": 2,
    }


def test_even_classes_are_ok():
    even = metrics(*[20] * 64)
    assert (even["status"], even["recommended_K"]) == ("ok", 64)
    assert even["perplexity"] == pytest.approx(64)
    assert metrics(7)["status"] == "ok"  # K = 1


@pytest.mark.parametrize(
    ("weights", "status"),
    [
        (torch.ones(1024), "ok"),
        (torch.arange(1, 1025) ** -0.3, "ok"),
        (torch.arange(1, 1025) ** -0.8, "collapsed"),
        (torch.cat([torch.tensor([30.0]), torch.ones(1023)]), "dominated"),
        (torch.cat([torch.ones(900), torch.full((124,), 0.1)]), "near_empty_classes"),
        (torch.cat([torch.ones(930), torch.full((94,), 0.1)]), "ok"),
    ],
)
def test_the_full_run_falls_back_from_1024_to_512(weights, status):
    wan = full(weights)
    assert wan["status"] == status
    assert wan["recommended_K"] == (1024 if status == "ok" else 512)


def test_bounds_depend_on_neither_k_nor_the_clips():
    assert near_empty_below(FULL, 1024) == 31
    assert near_empty_below(FULL, 512) == 61
    assert near_empty_below(1280, 64) == 4
    assert near_empty_below(1280, 32) == 5
    assert near_empty_below(1280, 1024) == 4


def test_recommendation_halves_until_classes_have_clips():
    assert recommended_classes("near_empty_classes", 512, 1280) == 64
    assert recommended_classes("near_empty_classes", 1024, 1280) == 64
    assert recommended_classes("collapsed", 64, 1280) == 32
    assert recommended_classes("collapsed", 1, 10) == 1
    assert recommended_classes("ok", 96, 100) == 96


def test_a_merge_does_not_hide_near_empty_classes():
    clusters = torch.tensor([50] * 10 + [1] * 6)
    merged = occupancy_metrics(clusters, torch.tensor([56] + [50] * 9))
    assert merged["near_empty_fraction"] == merged["singleton_fraction"] == 6 / 16
    assert merged["classes"] == 10
    assert merged["p10"] == 50


def test_a_merge_of_most_classes_is_no_collapse_of_the_data():
    thin = torch.tensor([10] * 16)
    assert occupancy_metrics(thin, torch.tensor([23] * 6 + [22]))["status"] == "near_empty_classes"
    assert occupancy_metrics(thin, torch.tensor([20] * 8))["status"] == "ok"
    singles = torch.tensor([2] * 256 + [1] * 768)
    assert occupancy_metrics(singles, torch.tensor([5] * 256))["status"] == "near_empty_classes"


def test_table_counts_each_split():
    labels = torch.tensor([0, 1, 1, 0, 2, 2, 0])
    splits = {"train": np.array([0, 1, 2]), "val": np.array([3, 4]), "test": np.array([5, 6])}
    assert occupancy_table(PseudoClasses(labels, 3, torch.zeros(7, 1), splits)) == [
        {"class": 0, "train": 1, "val": 1, "test": 1},
        {"class": 1, "train": 2, "val": 0, "test": 0},
        {"class": 2, "train": 0, "val": 1, "test": 1},
    ]


def test_inertias_are_those_of_a_loop_and_shuffled_labels_are_worse():
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    h = 4 * labels[:, None] + torch.randn(90, 5, generator=draw)
    splits = {"train": np.arange(60), "val": np.arange(60, 90)}
    pseudo = PseudoClasses(labels, 3, h, splits)
    inertia = inertia_metrics(pseudo, torch.Generator().manual_seed(1))
    means = [h[:60][labels[:60] == number].mean(0) for number in range(3)]
    gaps = torch.stack([(h[i] - means[labels[i]]).square().sum() for i in range(90)])
    assert inertia["inertia"] == pytest.approx(float(gaps[:60].mean()), rel=1e-5)
    assert inertia["inertia_val"] == pytest.approx(float(gaps[60:].mean()), rel=1e-5)
    spread = float((h[:60] - h[:60].mean(0)).square().sum(1).mean())
    assert 0.8 * spread < inertia["inertia_random_labels"] <= spread * 1.001
