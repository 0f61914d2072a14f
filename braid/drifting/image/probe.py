"""What a refiner of images is worth while it trains, by measures outside its loss.

The drifting loss is normalised and does not fall, and a collapsed generator has as low a loss as a
good one. Every so often validation images of each level are refined with averaged weights and
compared with the real ones: Frechet distance, recall, and how much images of one class differ.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from braid.drifting.image.corruption import KeypatchCorruption
from braid.drifting.training.objectives import Refinement
from braid.drifting.video.sampling import refine
from braid.metrics.distances import frechet_distance, manifold
from braid.metrics.spaces import PcaSpace
from braid.training.ema import Ema

RECALL = 0.1  # less is collapsed
VARIANCE = (0.4, 1.3)  # ratio of within-class variances that is neither collapsed nor scattered


class ImageProbe:
    """A hook of the step loop that scores refined validation images, level by level.

    A row has `frechet_<known>`, `recall_<known>` and `variance_ratio_<known>` for the number of
    patches that each level knows; known 0 is generation.
    """

    def __init__(
        self,
        truth: Tensor,  # [n, C, H, W] validation images
        classes: Tensor,  # [n]
        corruption: KeypatchCorruption,
        generator: torch.Generator,  # of the corruption
        space: PcaSpace,
        *,
        neighbours: int,  # of recall
        every: int,  # steps
    ) -> None:
        self.truth, self.classes, self.counts = truth, classes, corruption.counts
        self.space, self.neighbours, self.every = space, neighbours, every
        ids = torch.arange(len(truth))
        self.corrupted = {
            level: corruption(truth, torch.full_like(ids, level), ids, generator)
            for level in range(1, corruption.levels + 1)
        }
        self.real = space.points(truth)
        self.plain: dict[str, float] = {}
        for level, each in self.corrupted.items():
            self.plain |= self.judge(corruption.interpolate(truth, each.mask), level)

    def __call__(self, done: int, objective: nn.Module, ema: Ema | None) -> dict[str, float] | None:
        """Figures of the validation images, when they are due."""
        if done % self.every or not isinstance(objective, Refinement):
            return None
        if ema is None:
            return self.look(objective.refiner)
        with ema.applied(objective):
            return self.look(objective.refiner)

    def look(self, refiner: nn.Module) -> dict[str, float]:
        """Refine the validation images of all levels and judge them."""
        figures: dict[str, float] = {}
        for level, corrupted in self.corrupted.items():
            refined = refine(refiner, corrupted, self.classes, level, alpha=1.0)
            figures |= self.judge(refined, level)
        return figures

    def judge(self, images: Tensor, level: int) -> dict[str, float]:
        """What is looked at, for images [n, C, H, W] made of those of a level."""
        points, known = self.space.points(images), self.counts[level]
        return {
            f"frechet_{known}": frechet_distance(self.real, points),
            f"recall_{known}": manifold(self.real, points, self.neighbours)["recall"],
            f"variance_ratio_{known}": variance_ratio(images, self.truth, self.classes),
        }

    def verdict(self, figures: Mapping[str, float]) -> tuple[bool, str]:
        """Whether a refiner of such figures is worth keeping, and why: its coarsest level decides.

        It must neither repeat itself nor scatter, and come nearer to real images than its start.
        """
        known, (low, high) = self.counts[-1], VARIANCE
        frechet, recall, ratio = (
            figures[f"{name}_{known}"] for name in ("frechet", "recall", "variance_ratio")
        )
        spread = f"variance ratio {ratio:.3g}, recall {recall:.3g}"
        if ratio < low or recall < RECALL:
            return False, f"collapsed: {spread}, expected {low} and {RECALL} at least"
        if ratio > high:
            return False, f"scattered: {spread}, expected a variance ratio of {high} at most"
        plain = self.plain[f"frechet_{known}"]
        relation = "below" if frechet < plain else "not below"
        return frechet < plain, (
            f"Frechet distance {frechet:.4g} with {known} patches known is {relation} the start's "
            f"{plain:.4g}; {spread}"
        )


def variance_ratio(
    made: Tensor,  # [n, C, H, W]
    real: Tensor,  # [n, C, H, W]
    classes: Tensor,  # [n]
) -> float:
    """Variance within classes, of made images over that of real ones: 0 means one image a class."""
    return float(_variance_within(made, classes) / _variance_within(real, classes))


def _variance_within(images: Tensor, classes: Tensor) -> Tensor:
    """Mean squared distance to the mean of the class."""
    flat = images.flatten(1)
    sums = torch.zeros(int(classes.max()) + 1, flat.shape[1]).index_add_(0, classes, flat)
    counts = torch.bincount(classes).clamp(min=1)[:, None]
    return (flat - (sums / counts)[classes]).square().mean()
