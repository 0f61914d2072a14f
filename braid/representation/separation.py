"""How well a space separates classes, and whether it has collapsed.

    intra/inter      mean over clips of |x - c_y| / mean over pairs of classes of |c_a - c_b|
    silhouette       (b - a) / max(a, b) of each clip (Rousseeuw 1987); 0 where a class has one
    Davies-Bouldin   mean over classes of max_b (s_a + s_b) / |c_a - c_b| (Davies & Bouldin 1979)
    linear probe     a logistic regression fitted to train clips, its accuracy on the others
    stability        agreement of K-means with itself under another seed: ARI and NMI

c are the means of classes, s the mean distances to them. Lower is better in intra/inter and in
Davies-Bouldin, higher in the others.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    adjusted_rand_score,
    davies_bouldin_score,
    normalized_mutual_info_score,
    silhouette_samples,
)
from torch import Tensor

from braid.clustering.kmeans import class_means
from braid.common.rng import generator
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
    _, numbered = np.unique(labels, return_inverse=True)
    if numbered.max() == 0:
        raise ValueError("representation: expected two pseudo-classes or more, got one")
    x = torch.from_numpy(points)
    means, _ = class_means(x, torch.from_numpy(numbered), int(numbered.max()) + 1)
    between = float(pdist(means.numpy()).mean())
    if not between > 0:
        raise ValueError("representation: all class means are the same point")
    distances: Floats = (x - means[numbered]).norm(dim=1).double().numpy()
    return distances / between


def silhouettes(
    points: Points,  # [n, d]
    labels: Indices,  # [n]
) -> Floats:
    """The silhouette of each clip, [n]."""
    values: Floats = silhouette_samples(points, labels)
    return values.astype(np.float64)


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
