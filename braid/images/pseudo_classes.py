"""Pseudo-classes for images without labels: K-means on principal components of their values.

Images are first averaged down to 32 pixels a side, so that the components of any image set fit in
memory. Components and centroids are fitted on train images, and every image gets its nearest.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch.nn.functional import adaptive_avg_pool2d

from braid.images.image_set import ImageSet

COMPONENTS = 64
PCA_ROWS = 16_384
SIDE = 32  # pixels
_CHUNK = 256  # images in memory at a time


def pseudo_classes(images: ImageSet, K: int, generator: torch.Generator) -> NDArray[np.int64]:
    """The class of each image, [n] in 0 to K - 1; none is without a train image.

    Raises:
        ValueError: more classes than train images, or than different ones.
    """
    train = images.indices("train")
    if len(train) < K:
        raise ValueError(f"images.K is {K}, expected 1 to {len(train)}, the number of train images")
    chosen = torch.randperm(len(train), generator=generator)[:PCA_ROWS].numpy()
    state = int(torch.randint(2**31, (), generator=generator))
    with threadpool_limits(1):  # several would add in any order
        rows = _pooled(images, train[chosen])
        pca = PCA(min(COMPONENTS, *rows.shape), random_state=state).fit(rows)
        points = np.concatenate([pca.transform(_pooled(images, part)) for part in _chunks(images)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # too few differ: see below
            found = KMeans(K, random_state=state).fit(points[train])
        labels = found.predict(points).astype(np.int64)
    labels[train] = found.labels_  # of which none is empty
    used = len(np.unique(found.labels_))
    if used < K:
        raise ValueError(f"images.K is {K}, but only {used} train images differ")
    return labels


def _chunks(images: ImageSet) -> list[NDArray[np.int64]]:
    return np.split(np.arange(len(images)), range(_CHUNK, len(images), _CHUNK))


def _pooled(images: ImageSet, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Values averaged down to at most SIDE pixels a side, [B, d]."""
    _, height, width = images.shape
    side = (min(SIDE, height), min(SIDE, width))
    chunks = np.split(indices, range(_CHUNK, len(indices), _CHUNK))
    pooled = [adaptive_avg_pool2d(images.images(part), side).flatten(1) for part in chunks]
    return torch.cat(pooled).numpy()
