"""Nearest-neighbour retrieval: do the clips near a held-out clip share its class, text, pictures?

Queries are held-out clips, the gallery is the others, so no clip finds itself. Every figure has an
exact chance level: the mean over all pairs of a query and a gallery clip, in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import pairwise_distances

# ---- What the drift's kernel sees in a space: how far, how many neighbours, and of which class
# For a query clip i, gallery clips j at distances d_ij in mean distances, and a temperature tau:
#
#     w_ij = softmax_j(-d_ij / tau),   effective neighbours = 1 / sum_j w_ij^2,
#     mass ratio = sum of w_ij with j of i's class / sum of the others, both over all queries.
#
# A kernel that sees one neighbour is a nearest-neighbour rule; one that sees them all is blind.
# These are figures of real clips alone, before any training; a training's own are in its
# statistics.

PERCENTILES = (10, 50, 90)
_SMALLEST = float(np.finfo(np.float64).tiny)


def kernel_figures(
    distances: NDArray[np.float64],  # [q, g] in mean distances
    temperatures: Sequence[float],
) -> dict[str, float]:
    """Percentiles of distances, and of effective neighbours at each temperature."""
    figures = _percentiles("kernel_distance", distances)
    for tau in temperatures:
        weights = softmax(-distances / tau, axis=1)
        effective = 1 / np.square(weights).sum(axis=1)
        figures |= _percentiles(f"kernel_neighbours_{tau:g}", effective)
    return figures


def mass_ratios(
    distances: NDArray[np.float64],  # [q, g] in mean distances
    same: NDArray[np.bool_],  # [q, g] of one class
    temperatures: Sequence[float],
) -> dict[str, float]:
    """Kernel mass on the same class over that on the others, at each temperature."""
    ratios = {}
    for tau in temperatures:
        weights = softmax(-distances / tau, axis=1)
        positive, negative = weights[same].sum(), weights[~same].sum()
        ratios[f"kernel_mass_ratio_{tau:g}"] = float(positive / max(negative, _SMALLEST))
    return ratios


def _percentiles(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    found = np.percentile(values, PERCENTILES)
    return {f"{name}_p{each}": float(value) for each, value in zip(PERCENTILES, found, strict=True)}


Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def distances_to_gallery(
    points: NDArray[np.float32],  # [n, d]
    is_query: NDArray[np.bool_],  # [n]
) -> Floats:
    """Euclidean distances, [q, g], in units of their mean.

    Raises:
        ValueError: no queries, no gallery, or all points are the same.
    """
    if is_query.all() or not is_query.any():
        raise ValueError("representation: expected clips both in train and in val or test")
    centred = points.astype(np.float64) - points.mean(0, dtype=np.float64)
    distances: Floats = pairwise_distances(centred[is_query], centred[~is_query])
    mean = distances.mean()
    if not mean > 0:
        raise ValueError("representation: all clips are the same point, expected distances above 0")
    return distances / mean


def nearest_clips(
    distances: Floats,  # [q, g]
    is_query: NDArray[np.bool_],  # [n]
    count: int,
) -> Indices:
    """Which of the n clips are nearest to each query, nearest first, [q, count]; ties in order.

    Raises:
        ValueError: the gallery has fewer than `count` clips.
    """
    gallery = np.flatnonzero(~is_query)
    if count > len(gallery):
        raise ValueError(
            f"representation.neighbours asks for {count}, the gallery has {len(gallery)} clips"
        )
    return gallery[distances.argsort(axis=1, kind="stable")[:, :count]]


def label_agreement(
    labels: Indices,  # [n]
    is_query: NDArray[np.bool_],  # [n]
    found: Indices,  # [q, k]
) -> Floats:
    """The share of each query's neighbours with the label of the query, [q]."""
    shares: Floats = (labels[found] == labels[is_query][:, None]).mean(axis=1)
    return shares


def label_chance(
    labels: Indices,  # [n]
    is_query: NDArray[np.bool_],  # [n]
) -> float:
    """`label_agreement` of random neighbours: the sum of p_query(c) p_gallery(c) over labels c."""
    count = int(labels.max()) + 1
    shares = [np.bincount(labels[side], minlength=count) / side.sum() for side in _sides(is_query)]
    return float(shares[0] @ shares[1])


def cosine_agreement(
    vectors: NDArray[np.float32],  # [n, D]
    is_query: NDArray[np.bool_],  # [n]
    found: Indices,  # [q, k]
) -> tuple[Floats, float]:
    """Mean cosine of queries with their neighbours, [q], and of all pairs; 0 with a zero vector."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    neighbours = unit[found].mean(axis=1)
    queries, gallery = (unit[side] for side in _sides(is_query))
    by_query = (queries * neighbours).sum(axis=1, dtype=np.float64)
    return by_query, float(queries.mean(0) @ gallery.mean(0))


def squared_error(
    vectors: NDArray[np.float32],  # [n, D]
    is_query: NDArray[np.bool_],  # [n]
    found: Indices,  # [q, k]
) -> tuple[Floats, float]:
    """Mean squared difference of each query and its neighbours, [q], and of all pairs."""
    wanted = zip(vectors[is_query], found, strict=True)
    by_query = np.array([np.square(vectors[near] - query).mean() for query, near in wanted])
    queries, gallery = (vectors[side].astype(np.float64) for side in _sides(is_query))
    squares = np.square(queries).mean() + np.square(gallery).mean()
    return by_query, float(squares - 2 * (queries.mean(0) * gallery.mean(0)).mean())


def _sides(is_query: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return is_query, ~is_query
