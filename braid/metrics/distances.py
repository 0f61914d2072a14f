"""How far two sets of samples are apart, how many dimensions one uses, and fixed feature spaces.

    frechet_distance   Heusel et al. 2017, equation 6: of two Gaussians fitted to the sets
    energy_distance    Szekely and Rizzo 2013: zero only where the distributions are equal
    energy_score       Gneiting and Raftery 2007: of samples given conditions, least where right
    manifold           precision and recall (Kynkaanniemi et al. 2019), density and coverage
                       (Naeem et al. 2020): balls around samples that reach their k-th neighbor
    variance_ratio     variance within classes over that of real samples: 0 means one a class
    intra_inter        distance to the mean of the class over that between the means of classes
    silhouettes        Rousseeuw 1987: (b - a) / max(a, b); 0 where a class has one sample
    effective_rank     RankMe (Garrido et al. 2023): exp of the entropy of the singular values

The first three are in float64 on the CPU. A Frechet distance falls with the number of samples:
compare only sets of one size, and quote what real samples score against others beside it.

`RandomConvolutions` is a network with random weights of a fixed seed: as a feature extractor for
Frechet distances it ranks generators much as trained ones do (Naeem et al. 2020, section 5.2), and
it takes latents of any size. `PcaSpace` is linear and of the whole clip at once.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_samples
from torch import Tensor, nn
from torch.nn import functional

from braid.common.rng import generator

RECALL = 0.1  # less is collapsed
VARIANCE = (0.4, 1.3)  # ratio of within-class variances that is neither collapsed nor scattered

Points = NDArray[np.float64]


def frechet_distance(real: Points, generated: Points) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of sets [n, d] and [m, d]."""
    difference = real.mean(axis=0) - generated.mean(axis=0)
    first, second = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    values, vectors = np.linalg.eigh(np.atleast_2d(first))
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    # tr (C1 C2)^(1/2) from a symmetric matrix of the same eigenvalues
    cross = np.linalg.eigvalsh(root @ np.atleast_2d(second) @ root).clip(min=0)
    spread = np.trace(np.atleast_2d(first)) + np.trace(np.atleast_2d(second))
    return float(difference @ difference + spread - 2 * np.sqrt(cross).sum())


def energy_distance(
    real: Points,
    generated: Points,
    matched: bool = False,  # the k-th generated sample was made from the k-th real one
) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, pairs of independent samples: unbiased, may be below 0.

    A sample and what was made from it are no such pair, as a sample and itself are none.
    """
    between = _mean_of_others(real, generated) if matched else cdist(real, generated).mean()
    return float(2 * between - sum(_mean_of_others(points, points) for points in (real, generated)))


def energy_score(
    samples: Tensor,  # [S, n, ...] of each of n conditions
    truth: Tensor,  # [n, ...]
) -> float:
    """E|x - y| - E|x - x'| / 2 over pairs of different samples, the mean over conditions."""
    count = len(samples)
    error = (samples - truth).flatten(2).norm(dim=2).mean()
    apart = (samples[:, None] - samples[None]).flatten(3).norm(dim=3).sum((0, 1)).mean()
    return float(error - apart / (2 * count * (count - 1)))


def _mean_of_others(first: Points, second: Points) -> float:
    """The mean distance of a sample to those of the other set, but the one in its own place."""
    distances, count = cdist(first, second), len(first)
    return float((distances.sum() - distances.trace()) / (count * (count - 1)))


def manifold(real: Points, generated: Points, neighbors: int) -> dict[str, float]:
    """`precision`, `recall`, `density` and `coverage` of generated samples.

    Raises:
        ValueError: a set has no more samples than `neighbors`.
    """
    for name, points in (("real", real), ("generated", generated)):
        if len(points) <= neighbors:
            raise ValueError(f"{len(points)} {name} samples, expected more than {neighbors}")
    between = cdist(real, generated)
    real_radius = _radius(real, neighbors)[:, None]
    generated_radius = _radius(generated, neighbors)[None]
    inside = between <= real_radius
    return {
        "precision": float(inside.any(axis=0).mean()),
        "recall": float((between <= generated_radius).any(axis=1).mean()),
        "density": float(inside.sum(axis=0).mean() / neighbors),
        "coverage": float(inside.any(axis=1).mean()),
    }


def covered(real: Points, generated: Points, neighbors: int) -> NDArray[np.bool_]:
    """Which real samples have a generated one within the reach of their k-th real neighbor."""
    within = cdist(real, generated) <= _radius(real, neighbors)[:, None]
    return np.any(within, axis=1)


def _radius(points: Points, neighbors: int) -> Points:
    distances = cdist(points, points)
    radius: Points = np.partition(distances, neighbors, axis=1)[:, neighbors]
    return radius


