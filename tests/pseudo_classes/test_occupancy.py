import math

import numpy as np
import pytest
import torch

from braid.pseudo_classes.occupancy import (
    inertia_report,
    near_empty_below,
    occupancy_report,
    occupancy_table,
    recommended_classes,
)

FULL = 248_320


def report(*counts):
    found = torch.tensor(counts)
    return occupancy_report(found, found[found > 0])


def full(share, k=1024):
    """Counts of Wan-synth's clips in proportion to `share`, [K]."""
    counts = (FULL * share / share.sum()).round().long()
    counts[0] += FULL - counts.sum()
    return occupancy_report(counts, counts[counts > 0])


def test_figures_of_a_small_partition():
    found, used = torch.tensor([60, 30, 9, 1]), torch.tensor([60, 30, 10])
    shares = np.array([0.6, 0.3, 0.1])
    entropy = -(shares * np.log(shares)).sum()
    unmerged = -(np.array([0.6, 0.3, 0.09, 0.01]) * np.log([0.6, 0.3, 0.09, 0.01])).sum()
    assert occupancy_report(found, used) == {
        "train_clips": 100,
        "K": 4,
        "occupied": 3,
        "mean_occupancy": pytest.approx(100 / 3),
        "median_occupancy": 30.0,
        "p10": pytest.approx(14.0),
        "p90": pytest.approx(54.0),
        "max_share": pytest.approx(0.6),
        "entropy": pytest.approx(entropy),
        "perplexity": pytest.approx(math.exp(entropy)),
        "perplexity_share": pytest.approx(math.exp(entropy) / 4),
        "perplexity_share_unmerged": pytest.approx(math.exp(unmerged) / 4),
        "singleton_share": 0.25,
        "near_empty_below": 4,
        "near_empty_share": 0.25,
        "status": "near_empty_classes",
        "recommended_K": 2,
    }


def test_even_classes_are_ok():
    even = report(*[20] * 64)
    assert (even["status"], even["recommended_K"]) == ("ok", 64)
    assert even["perplexity"] == pytest.approx(64)
    assert report(7)["status"] == "ok"  # K = 1


@pytest.mark.parametrize(
    ("share", "status"),
    [
        (torch.ones(1024), "ok"),
        (torch.arange(1, 1025) ** -0.3, "ok"),
        (torch.arange(1, 1025) ** -0.8, "collapsed"),
        (torch.cat([torch.tensor([30.0]), torch.ones(1023)]), "dominated"),
        (torch.cat([torch.ones(900), torch.full((124,), 0.1)]), "near_empty_classes"),
        (torch.cat([torch.ones(930), torch.full((94,), 0.1)]), "ok"),
    ],
)
def test_the_full_run_falls_back_from_1024_to_512(share, status):
    found = full(share)
    assert found["status"] == status
    assert found["recommended_K"] == (1024 if status == "ok" else 512)


def test_bounds_know_neither_k_nor_the_clips():
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
    found = torch.tensor([50] * 10 + [1] * 6)
    merged = occupancy_report(found, torch.tensor([56] + [50] * 9))
    assert merged["near_empty_share"] == merged["singleton_share"] == 6 / 16
    assert merged["occupied"] == 10
    assert merged["p10"] == 50


def test_a_merge_of_most_classes_is_no_collapse_of_the_data():
    thin = torch.tensor([10] * 16)
    assert occupancy_report(thin, torch.tensor([23] * 6 + [22]))["status"] == "near_empty_classes"
    assert occupancy_report(thin, torch.tensor([20] * 8))["status"] == "ok"
    singles = torch.tensor([2] * 256 + [1] * 768)
    assert occupancy_report(singles, torch.tensor([5] * 256))["status"] == "near_empty_classes"


def test_table_counts_each_split():
    labels = torch.tensor([0, 1, 1, 0, 2, 2, 0])
    splits = {"train": np.array([0, 1, 2]), "val": np.array([3, 4]), "test": np.array([5, 6])}
    assert occupancy_table(labels, 3, splits) == [
        {"class": 0, "train": 1, "val": 1, "test": 1},
        {"class": 1, "train": 2, "val": 0, "test": 0},
        {"class": 2, "train": 0, "val": 1, "test": 1},
    ]


def test_inertias_are_those_of_a_loop_and_shuffled_labels_are_worse():
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    h = 4 * labels[:, None] + torch.randn(90, 5, generator=draw)
    splits = {"train": np.arange(60), "val": np.arange(60, 90)}
    found = inertia_report(h, labels, 3, splits, torch.Generator().manual_seed(1))
    means = [h[:60][labels[:60] == number].mean(0) for number in range(3)]
    gaps = torch.stack([(h[i] - means[labels[i]]).square().sum() for i in range(90)])
    assert found["inertia"] == pytest.approx(float(gaps[:60].mean()), rel=1e-5)
    assert found["inertia_val"] == pytest.approx(float(gaps[60:].mean()), rel=1e-5)
    spread = float((h[:60] - h[:60].mean(0)).square().sum(1).mean())
    assert 0.8 * spread < found["inertia_random_labels"] <= spread * 1.001
