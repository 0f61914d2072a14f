"""How good refined and generated images are: by classes, as a distribution, against copies.

A generator that makes one image a class, over and over, satisfies a classifier and even coverage;
one that scatters has full recall; one that copies its training images passes all of these. So no
measure is read alone, and each stands beside what interpolation, the corrupted input and other
real images score.

    accuracy            of a classifier (SVM) that was trained on real images alone: it predicts the
                        class that the image was conditioned on
    frechet             distance to held-out real images in leading principal components of real
                        training images, a space that no training saw
    precision, recall, density, coverage   of balls around held-out images, see distances.py
    variance_ratio      variance within classes over that of held-out images
    memorization_ratio  mean distance to the nearest training image over that of held-out images:
                        1 for what is new, 0 for copies
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC
from torch import Tensor

from braid.common.timing import timed
from braid.drifting.image.config import ImageEvaluationConfig
from braid.drifting.image.refiner import ImageRefiner, KeypatchCorruption, per_pixel
from braid.drifting.video.refiner import refine
from braid.metrics.distances import (
    PcaSpace,
    frechet_distance,
    manifold,
    spread_failure,
    variance_ratio,
)

MEASURES = (
    "accuracy",
    "frechet",
    "precision",
    "recall",
    "density",
    "coverage",
    "variance_ratio",
    "memorization_ratio",
)
ERRORS = ("given_error", "mse_missing", "mse_all")  # of pairs
METHODS = ("corrupted", "interpolated", "unclamped", "clamped")
HEADLINE = ("generated", "refined", "interpolated", "real")
PIXELS = 256  # values of an image that the classifier takes as they are
CLASSIFIER_COMPONENTS = 128  # what it takes of larger images
CHUNK = 256  # images at once
MEMORIZED, ON_CLASS = 0.5, 0.9  # limits of `image_status`; the last one of real
TIMED = 20  # calls, of which the median counts

Figures = Mapping[str, float | None]
Levels = Mapping[int, Mapping[str, Figures]]  # by given patches, then by method


class ImageEvaluator:
    """Scores images, made class for class like held-out real ones, against those.

    Raises:
        ValueError: too few images for that many components, fewer than two classes, or a class
            of held-out images that no training image has.
    """

    def __init__(
        self,
        train: Tensor,  # [N, C, H, W] real images
        train_classes: Tensor,  # [N]
        test: Tensor,  # [n, C, H, W] held-out real images
        test_classes: Tensor,  # [n]
        config: ImageEvaluationConfig,
    ) -> None:
        unseen = set(test_classes.tolist()) - set(train_classes.tolist())
        if unseen:
            raise ValueError(f"class {min(unseen)} has test images, but no training images")
        if len(train_classes.unique()) < 2:
            raise ValueError("the training images have one class, expected two or more to tell")
        self.train, self.train_classes = train, train_classes
        self.test, self.test_classes = test, test_classes
        self.neighbors = config.neighbors
        self.space = PcaSpace(train, config.components)
        self.real_points = self.space.points(test)
        self.classifier = _classifier(train[0].numel(), len(train))
        self.classifier.fit(_rows(train), train_classes.numpy())
        self.real_distance = nearest(test, train)

    def figures(
        self,
        images: Tensor,  # [n, C, H, W] made for the classes of the held-out ones, in their order
    ) -> dict[str, float]:
        """All `MEASURES` of the images."""
        points = self.space.points(images)
        return {
            "accuracy": self.accuracy(images),
            "frechet": frechet_distance(self.real_points, points),
            **manifold(self.real_points, points, self.neighbors),
            "variance_ratio": variance_ratio(images, self.test, self.test_classes),
            "memorization_ratio": nearest(images, self.train) / self.real_distance,
        }

    def accuracy(self, images: Tensor) -> float:
        """The fraction of images [n, C, H, W] of which the classifier predicts their own class."""
        return float(np.mean(self.classifier.predict(_rows(images)) == self.test_classes.numpy()))

    def real(self, generator: torch.Generator) -> dict[str, float]:
        """The same measures of real images: what a perfect generator would score.

        Distances are those of as many training images, class for class, from the held-out ones;
        the classifier and the search for copies know these, so there the held-out images count.
        """
        drawn = self.figures(self.train[self._class_for_class(generator)])
        return {**drawn, "accuracy": self.accuracy(self.test), "memorization_ratio": 1.0}

    def _class_for_class(self, generator: torch.Generator) -> Tensor:
        """Random training images with the classes of the held-out ones; repeated only if few."""
        chosen = torch.empty_like(self.test_classes)
        for label in self.test_classes.unique():
            members = (self.train_classes == label).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            places = (self.test_classes == label).nonzero().flatten()
            chosen[places] = members[torch.arange(len(places)) % len(members)]
        return chosen


def _classifier(values: int, images: int) -> Pipeline:
    reduced = [PCA(min(CLASSIFIER_COMPONENTS, images), svd_solver="randomized", random_state=0)]
    return make_pipeline(*(reduced if values > PIXELS else []), SVC(C=10))


def _rows(images: Tensor) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = images.flatten(1).numpy()
    return rows


def nearest(
    images: Tensor,  # [n, C, H, W]
    references: Tensor,  # [N, C, H, W]
) -> float:
    """Mean Euclidean distance of images to the nearest reference."""
    targets = references.flatten(1).double()  # float32 would find copies at a distance
    parts = images.flatten(1).double().split(CHUNK)
    return float(torch.cat([torch.cdist(part, targets).amin(1) for part in parts]).mean())


def errors(
    images: Tensor,  # [n, C, H, W]
    truth: Tensor,  # [n, C, H, W]
    given: Tensor,  # [n, 1, H, W] bool, pixels of given patches
) -> Figures:
    """Mean squared error of given pixels, of missing ones, of all; None of no pixel."""
    square, where = (images - truth).square(), given.expand_as(truth)
    parts = (square[where], square[~where], square)
    means = (float(part.mean()) if part.numel() else None for part in parts)
    return dict(zip(ERRORS, means, strict=True))


def image_status(figures: Mapping[str, Any], accuracy_real: float) -> str:
    """`ok`, or the first of what is wrong with images of such figures.

    scattered   far wider than the data, or not drawn to it yet: repulsion has won
    collapsed   the same few images over and over: attraction has won
    memorized   every other image is a copy, or all lie that near to one
    off_class   the classifier predicts other classes than the images were conditioned on
    """
    failure = spread_failure(figures["recall"], figures["variance_ratio"])
    if failure:
        return failure
    if figures["memorization_ratio"] < MEMORIZED:
        return "memorized"
    if figures["accuracy"] < ON_CLASS * accuracy_real:
        return "off_class"
    return "ok"


# ---- Every method at every level -----------------------------------------------------------------


@dataclass(frozen=True)
class Completed:
    """Images completed from a number of given patches, or generated from none."""

    given: Tensor  # [n, 1, H, W] bool, pixels of given patches
    images: dict[str, Tensor]  # [n, C, H, W] by method of METHODS


class Completion:
    """A refiner and the corruption that it was trained for, at work on held-out images."""

    def __init__(
        self,
        refiner: ImageRefiner,
        corruption: KeypatchCorruption,
        truth: Tensor,  # [n, C, H, W]
        classes: Tensor,  # [n]
        generator: torch.Generator,  # of the corruption
    ) -> None:
        self.refiner, self.corruption = refiner, corruption
        self.truth, self.classes, self.generator = truth, classes, generator
        self.refined = "clamped" if refiner.config.keep_anchors_fixed else "unclamped"

    def __call__(
        self,
        alpha: float,  # guidance, 1: none
    ) -> dict[int, Completed]:
        """All levels but the one that has every patch, by the number of given patches."""
        counts = self.corruption.counts
        return {counts[level]: self.complete(level, alpha) for level in range(1, len(counts))}

    def complete(self, level: int, alpha: float) -> Completed:
        """What each method makes of the images at a level, on the CPU.

        `corrupted` is the refiner's input, `interpolated` that without noise; `clamped` is what
        the refiner makes with given patches kept bit for bit, `unclamped` without.
        """
        ids = torch.arange(len(self.truth))
        levels = torch.full_like(ids, level)
        corrupted = self.corruption(self.truth, levels, ids, self.generator)
        images = {
            "corrupted": corrupted.latents,
            "interpolated": self.corruption.interpolate(self.truth, corrupted.mask),
        }
        for method, clamp in (("unclamped", False), ("clamped", True)):
            images[method] = refine(self.refiner, corrupted, self.classes, level, alpha, clamp)
        return Completed(per_pixel(corrupted.mask, self.corruption.patch), images)

    def milliseconds(self, alpha: float) -> float:
        """Of one step on one image at the coarsest level, once it is warm."""
        level, first = self.corruption.levels, torch.arange(1)
        corrupted = self.corruption(
            self.truth[first], torch.full_like(first, level), first, self.generator
        )
        step = partial(refine, self.refiner, corrupted, self.classes[first], level, alpha)
        seconds = []
        for _ in range(TIMED + 1):
            seconds.append(timed(step, self.truth.device)[1])
        return round(1000 * statistics.median(seconds[1:]), 3)


def score(evaluator: ImageEvaluator, completed: Mapping[int, Completed]) -> Levels:
    """Measures and paired errors of each method at each level."""
    return {
        given: {
            method: {**evaluator.figures(images), **errors(images, evaluator.test, level.given)}
            for method, images in level.images.items()
        }
        for given, level in completed.items()
    }


def levels_table(levels: Levels, real: Figures) -> list[dict[str, Any]]:
    """A row a level, `<measure>_<method>` with `real` as a method."""
    return [
        {"given": given, **_suffixed({**methods, "real": real})}
        for given, methods in levels.items()
    ]


def alpha_table(
    evaluator: ImageEvaluator,
    completion: Completion,
    alphas: Sequence[float],
    alpha_max: float,  # of the training; what lies above is extrapolated
) -> list[dict[str, Any]]:
    """A row a guidance alpha: `<measure>_<given patches>` of the refiner's own images."""
    rows = []
    for alpha in alphas:
        figures = {
            str(given): evaluator.figures(level.images[completion.refined])
            for given, level in completion(alpha).items()
        }
        rows.append({"alpha": alpha, "trained": int(alpha <= alpha_max), **_suffixed(figures)})
    return rows


