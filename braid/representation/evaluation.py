"""The mandatory evaluation of a space in which clips are told apart.

Pseudo-classes are judged in the quantiser's space, where they are cells by construction, and in
those of encoders, which know them at most from a head trained on train clips: an encoder's figures
are to be held against an untrained one's. Each figure stands beside what random labels score
(`_random`: the same labels in random order) or beside an exact chance level (`_chance`), and where
it is a mean over clips between the ends of its 95 % bootstrap interval (`_low`, `_high`; class
means and neighbours stay as they are).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from braid.common.rng import generator
from braid.representation import retrieval, separation
from braid.representation import retrieval as kernel
from braid.representation.samples import Sample

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]
Points = NDArray[np.float32]
Figures = dict[str, float | int | str | None]

COLLAPSED_RANK = 2.0  # of the features' RankMe
LEAST_USAGE = 0.5  # perplexity of the classes' shares, over their number


@dataclass(frozen=True)
class Space:
    """Where the clips of a sample lie."""

    features: Points  # [n, d] as the encoder gave them; collapse is looked for in these
    points: Points  # [n, d] what distances are measured between


@dataclass(frozen=True)
class Judgement:
    """What is reported of a space, and what its pictures show."""

    figures: Figures
    found: Indices  # [q, k] the clips nearest to each query, nearest first
    distances: Floats  # [q, g] in mean distances
    silhouettes: Mapping[str, Floats]  # [n], of pseudo-classes and of random labels


def standardised(
    features: Points,  # [n, d]
    components: int,
) -> Points:
    """Each feature to mean 0 and variance 1 (a constant one to 0), then the leading components.

    Raises:
        ValueError: a feature is not finite.
    """
    _require_finite(features)
    centred = features - features.mean(axis=0, dtype=np.float64)
    spread = centred.std(axis=0)
    points = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)
    pca = PCA(min(components, *points.shape), svd_solver="randomized", random_state=0)
    reduced: Points = pca.fit_transform(points).astype(np.float32)
    return reduced


def judge(
    space: Space,
    sample: Sample,
    *,
    temperatures: Sequence[float],
    neighbours: Sequence[int],
    cluster: separation.Cluster,
    resamples: int,
    seed: int,
) -> Judgement:
    """All figures of a space.

    Raises:
        ValueError: features that are not finite or all the same, fewer than two classes, or fewer
            clips than the figures need.
    """
    _require_finite(space.features)
    distances = retrieval.distances_to_gallery(space.points, sample.is_query)
    found = retrieval.nearest_clips(distances, sample.is_query, max(neighbours))
    order = torch.randperm(len(sample.labels), generator=generator(seed, "random labels"))
    by_clip: dict[str, Floats] = {}
    figures: Figures = {}
    for suffix, labels in (("", sample.labels), ("_random", sample.labels[order.numpy()])):
        each = _by_clip(space.points, labels, sample.is_query, found, neighbours)
        by_clip |= {f"{name}{suffix}": values for name, values in each.items()}
        same = labels[sample.is_query][:, None] == labels[~sample.is_query]
        plain = kernel.mass_ratios(distances, same, temperatures)
        plain["davies_bouldin"] = separation.davies_bouldin(space.points, labels)
        figures |= {f"{name}{suffix}": value for name, value in plain.items()}
    agreement, chances = _agreement(sample, found)
    for name, values in (by_clip | agreement).items():
        figures[name] = float(values.mean())
        if not name.endswith("_random"):
            low, high = interval(values, resamples, generator(seed, "bootstrap", name))
            figures |= {f"{name}_low": low, f"{name}_high": high}
    figures |= chances | kernel.kernel_figures(distances, temperatures)
    figures |= separation.stability(space.points[~sample.is_query], cluster, seed)
    figures |= separation.usage(sample.counts)
    figures |= {
        "rank_me": separation.rank_me(space.features),
        "mean_cosine": separation.mean_cosine(space.features),
        "clips": len(sample.labels),
        "queries": int(sample.is_query.sum()),
        "dimensions": space.points.shape[1],
    }
    figures["status"] = status(figures, neighbours)
    shown = {
        "pseudo-classes": by_clip["silhouette"],
        "random labels": by_clip["silhouette_random"],
    }
    return Judgement(figures, found, distances, shown)


def status(figures: Mapping[str, Any], neighbours: Sequence[int]) -> str:
    """The first that holds, of `collapsed`, `no_better_than_random` and `ok`.

    Collapsed: features on a line, or the clips in less than half of the classes, by perplexity. No
    better than random: the bootstrap interval of the silhouette, the probe or the retrieval at the
    most neighbours reaches down to what random labels score.
    """
    if figures["rank_me"] < COLLAPSED_RANK or figures["usage_share"] < LEAST_USAGE:
        return "collapsed"
    tested = ("silhouette", "linear_probe", f"retrieval_at_{max(neighbours)}")
    if any(figures[f"{name}_low"] <= figures[f"{name}_random"] for name in tested):
        return "no_better_than_random"
    return "ok"


def interval(
    values: Floats,  # [n]
    resamples: int,
    draw: torch.Generator,
) -> tuple[float, float]:
    """Ends of the 95 % percentile bootstrap interval of the mean (Efron & Tibshirani 1993, 13)."""
    chosen = torch.randint(len(values), (resamples, len(values)), generator=draw)
    low, high = np.percentile(values[chosen.numpy()].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def _by_clip(
    points: Points, labels: Indices, is_query: NDArray[np.bool_], found: Indices, ks: Sequence[int]
) -> dict[str, Floats]:
    """Figures of a labelling that are means over clips."""
    return {
        "intra_inter": separation.intra_inter(points, labels),
        "silhouette": separation.silhouettes(points, labels),
        "linear_probe": separation.probe(points, labels, is_query),
        **{
            f"retrieval_at_{k}": retrieval.label_agreement(labels, is_query, found[:, :k])
            for k in ks
        },
    }


def _agreement(sample: Sample, found: Indices) -> tuple[dict[str, Floats], Figures]:
    """What neighbours have in common beside their class, by query, and the levels of chance."""
    sides = sample.is_query
    _, families = np.unique(list(sample.families), return_inverse=True)
    cosine, cosine_of_all = retrieval.cosine_agreement(sample.texts, sides, found)
    error, error_of_all = retrieval.squared_error(sample.keyframes, sides, found)
    by_query = {
        "text_cosine": cosine,
        "keyframe_mse": error,
        "family_agreement": retrieval.label_agreement(families, sides, found),
    }
    chances: Figures = {
        "text_cosine_chance": cosine_of_all,
        "keyframe_mse_chance": error_of_all,
        "family_agreement_chance": retrieval.label_chance(families, sides),
        "retrieval_chance": retrieval.label_chance(sample.labels, sides),
        "linear_probe_chance": separation.probe_chance(sample.labels, sides),
    }
    return by_query, chances


def _require_finite(features: Points) -> None:
    if not np.isfinite(features).all():
        raise ValueError("features of a clip: expected finite values")
