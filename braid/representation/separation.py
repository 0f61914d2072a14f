"""How well a space separates classes, what is near in it, and whether it has collapsed.

    intra/inter      mean over clips of |x - c_y| / mean over pairs of classes of |c_a - c_b|
    silhouette       (b - a) / max(a, b) of each clip (Rousseeuw 1987); 0 where a class has one
    Davies-Bouldin   mean over classes of max_b (s_a + s_b) / |c_a - c_b| (Davies & Bouldin 1979)
    linear probe     a logistic regression fitted to train clips, its accuracy on the others
    stability        agreement of K-means with itself under another seed: ARI and NMI

c are the means of classes, s the mean distances to them. Lower is better in intra/inter and in
Davies-Bouldin, higher in the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    adjusted_rand_score,
    davies_bouldin_score,
    normalized_mutual_info_score,
    pairwise_distances,
)
from torch import Tensor

from braid.common.rng import generator
from braid.metrics import distances
from braid.metrics.distances import entropy

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Points = NDArray[np.float32]
Cluster = Callable[[Tensor, torch.Generator], Tensor]  # [n, d] to labels [n]

PROBE_ITERATIONS = 1000  # many more than it takes on standardized features


def intra_inter(
    points: Points,  # [n, d]
    labels: Indices,  # [n]
) -> Floats:
    """Each clip's distance to its class mean over the mean distance between class means, [n].

    Raises:
        ValueError: fewer than two classes, or all class means are the same.
    """
    if len(np.unique(labels)) < 2:
        raise ValueError("representation: expected two pseudo-classes or more, got one")
    ratios = distances.intra_inter(points, labels)
    if not np.isfinite(ratios).all():
        raise ValueError("representation: all class means are the same point")
    return ratios


def davies_bouldin(
    points: Points,  # [n, d]
    labels: Indices,  # [n]
) -> float:
    """The Davies-Bouldin index."""
    return float(davies_bouldin_score(points, labels))


def probe(
    points: Points,  # [n, d]
    labels: Indices,  # [n]
    is_query: NDArray[np.bool_],  # [n] the test clips; it is fitted to the others
) -> Floats:
    """Whether a linear probe classifies each query correctly, [q] of 0 and 1."""
    scale = max(float(points[~is_query].std()), float(np.finfo(np.float32).tiny))
    classifier = LogisticRegression(max_iter=PROBE_ITERATIONS)
    classifier.fit(points[~is_query] / scale, labels[~is_query])
    predicted = classifier.predict(points[is_query] / scale)
    correct: Floats = (predicted == labels[is_query]).astype(float)
    return correct


def probe_chance(
    labels: Indices,  # [n]
    is_query: NDArray[np.bool_],  # [n]
) -> float:
    """The accuracy of the constant prediction of the most frequent class of the train clips."""
    return float((labels[is_query] == np.bincount(labels[~is_query]).argmax()).mean())


def stability(
    points: Points,  # [n, d]
    cluster: Cluster,
    seed: int,
) -> dict[str, float]:
    """How far two clusterings agree, beside one of them and the other in random order."""
    x = torch.from_numpy(points)
    first, second = (
        cluster(x, generator(seed, "stability", name)).numpy() for name in ("first", "second")
    )
    order = torch.randperm(len(second), generator=generator(seed, "stability", "random"))
    shuffled = second[order.numpy()]
    return {
        "stability_ari": float(adjusted_rand_score(first, second)),
        "stability_nmi": float(normalized_mutual_info_score(first, second)),
        "stability_ari_random": float(adjusted_rand_score(first, shuffled)),
        "stability_nmi_random": float(normalized_mutual_info_score(first, shuffled)),
    }


def mean_cosine(
    features: Points,  # [n, d]
) -> float:
    """The mean cosine of two different clips' features: 1 in a narrow cone, about 0 all around."""
    lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    unit = features / np.maximum(lengths, np.finfo(np.float64).tiny)
    count = len(unit)
    squares = np.square(unit).sum()
    return float((np.square(unit.sum(axis=0)).sum() - squares) / (count * (count - 1)))


def usage(
    counts: Indices,  # [K] clips in each class
) -> dict[str, float]:
    """How evenly clips are spread over classes; the fraction is perplexity over K, at most 1."""
    nats = entropy(counts)
    return {
        "usage_entropy": nats,
        "usage_perplexity": float(np.exp(nats)),
        "usage_fraction": float(np.exp(nats) / len(counts)),
        "max_fraction": float(counts.max() / counts.sum()),
    }


# ---- Nearest-neighbor retrieval ------------------------------------------------------------------
# Do the clips near a held-out clip agree with it in class and content? Queries are held-out clips,
# what they retrieve are train clips, so no clip retrieves itself. Every metric has an exact chance
# level: the mean over all pairs of a query and a train clip, in closed form. Shapes: n clips, q of
# them queries, t = n - q train clips.