def _suffixed(figures: Mapping[str, Figures]) -> dict[str, float | None]:
    """`<measure>_<name>` of each name's measures."""
    return {
        f"{measure}_{name}": value
        for name, measures in figures.items()
        for measure, value in measures.items()
    }


def methods_table(
    levels: Levels,
    real: Mapping[str, float],  # what real images score
    refined: str,  # the method that the refiner is configured for, `clamped` or `unclamped`
    images: int,  # of each method
) -> list[dict[str, Any]]:
    """The evaluation in brief, a row for each method.

    `generated`, where no patch is given; then, at the coarsest level that has any, `refined` and
    each of `METHODS`; `real`. Generated and refined images have a status. Figures of a level that
    `image_drift.corruption.given` lacks are None, with a reason.
    """
    fewest = min((given for given in levels if given), default=None)
    nothing = dict.fromkeys(METHODS, dict.fromkeys((*MEASURES, *ERRORS)))
    completed = levels[fewest] if fewest else nothing
    rows: list[dict[str, Any]] = [
        {"method": "generated", "given": 0, **levels.get(0, nothing)[refined]},
        {"method": "refined", "given": fewest, **completed[refined]},
        *({"method": method, "given": fewest, **completed[method]} for method in METHODS),
        {"method": "real", **real},
    ]
    for row, lacks in zip(rows[:2], ("0", "number above 0"), strict=True):
        missing = row["accuracy"] is None
        row["status"] = None if missing else image_status(row, real["accuracy"])
        reason = f"image_drift.corruption.given has no {lacks}"
        row["status_reason"] = reason if missing else None
    return [{**row, "images": images} for row in rows]


def headline(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metrics: a few measures of the rows of `methods_table`."""
    by_method = {row["method"]: row for row in rows}
    generated = by_method["generated"]
    return {
        **{
            measure: {method: by_method[method][measure] for method in HEADLINE}
            for measure in ("frechet", "accuracy")
        },
        "recall": generated["recall"],
        "status": generated["status"],
    }
