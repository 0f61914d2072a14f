"""K-means for many rows and many classes, where the seeding decides the quality.

Greedy k-means++ (Arthur & Vassilvitskii 2007, several candidates a step) finds far better seeds
than random rows, but in full it costs more than all of Lloyd's iterations. Here it runs on a
subsample in a PCA projection; most of Lloyd's iterations run in the projection as well, and a few
in all dimensions finish. Distances are |x|^2 - 2 x.c + |c|^2, whose cancellation is kept small by
centering. Ties go to the lowest class; the same generator gives the same bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from sklearn.cluster import kmeans_plusplus
from torch import Tensor

from braid.common.config import KMeansConfig

_ROWS = 8192  # of distances in memory at a time
_SAME = 1e-6  # squared distance, relative to the largest square, of rows that are the same


class KMeans(NamedTuple):
    """A partition of n rows; each row belongs to its nearest centroid, and no class is empty."""

    centroids: Tensor  # [K, d] float32
    labels: Tensor  # [n] int64
    inertia: float  # sum of squared distances of rows to their centroids


class _TooFewDiffer(Exception):
    """Rows are the same so often that a class stays empty; how many classes are in use."""


def kmeans(
    x: Tensor,  # [n, d] float32
    k: int,
    config: KMeansConfig,
    generator: torch.Generator,
    *,
    key: str = "drift.K",
) -> KMeans:
    """Cluster the rows of x into k classes; a projection to more than d dimensions is one to d.

    Args:
        key: the param that k is, for messages.

    Raises:
        ValueError: more classes than rows, or than different rows; values that are not finite.
    """
    if not 1 <= k <= len(x):
        raise ValueError(f"{key} is {k}, expected 1 to {len(x)}, the number of train samples")
    if not x.isfinite().all():
        raise ValueError("K-means: expected finite values")
    center = x.mean(0)
    try:
        clusters = _clustered(x - center, k, config, generator)
    except _TooFewDiffer as error:
        raise ValueError(f"{key} is {k}, but only {error} train samples differ") from None
    return clusters._replace(centroids=clusters.centroids + center)


def _clustered(x: Tensor, k: int, config: KMeansConfig, generator: torch.Generator) -> KMeans:
    projected = x @ _principal_axes(x, config.projection)
    centroids = _seeds(projected, k, max(config.seeding_rows, k), config.candidates, generator)
    centroids = _lloyd(projected, centroids, config.projected_iterations)
    labels, distances = nearest(projected, centroids)
    centroids = _lloyd(x, _means(x, labels, distances, k), config.exact_iterations)
    labels, distances = nearest(x, centroids)
    while len(torch.unique(labels)) < k:
        centroids = _without_empty(x, centroids, labels, distances)
        labels, distances = nearest(x, centroids)
    return KMeans(centroids, labels, float(distances.sum(dtype=torch.float64)))


def nearest(
    x: Tensor,  # [n, d]
    centroids: Tensor,  # [K, d]
) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each row, [n] int64, and its squared distance, [n] float32."""
    offset = centroids.square().sum(1)
    labels, distances = [], []
    for rows in x.split(_ROWS):
        scores = torch.addmm(offset, rows, centroids.T, alpha=-2)
        closest = torch.from_numpy(scores.numpy().argmin(1))  # NumPy's is several times faster
        labels.append(closest)
        distances.append((rows - centroids[closest]).square().sum(1))
    return torch.cat(labels), torch.cat(distances)


def class_means(
    x: Tensor,  # [n, d]
    labels: Tensor,  # [n]
    k: int,
) -> tuple[Tensor, Tensor]:
    """The mean of each class, [K, d] (zero where it is empty), and its size, [K]."""
    n = len(x)
    member = csr_array((np.ones(n, np.float32), (labels.numpy(), np.arange(n))), shape=(k, n))
    counts = torch.bincount(labels, minlength=k)
    return torch.from_numpy(member @ x.numpy()) / counts.clamp_min(1)[:, None], counts


def _principal_axes(x: Tensor, count: int) -> Tensor:
    """[d, min(count, d)] axes of the largest variance of centered rows."""
    return torch.linalg.eigh(x.T @ x).eigenvectors[:, -count:]


def _seeds(x: Tensor, k: int, rows: int, candidates: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ on a subsample."""
    chosen = torch.randperm(len(x), generator=generator)[:rows]
    state = int(torch.randint(2**31, (), generator=generator))
    centroids, _ = kmeans_plusplus(
        x[chosen].double().numpy(), k, n_local_trials=candidates, random_state=state
    )
    return torch.from_numpy(centroids).float()


def _lloyd(x: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        centroids = _means(x, *nearest(x, centroids), len(centroids))
    return centroids


def _means(x: Tensor, labels: Tensor, distances: Tensor, k: int) -> Tensor:
    means, counts = class_means(x, labels, k)
    if (counts > 0).all():
        return means
    return _without_empty(x, means, labels, distances)


def _without_empty(x: Tensor, centroids: Tensor, labels: Tensor, distances: Tensor) -> Tensor:
    """Move the centroids of empty classes to the rows that are farthest from theirs."""
    empty = (torch.bincount(labels, minlength=len(centroids)) == 0).nonzero().flatten()
    far = distances.argsort(descending=True, stable=True)[: len(empty)]
    if distances[far[0]] <= _SAME * x.square().sum(1).max():
        raise _TooFewDiffer(len(centroids) - len(empty))
    return centroids.index_copy(0, empty, x[far])
