import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as ScikitLearn

from braid.clustering.kmeans import _lloyd, class_means, kmeans, nearest
from braid.common.config import KMeansConfig

SETTINGS = {
    "seeding_rows": 4096,
    "projection": 16,
    "candidates": 4,
    "projected_iterations": 10,
    "exact_iterations": 3,
}


def blobs(seed, n=2000, d=24, modes=60):
    draw = torch.Generator().manual_seed(seed)
    centers = torch.randn(modes, d, generator=draw)
    mode = torch.randint(modes, (n,), generator=draw)
    return centers[mode] + 0.4 * torch.randn(n, d, generator=draw)


def cluster(x, k, seed=0, **changed):
    config = KMeansConfig(**SETTINGS | changed)
    return kmeans(x, k, config, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [20, 60, 200])
def test_inertia_is_close_to_that_of_scikit_learn(k):
    x = blobs(0)
    theirs = np.mean([ScikitLearn(k, n_init=1, random_state=s).fit(x).inertia_ for s in range(3)])
    ours = np.mean([cluster(x, k, seed).inertia for seed in range(3)])
    assert ours <= 1.03 * theirs


@pytest.mark.parametrize("changed", [{}, {"projection": 64}, {"projected_iterations": 0}])
def test_rows_belong_to_their_nearest_centroid_and_inertia_is_exact(changed):
    x = blobs(1)
    clusters = cluster(x, 50, **changed)
    distances = torch.cdist(x.double(), clusters.centroids.double()).square()
    assert torch.equal(clusters.labels, distances.argmin(1))
    assert clusters.inertia == pytest.approx(float(distances.min(1).values.sum()), rel=1e-5)


def test_same_generator_same_bytes():
    x = blobs(2)
    first, second, other = cluster(x, 40), cluster(x, 40), cluster(x, 40, seed=1)
    assert torch.equal(first.centroids, second.centroids)
    assert torch.equal(first.labels, second.labels)
    assert not torch.equal(first.labels, other.labels)


@pytest.mark.parametrize("k", [1, 300, 512, 600])
def test_no_class_is_empty(k):
    x = blobs(3, n=600)
    assert len(torch.unique(cluster(x, k, seeding_rows=8).labels)) == k


@pytest.mark.parametrize("step", ["_seeds", "_lloyd"])
def test_classes_left_empty_by_any_step_are_filled(monkeypatch, step):
    x = blobs(4, n=300)
    monkeypatch.setattr(f"braid.clustering.kmeans.{step}", lambda x, *_: x[:1].repeat(50, 1))
    assert len(torch.unique(cluster(x, 50).labels)) == 50


def test_an_empty_class_moves_to_the_farthest_row():
    x = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    same = torch.zeros(2, 1)
    assert _lloyd(x, same, 1).tolist() == [[3.0], [9.0]]
    assert _lloyd(x, same, 2).tolist() == [[1.0], [9.0]]


def test_as_many_classes_as_rows_is_exact():
    x = blobs(5, n=64)
    assert cluster(x, 64).inertia == pytest.approx(0, abs=1e-6)


def test_a_far_origin_changes_nothing():
    x = blobs(6)
    moved = cluster(x + 1000, 60)
    assert moved.inertia == pytest.approx(cluster(x, 60).inertia, rel=1e-2)


def test_more_iterations_find_less_inertia():
    x = blobs(7)
    few = cluster(x, 60, projected_iterations=0, exact_iterations=1).inertia
    assert cluster(x, 60, projected_iterations=0, exact_iterations=8).inertia < few
    assert cluster(x, 60, projected_iterations=8, exact_iterations=1).inertia < few


def test_seeding_decides():
    x = blobs(8, modes=200)
    alone = {"projected_iterations": 0, "exact_iterations": 1}

    def mean(**changed):
        return np.mean([cluster(x, 200, seed, **alone | changed).inertia for seed in range(4)])

    assert mean(candidates=4) < mean(candidates=1)
    assert mean(seeding_rows=2000) < mean(seeding_rows=250)
    assert mean(projection=24) < mean(projection=2)


def test_ties_go_to_the_lowest_class():
    labels, distances = nearest(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [-1.0], [1.0]]))
    assert labels.tolist() == [0, 0]
    assert distances.tolist() == [1.0, 0.0]


def test_class_means_are_those_of_a_loop():
    x, labels = blobs(9, n=50), torch.arange(50) % 7
    means, counts = class_means(x, labels, 9)
    for number in range(7):
        torch.testing.assert_close(means[number], x[labels == number].mean(0))
    assert means[7:].eq(0).all()
    assert counts.tolist() == [8, 7, 7, 7, 7, 7, 7, 0, 0]


def test_bad_input_is_named():
    x = blobs(10, n=20)
    with pytest.raises(ValueError, match=r"drift.K is 21, expected 1 to 20, .* train samples"):
        cluster(x, 21)
    with pytest.raises(ValueError, match="finite"):
        cluster(x.index_fill(0, torch.tensor(3), float("nan")), 4)
    with pytest.raises(ValueError, match=r"drift.K is 5, but only 3 train samples differ"):
        cluster(x[:3].repeat(5, 1), 5)
