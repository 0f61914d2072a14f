"""How evenly the clips fill the pseudo-classes, and whether K suits their number.

A class is *near empty* with fewer train clips than an eighth of the mean n / K, and in any case
with fewer than 4. What judges K is over K-means' K classes, since the merge would hide it:
near-empty and singleton shares, `perplexity_share_unmerged`; all else describes the classes in
use. The states, the first that holds:

    collapsed           unmerged perplexity / K < 0.5: the clips use less than half of the classes
    dominated           one class holds more than 20 / K of the clips
    near_empty_classes  more than a tenth of the K classes are near empty, or the merge leaves
                        fewer than half
    ok

None of the bounds knows K or n: on 248,320 clips and K = 1024 they are a perplexity of 512, 2 %
of the clips, and a tenth of the classes with fewer than 31. In every state but ok half of K is
recommended, 1024 -> 512, and half again until a class has 16 clips on average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.pseudo_classes.kmeans import class_means

_NEAR_EMPTY = 4, 1 / 8  # clips, of the mean
_NEAR_EMPTY_SHARE = 0.1
_LEAST_USAGE = 0.5  # of K, by the perplexity and by the classes in use
_DOMINANCE = 20  # times the fair share
_LEAST_MEAN = 16  # clips a class in a recommended K


def occupancy_report(
    found: Tensor,  # [K] train clips in each of K-means' classes
    used: Tensor,  # [classes] train clips in each class after the merge
) -> dict[str, Any]:
    """The metrics of a partition; see the module."""
    clips, k = int(used.sum()), len(found)
    entropy = _entropy(used)
    p10, median, p90 = np.percentile(used.numpy(), (10, 50, 90))
    bound = near_empty_below(clips, k)
    report = {
        "train_clips": clips,
        "K": k,
        "occupied": len(used),
        "mean_occupancy": clips / len(used),
        "median_occupancy": float(median),
        "p10": float(p10),
        "p90": float(p90),
        "max_share": int(used.max()) / clips,
        "entropy": entropy,
        "perplexity": math.exp(entropy),
        "perplexity_share": math.exp(entropy) / k,
        "perplexity_share_unmerged": math.exp(_entropy(found)) / k,
        "singleton_share": float((found == 1).double().mean()),
        "near_empty_below": bound,
        "near_empty_share": float((found < bound).double().mean()),
    }
    status = _status(report)
    return {**report, "status": status, "recommended_K": recommended_classes(status, k, clips)}


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


def occupancy_table(
    labels: Tensor,  # [n]
    classes: int,
    splits: Mapping[str, NDArray[np.int64]],
) -> list[dict[str, int]]:
    """A row a class: its number and its clips in each split."""
    counts = {
        split: torch.bincount(labels[indices], minlength=classes).tolist()
        for split, indices in splits.items()
    }
    return [
        {"class": number, **{split: each[number] for split, each in counts.items()}}
        for number in range(classes)
    ]


def inertia_report(
    h: Tensor,  # [n, d]
    labels: Tensor,  # [n]
    classes: int,
    splits: Mapping[str, NDArray[np.int64]],
    generator: torch.Generator,
) -> dict[str, float]:
    """Mean squared distances of clips to the mean of their class's train clips.

    Train and held-out clips, and the control: the train clips with their labels shuffled.
    """
    train, val = splits["train"], splits["val"]
    means, _ = class_means(h[train], labels[train], classes)
    shuffled = labels[train][torch.randperm(len(train), generator=generator)]
    control, _ = class_means(h[train], shuffled, classes)
    return {
        "inertia": _mean_square(h[train] - means[labels[train]]),
        "inertia_val": _mean_square(h[val] - means[labels[val]]),
        "inertia_random_labels": _mean_square(h[train] - control[shuffled]),
    }


def _entropy(counts: Tensor) -> float:
    """Of the share of each class, nats."""
    return float(torch.special.entr(counts.double() / counts.sum()).sum())


def _mean_square(gaps: Tensor) -> float:
    return float(gaps.square().sum(1).mean(dtype=torch.float64))


def _status(report: Mapping[str, Any]) -> str:
    if report["perplexity_share_unmerged"] < _LEAST_USAGE:
        return "collapsed"
    if report["max_share"] > _DOMINANCE / report["K"]:
        return "dominated"
    merged_away = report["occupied"] < _LEAST_USAGE * report["K"]
    if report["near_empty_share"] > _NEAR_EMPTY_SHARE or merged_away:
        return "near_empty_classes"
    return "ok"