def variance_ratio(
    generated: Tensor,  # [n, C, H, W]
    real: Tensor,  # [n, C, H, W]
    classes: Tensor,  # [n]
) -> float:
    """Variance within classes, of generated images over that of real ones."""
    return float(_variance_within(generated, classes) / _variance_within(real, classes))


def spread_failure(recall: float, ratio: float) -> str | None:
    """`scattered` or `collapsed`, by recall and ratio of variances; None: neither.

    The one rule of validation in training and of evaluation. What is far wider than the data has a
    low recall as well, so that is tested first.
    """
    low, high = VARIANCE
    if ratio > high:
        return "scattered"
    return "collapsed" if ratio < low or recall < RECALL else None


def _variance_within(images: Tensor, classes: Tensor) -> Tensor:
    """Mean squared distance to the mean of the class."""
    flat = images.flatten(1)
    sums = torch.zeros(int(classes.max()) + 1, flat.shape[1]).index_add_(0, classes, flat)
    counts = torch.bincount(classes).clamp(min=1)[:, None]
    return (flat - (sums / counts)[classes]).square().mean()


def intra_inter(
    points: NDArray[np.floating],  # [n, d]
    labels: NDArray[np.int64],  # [n], two classes or more
) -> Points:
    """Each sample's distance to the mean of its class over the mean distance of means, [n].

    Infinite where all means of classes are the same point.
    """
    x = points.astype(np.float64)
    _, numbered, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), x.shape[1]))
    np.add.at(sums, numbered, x)
    means = sums / counts[:, None]
    between = float(pdist(means).mean())
    distances: Points = np.linalg.norm(x - means[numbered], axis=1)
    return distances / between if between > 0 else np.full(len(x), np.inf)


def silhouettes(
    points: NDArray[np.floating],  # [n, d]
    labels: NDArray[np.int64],  # [n]
) -> Points:
    """The silhouette of each sample, [n]; all 0 where there is one class, or one a sample."""
    if not 1 < len(np.unique(labels)) < len(labels):
        return np.zeros(len(labels))
    values: Points = silhouette_samples(points, labels)
    return values.astype(np.float64)


CHUNK = 256  # clips at once


def entropy(weights: NDArray[np.number]) -> float:
    """The entropy, in nats, of the distribution proportional to `weights`."""
    fractions = weights[weights > 0] / weights.sum()
    return float(-(fractions * np.log(fractions)).sum())


def effective_rank(
    features: NDArray[np.floating],  # [n, d], as they are: not centered
) -> float:
    """From 1, for features on a line through 0, to min(n, d)."""
    x = features.astype(np.float64)
    squares = np.linalg.eigvalsh(x @ x.T if x.shape[0] < x.shape[1] else x.T @ x)
    return float(np.exp(entropy(np.sqrt(squares.clip(min=0)))))


class RandomConvolutions(nn.Module):
    """Space-time convolutions with fixed random weights; means over a clip of three layers."""

    def __init__(self, channels: int, width: int = 24) -> None:
        super().__init__()
        draw = generator(0, "random convolutions")
        widths = (channels, width, width, width)
        self.weights = nn.ParameterList(
            nn.Parameter(
                torch.randn(out, fan, 3, 3, 3, generator=draw) * (2 / (27 * fan)) ** 0.5,
                requires_grad=False,
            )
            for fan, out in pairwise(widths)
        )

    def forward(self, clips: Tensor) -> Tensor:
        """Features [B, 3 width] of clips [B, C, T, H, W]."""
        pooled = []
        for layer, weight in enumerate(self.weights):
            stride = (1, 1, 1) if layer == 0 else (1, 2, 2)
            clips = functional.relu(functional.conv3d(clips, weight, stride=stride, padding=1))
            pooled.append(clips.mean(dim=(2, 3, 4)))
        return torch.cat(pooled, dim=1)

    @torch.no_grad()
    def points(self, clips: Tensor) -> NDArray[np.float64]:
        """Features of many clips, [n, 3 width]."""
        device = self.weights[0].device
        parts = [self(chunk.to(device)).cpu() for chunk in clips.split(CHUNK)]
        return torch.cat(parts).double().numpy()


class PcaSpace:
    """The leading principal components of real clips or images.

    Raises:
        ValueError: more components than clips, or than a clip has values.
    """

    def __init__(self, clips: Tensor, components: int) -> None:  # [n, C, ...]
        most = min(len(clips), clips[0].numel())
        if components > most:
            raise ValueError(
                f"components is {components}, expected at most {most}: "
                f"{len(clips)} samples of {clips[0].numel()} values"
            )
        self._pca = PCA(components, svd_solver="randomized", random_state=0)
        self._pca.fit(clips.flatten(1).numpy())

    def points(self, clips: Tensor) -> NDArray[np.float64]:
        """Coordinates of clips, [n, components]."""
        coordinates: NDArray[np.float64] = self._pca.transform(clips.flatten(1).numpy())
        return coordinates.astype(np.float64)
