"""How refined and generated images are judged: by classes, as a distribution, against copies.

A generator that makes one image a class, over and over, satisfies a classifier and even coverage;
one that scatters has full recall; one that copies its training images passes all of these. So no
measure is read alone, and each stands beside what interpolation, the corrupted input and other
real images score.

    accuracy            of a classifier (SVM) that saw only real training images: is the class the
                        one that was asked for
    frechet             distance to held-out real images in leading principal components of real
                        training images, a space that no training saw
    precision, recall, density, coverage   of balls around held-out images, see distances.py
    variance_ratio      variance within classes over that of held-out images
    memorisation_ratio  mean distance to the nearest training image over that of held-out images:
                        1 for what is new, 0 for copies
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import SVC
from torch import Tensor

from braid.drifting.evaluation.evaluation import flattened
from braid.drifting.image.corruption import KeypatchCorruption, per_pixel
from braid.drifting.image.probe import VARIANCE, variance_ratio
from braid.drifting.image.refiner import ImageRefiner
from braid.drifting.video.sampling import refine
from braid.metrics.distances import frechet_distance, manifold
from braid.metrics.spaces import PcaSpace

MEASURES = (
    "accuracy",
    "frechet",
    "precision",
    "recall",
    "density",
    "coverage",
    "variance_ratio",
    "memorisation_ratio",
)
ERRORS = ("known_error", "mse_missing", "mse_all")  # of pairs
METHODS = ("corrupted", "interpolated", "unclamped", "clamped")
PIXELS = 256  # values of an image that the classifier sees as they are
CLASSIFIER_COMPONENTS = 128  # what it sees of larger images
CHUNK = 256  # images at once
RECALL, MEMORISED, ON_CLASS = 0.1, 0.5, 0.9  # limits of `image_status`; the last one of real

Figures = Mapping[str, float | None]


class ImageJudge:
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
        *,
        components: int,  # of the space of the Frechet distance
        neighbours: int,  # of precision, recall, density and coverage
    ) -> None:
        unseen = set(test_classes.tolist()) - set(train_classes.tolist())
        if unseen:
            raise ValueError(f"class {min(unseen)} has test images, but no training images")
        if len(train_classes.unique()) < 2:
            raise ValueError("the training images have one class, expected two or more to tell")
        self.train, self.train_classes = train, train_classes
        self.test, self.test_classes = test, test_classes
        self.neighbours = neighbours
        self.space = PcaSpace(train, components)
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
            **manifold(self.real_points, points, self.neighbours),
            "variance_ratio": variance_ratio(images, self.test, self.test_classes),
            "memorisation_ratio": nearest(images, self.train) / self.real_distance,
        }

    def accuracy(self, images: Tensor) -> float:
        """The share of images [n, C, H, W] in which the classifier sees the class asked for."""
        return float(np.mean(self.classifier.predict(_rows(images)) == self.test_classes.numpy()))

    def real(self, generator: torch.Generator) -> dict[str, float]:
        """The same measures of real images: what a perfect generator would score.

        Distances are those of as many training images, class for class, from the held-out ones;
        the classifier and the search for copies know these, so there the held-out images count.
        """
        drawn = self.figures(self.train[self._class_for_class(generator)])
        return {**drawn, "accuracy": self.accuracy(self.test), "memorisation_ratio": 1.0}

    def _class_for_class(self, generator: torch.Generator) -> Tensor:
        """Random training images with the classes of the held-out ones; repeated only if few."""
        chosen = torch.empty_like(self.test_classes)
        for each in self.test_classes.unique():
            members = (self.train_classes == each).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            places = (self.test_classes == each).nonzero().flatten()
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
    known: Tensor,  # [N, C, H, W]
) -> float:
    """Mean Euclidean distance of images to the nearest known one."""
    targets = known.flatten(1).double()  # float32 would see copies at a distance
    parts = images.flatten(1).double().split(CHUNK)
    return float(torch.cat([torch.cdist(part, targets).amin(1) for part in parts]).mean())


def errors(
    images: Tensor,  # [n, C, H, W]
    truth: Tensor,  # [n, C, H, W]
    known: Tensor,  # [n, 1, H, W] bool, pixels of known patches
) -> Figures:
    """Mean squared error of known pixels, of missing ones, of all; None of no pixel."""
    square, where = (images - truth).square(), known.expand_as(truth)
    parts = (square[where], square[~where], square)
    means = (float(part.mean()) if part.numel() else None for part in parts)
    return dict(zip(ERRORS, means, strict=True))


def image_status(figures: Mapping[str, Any], accuracy_real: float) -> str:
    """`ok`, or the first of what is wrong with images of such figures.

    scattered   far wider than the data, or not drawn to it yet: repulsion has won
    collapsed   the same few images over and over: attraction has won
    memorised   every other image is a copy, or all lie that near to one
    off_class   the classifier sees other classes than were asked for
    """
    low, high = VARIANCE
    if figures["variance_ratio"] > high:
        return "scattered"
    if figures["recall"] < RECALL or figures["variance_ratio"] < low:
        return "collapsed"
    if figures["memorisation_ratio"] < MEMORISED:
        return "memorised"
    if figures["accuracy"] < ON_CLASS * accuracy_real:
        return "off_class"
    return "ok"


def complete(
    refiner: ImageRefiner,
    corruption: KeypatchCorruption,
    truth: Tensor,  # [n, C, H, W]
    classes: Tensor,  # [n]
    level: int,
    alpha: float,  # guidance, 1: none
    generator: torch.Generator,  # of the corruption
) -> tuple[Tensor, dict[str, Tensor]]:
    """What each method makes of images at a level, on the CPU.

    Returns:
        The known pixels, [n, 1, H, W] bool; and `corrupted` (the refiner's input), `interpolated`
        (that without noise), `unclamped` and `clamped`, in which known patches stay bit for bit.
    """
    ids = torch.arange(len(truth))
    corrupted = corruption(truth, torch.full_like(ids, level), ids, generator)
    made = {
        "corrupted": corrupted.latents,
        "interpolated": corruption.interpolate(truth, corrupted.mask),
    }
    own = refiner.keep_anchors_fixed
    for name, fixed in (("unclamped", False), ("clamped", True)):
        refiner.keep_anchors_fixed = fixed
        made[name] = refine(refiner, corrupted, classes, level, alpha)
    refiner.keep_anchors_fixed = own
    return per_pixel(corrupted.mask, corruption.patch), made


def summary(
    levels: Mapping[int, Mapping[str, Figures]],
    real: Mapping[str, float],
    refined: str,
) -> dict[str, Any]:
    """The figures in brief.

    Args:
        levels: by the number of known patches, the figures of each method of `complete`.
        real: what real images score.
        refined: the method that the refiner uses of its own accord, `clamped` or `unclamped`.

    Returns:
        `<measure>_<method>` at the coarsest level that knows any patch, with `refined` and `real`
        as methods; measures of generation, where none is known, bare but for accuracy and
        frechet. All of a level is null, with a reason, where `image_corruption.known` lacks it.
    """
    nothing: Figures = dict.fromkeys((*MEASURES, *ERRORS))
    fewest = min((known for known in levels if known), default=None)
    methods = levels[fewest] if fewest else dict.fromkeys(METHODS, nothing)
    generated = levels[0][refined] if 0 in levels else nothing
    values = flattened({**methods, "refined": methods[refined], "real": real})
    for measure in MEASURES:
        bare = measure not in ("accuracy", "frechet")
        values[measure if bare else f"{measure}_generated"] = generated[measure]
    for name, figures, known in (
        ("status", generated, "0"),
        ("status_refined", methods[refined], "number above 0"),
    ):
        values[name] = None if figures is nothing else image_status(figures, real["accuracy"])
        if figures is nothing:
            values[f"{name}_reason"] = f"image_corruption.known has no {known}"
    return values