def query_distances(
    points: NDArray[np.float32],  # [n, d]
    is_query: NDArray[np.bool_],  # [n]
) -> Floats:
    """Euclidean distances of queries to train clips, [q, t], in units of their mean.

    Raises:
        ValueError: no queries, no train clips, or all points are the same.
    """
    if is_query.all() or not is_query.any():
        raise ValueError("representation: expected clips both in train and in val or test")
    centered = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    distances: Floats = pairwise_distances(centered[is_query], centered[~is_query])
    mean = distances.mean()
    if not mean > 0:
        raise ValueError("representation: all clips are the same point, expected distances above 0")
    return distances / mean


def nearest_clips(
    distances: Floats,  # [q, t]
    is_query: NDArray[np.bool_],  # [n]
    count: int,
) -> Indices:
    """Which of the n clips are nearest to each query, nearest first, [q, count]; ties in order.

    Raises:
        ValueError: there are fewer than `count` train clips.
    """
    train = np.flatnonzero(~is_query)
    if count > len(train):
        raise ValueError(
            f"clips.representation.neighbors is {count}, the sample has {len(train)} train clips"
        )
    return train[distances.argsort(axis=1, kind="stable")[:, :count]]


def label_agreement(
    labels: Indices,  # [n]
    is_query: NDArray[np.bool_],  # [n]
    neighbors: Indices,  # [q, k]
) -> Floats:
    """The fraction of each query's neighbors with the label of the query, [q]."""
    fractions: Floats = (labels[neighbors] == labels[is_query][:, None]).mean(axis=1)
    return fractions


def label_chance(
    labels: Indices,  # [n]
    is_query: NDArray[np.bool_],  # [n]
) -> float:
    """`label_agreement` of random neighbors: the sum of p_query(c) p_train(c) over labels c."""
    count = int(labels.max()) + 1
    query, train = (
        np.bincount(labels[part], minlength=count) / part.sum() for part in (is_query, ~is_query)
    )
    return float(query @ train)


def cosine_agreement(
    vectors: NDArray[np.float32],  # [n, D]
    is_query: NDArray[np.bool_],  # [n]
    neighbors: Indices,  # [q, k]
) -> tuple[Floats, float]:
    """Mean cosine of queries with their neighbors, [q], and of all pairs; 0 with a zero vector."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    queries, train = unit[is_query], unit[~is_query]
    by_query = (queries * unit[neighbors].mean(axis=1)).sum(axis=1, dtype=np.float64)
    return by_query, float(queries.mean(0) @ train.mean(0))


def squared_error(
    vectors: NDArray[np.float32],  # [n, D]
    is_query: NDArray[np.bool_],  # [n]
    neighbors: Indices,  # [q, k]
) -> tuple[Floats, float]:
    """Mean squared difference of each query and its neighbors, [q], and of all pairs."""
    pairs = zip(vectors[is_query], neighbors, strict=True)
    by_query = np.array([np.square(vectors[near] - query).mean() for query, near in pairs])
    queries, train = (vectors[part].astype(np.float64) for part in (is_query, ~is_query))
    squares = np.square(queries).mean() + np.square(train).mean()
    return by_query, float(squares - 2 * (queries.mean(0) * train.mean(0)).mean())


# ---- The drift's kernel in a space: its distances, effective neighbors and mass per class --------
# For a query i, train clips j at distances d_ij in mean distances, and a temperature tau:
#
#     w_ij = softmax_j(-d_ij / tau),   effective neighbors = 1 / sum_j w_ij^2,
#     mass ratio = sum of w_ij with j of i's class / sum of the others, both over all queries.
#
# With one effective neighbor the kernel is a nearest-neighbor rule; with all of them it does not
# depend on the query. These are metrics of real clips alone, before any training; those of a
# training are in its statistics.

PERCENTILES = (10, 50, 90)
_SMALLEST = float(np.finfo(np.float64).tiny)


def kernel_percentiles(
    distances: Floats,  # [q, t] in mean distances
    temperatures: Sequence[float],
) -> dict[str, float]:
    """Percentiles of distances, and of effective neighbors at each temperature."""
    metrics = _percentiles("kernel_distance", distances)
    for tau in temperatures:
        weights = softmax(-distances / tau, axis=1)
        effective = 1 / np.square(weights).sum(axis=1)
        metrics |= _percentiles(f"kernel_neighbors_{tau:g}", effective)
    return metrics


def mass_ratios(
    distances: Floats,  # [q, t] in mean distances
    same: NDArray[np.bool_],  # [q, t] of one class
    temperatures: Sequence[float],
) -> dict[str, float]:
    """Kernel mass on the same class over that on the others, at each temperature."""
    ratios = {}
    for tau in temperatures:
        weights = softmax(-distances / tau, axis=1)
        positive, negative = weights[same].sum(), weights[~same].sum()
        ratios[f"kernel_mass_ratio_{tau:g}"] = float(positive / max(negative, _SMALLEST))
    return ratios


def _percentiles(name: str, values: Floats) -> dict[str, float]:
    at = np.percentile(values, PERCENTILES)
    return {f"{name}_p{p}": float(value) for p, value in zip(PERCENTILES, at, strict=True)}
