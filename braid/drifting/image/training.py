"""What a refiner of images is trained for, and how good it is by measures outside its loss.

The drifting loss is normalized and does not fall, and a collapsed generator has as low a loss as a
good one. Every so often validation images of each level are refined with averaged weights and
compared with the real ones: Frechet distance, recall, and how much images of one class differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from braid.common.rng import generator
from braid.drifting.config import DriftBatchesConfig, DriftLossConfig, ImageTrainingConfig
from braid.drifting.image.corruption import KeypatchCorruption
from braid.drifting.image.refiner import ImageRefiner
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.training.objectives import (
    Branch,
    DriftObjective,
    Refinement,
    compile_deterministic,
)
from braid.drifting.video.refiner import refine
from braid.metrics.distances import (
    RECALL,
    VARIANCE,
    PcaSpace,
    frechet_distance,
    manifold,
    spread_failure,
    variance_ratio,
)
from braid.training.ema import Ema
from braid.training.trainer import Run

OUTER_LAYERS = ("refiner.embed", "refiner.squeeze", "refiner.out")  # of the objective below

Figures = dict[str, float]  # frechet, recall, variance_ratio


class Images(Protocol):
    """A set of images."""

    conditions: Tensor  # [N] the class of each image

    def indices(self, split: str) -> NDArray[np.int64]:
        """The images of a split."""

    def images(self, indices: Tensor) -> Tensor:
        """Images [B, C, H, W]."""


def image_objective(
    refiner: ImageRefiner,
    corruption: KeypatchCorruption,
    images: Images,
    branches: Mapping[str, Branch],  # of `image_branches`
    loss: DriftLossConfig,
    batches: DriftBatchesConfig,
    config: ImageTrainingConfig,
    run: Run,
) -> DriftObjective:
    """Drifting, one level a class in a step: mixed, levels would only make up for one another.

    The refiner is compiled where its config says so.
    """
    training = torch.from_numpy(images.indices("train"))
    if config.compile:
        compile_deterministic(refiner)
    return DriftObjective(
        refiner.to(run.device),
        corruption,
        lambda positions: images.images(training[positions]),
        images.conditions[training],
        batches,
        branches=branches,
        loss=DriftLoss(loss),
        log_every=run.log_every,
        level_of="class",
    )


class ImageProbe:
    """A hook of the step loop that evaluates refined validation images, level by level.

    A row has `frechet_<given>`, `recall_<given>` and `variance_ratio_<given>` for the number of
    patches that are given at each level; given 0 is generation.
    """

    def __init__(
        self,
        truth: Tensor,  # [n, C, H, W] validation images
        classes: Tensor,  # [n]
        corruption: KeypatchCorruption,
        space: PcaSpace,  # of training images
        neighbors: int,  # of recall
        config: ImageTrainingConfig,
        seed: int,
    ) -> None:
        self.truth, self.classes, self.counts = truth, classes, corruption.counts
        self.space, self.neighbors = space, neighbors
        self.every = min(config.validate_every, config.steps)
        ids, draw = torch.arange(len(truth)), generator(seed, "validation")
        self.corrupted = {
            level: corruption(truth, torch.full_like(ids, level), ids, draw)
            for level in range(1, corruption.levels + 1)
        }
        self.real = self.space.points(truth)
        self.interpolated = {
            self.counts[level]: self.figures(corruption.interpolate(truth, corrupted.mask))
            for level, corrupted in self.corrupted.items()
        }

    def __call__(self, done: int, objective: nn.Module, ema: Ema | None) -> Figures | None:
        """Figures of the validation images, when they are due."""
        if done % self.every or not isinstance(objective, Refinement):
            return None
        if ema is None:
            levels = self.evaluate(objective.refiner)
        else:
            with ema.applied(objective):
                levels = self.evaluate(objective.refiner)
        return {
            f"{measure}_{given}": value
            for given, figures in levels.items()
            for measure, value in figures.items()
        }

    def evaluate(self, refiner: nn.Module) -> dict[int, Figures]:
        """Refine the validation images of all levels; their figures by the given patches."""
        return {
            self.counts[level]: self.figures(
                refine(refiner, corrupted, self.classes, level, alpha=1.0)
            )
            for level, corrupted in self.corrupted.items()
        }

    def figures(self, images: Tensor) -> Figures:
        """What images [n, C, H, W] in the place of the validation images score."""
        points = self.space.points(images)
        return {
            "frechet": frechet_distance(self.real, points),
            "recall": manifold(self.real, points, self.neighbors)["recall"],
            "variance_ratio": variance_ratio(images, self.truth, self.classes),
        }

    def rows(
        self, refined: Mapping[int, Figures], objective: DriftObjective
    ) -> list[dict[str, Any]]:
        """A row for each level and method, `interpolated` and `refined`."""
        size = sum(weights.numel() for weights in objective.refiner.parameters())
        counts = {"parameters": size, "classes": len(objective.sampler.occupied)}
        rows: list[dict[str, Any]] = []
        for given, figures in refined.items():
            plain = {"given": given, "method": "interpolated", **self.interpolated[given]}
            rows += [plain, {"given": given, "method": "refined", **figures, **counts}]
        return rows

    def metrics(self, refined: Mapping[int, Figures]) -> dict[str, Any]:
        """The headline: Frechet distance and recall (None if noise is no level), and the status."""
        generated = refined.get(0, {})
        return {
            "frechet": {"generated": generated.get("frechet")},
            "recall": generated.get("recall"),
            "status": self.status(refined)[0],
        }

    def status(self, refined: Mapping[int, Figures]) -> tuple[str, str]:
        """`passed` or what is wrong with the coarsest level, and a line with the figures behind it.

        It must neither repeat itself nor scatter, and come nearer to real images than its start.
        """
        given, (low, high) = self.counts[-1], VARIANCE
        figures, start = refined[given], self.interpolated[given]["frechet"]
        frechet, recall, ratio = figures["frechet"], figures["recall"], figures["variance_ratio"]
        spread = f"variance ratio {ratio:.3g}, recall {recall:.3g}"
        failure = spread_failure(recall, ratio)
        if failure:
            expected = f"expected a variance ratio of {low} to {high} and a recall of {RECALL}"
            return failure, f"{failure}: {spread}, {expected}"
        passed = frechet < start
        relation = "below" if passed else "not below"
        return "passed" if passed else "no_better_than_start", (
            f"Frechet distance {frechet:.4g} with {given} patches given is {relation} the start's "
            f"{start:.4g}; {spread}"
        )
