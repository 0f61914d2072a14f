"""How evenly the clips fill the pseudo-classes, and whether K suits their number.

A class is *near empty* with fewer train clips than an eighth of the mean n / K, and in any case
with fewer than 4. Whether K fits is decided on K-means' K classes, since the merge would hide it:
the fractions of near-empty and of singleton classes, `perplexity_fraction_unmerged`; all other
metrics describe the classes after the merge. The status is the first that holds:

    collapsed           unmerged perplexity / K < 0.5: the clips use less than half of the classes
    dominated           one class has more than 20 / K of the clips
    near_empty_classes  more than a tenth of the K classes are near empty, or the merge leaves
                        fewer than half
    ok

None of the bounds depends on K or n: on 248,320 clips and K = 1024 they are a perplexity of 512,
2 % of the clips, and a tenth of the classes with fewer than 31. In every status but ok half of K is
recommended, 1024 -> 512, and half again until a class has 16 clips on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from braid.clustering.kmeans import class_means
from braid.pseudo_classes.quantizer import PseudoClasses

_NEAR_EMPTY = 4, 1 / 8  # clips, of the mean
_NEAR_EMPTY_FRACTION = 0.1
_LEAST_USAGE = 0.5  # of K, by the perplexity and by the classes after the merge
_DOMINANCE = 20  # times the even fraction 1 / K
_LEAST_MEAN = 16  # clips a class in a recommended K


def occupancy_metrics(
    clusters: Tensor,  # [K] train clips in each of K-means' classes
    classes: Tensor,  # [classes] train clips in each class after the merge
) -> dict[str, Any]:
    """The metrics of a partition; see the module."""
    clips, k = int(classes.sum()), len(clusters)
    entropy = _entropy(classes)
    p10, median, p90 = np.percentile(classes.numpy(), (10, 50, 90))
    bound = near_empty_below(clips, k)
    metrics = {
        "train_clips": clips,
        "K": k,
        "classes": len(classes),
        "mean_occupancy": clips / len(classes),
        "median_occupancy": float(median),
        "p10": float(p10),
        "p90": float(p90),
        "max_fraction": int(classes.max()) / clips,
        "entropy": entropy,
        "perplexity": math.exp(entropy),
        "perplexity_fraction": math.exp(entropy) / k,
        "perplexity_fraction_unmerged": math.exp(_entropy(clusters)) / k,
        "singleton_fraction": float((clusters == 1).double().mean()),
        "near_empty_below": bound,
        "near_empty_fraction": float((clusters < bound).double().mean()),
    }
    status = _status(metrics)
    return {**metrics, "status": status, "recommended_K": recommended_classes(status, k, clips)}


def near_empty_below(clips: int, k: int) -> int:
    """Train clips that a class must have so as not to be near empty."""
    least, of_mean = _NEAR_EMPTY
    return max(least, math.ceil(of_mean * clips / k))


def recommended_classes(status: str, k: int, clips: int) -> int:
    """The K to run next: this one, or half of it as often as needed; see the module."""
    if status == "ok":
        return k
    k = max(k // 2, 1)
    while k > 1 and clips < _LEAST_MEAN * k:
        k //= 2
    return k


def occupancy_table(pseudo: PseudoClasses) -> list[dict[str, int]]:
    """A row a class: its number and its clips in each split."""
    counts = {
        split: torch.bincount(pseudo.labels[indices], minlength=pseudo.classes).tolist()
        for split, indices in pseudo.splits.items()
    }
    return [
        {"class": number, **{split: clips[number] for split, clips in counts.items()}}
        for number in range(pseudo.classes)
    ]


def inertia_metrics(pseudo: PseudoClasses, generator: torch.Generator) -> dict[str, float]:
    """Mean squared distances of clips to the mean of their class's train clips.

    Of train clips, of validation clips, and the control: train clips with shuffled labels.
    """
    labels, classes, h = pseudo.labels, pseudo.classes, pseudo.embedding
    train, val = pseudo.splits["train"], pseudo.splits["val"]
    means, _ = class_means(h[train], labels[train], classes)
    shuffled = labels[train][torch.randperm(len(train), generator=generator)]
    control, _ = class_means(h[train], shuffled, classes)
    return {
        "inertia": _mean_square(h[train] - means[labels[train]]),
        "inertia_val": _mean_square(h[val] - means[labels[val]]),
        "inertia_random_labels": _mean_square(h[train] - control[shuffled]),
    }


def _entropy(counts: Tensor) -> float:
    """Of the fractions of the classes, in nats."""
    return float(torch.special.entr(counts.double() / counts.sum()).sum())


def _mean_square(residuals: Tensor) -> float:
    return float(residuals.square().sum(1).mean(dtype=torch.float64))


def _status(metrics: Mapping[str, Any]) -> str:
    if metrics["perplexity_fraction_unmerged"] < _LEAST_USAGE:
        return "collapsed"
    if metrics["max_fraction"] > _DOMINANCE / metrics["K"]:
        return "dominated"
    merged_away = metrics["classes"] < _LEAST_USAGE * metrics["K"]
    if metrics["near_empty_fraction"] > _NEAR_EMPTY_FRACTION or merged_away:
        return "near_empty_classes"
    return "ok"
