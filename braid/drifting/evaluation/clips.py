"""How refined clips are evaluated: as a distribution, against their keyframes, in their motion.

Every measure is outside of the loss, and every method (interpolation, one step, many steps, other
real clips) is scored by the same ones on the same held-out clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.drifting.config import CorruptionConfig
from braid.drifting.interpolation.interpolation import METHODS, interpolate
from braid.drifting.interpolation.keyframes import level_counts, nested_masks
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import Refiner
from braid.drifting.video.sampling import cold_sample, refine
from braid.metrics.distances import covered, energy_distance, frechet_distance, manifold
from braid.metrics.spaces import PcaSpace, RandomConvolutions

NEIGHBORS = 5  # of precision, recall, density, coverage, as in Naeem et al.
FRECHET_RATIO = 0.7  # of refined to interpolated that counts as a success
PAIRED_RATIO = 1.25  # of the paired error that counts as off the mark

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Completion:
    """The clips of one method and what they cost."""

    clips: Tensor  # [n, C, T, H, W]
    calls: int  # of a network, a clip
    milliseconds: float  # a clip, on this machine


def complete(
    truth: Tensor,  # [n, C, T, H, W] held-out clips
    classes: Tensor,  # [n]
    corruption: Corruption,
    refiner: Refiner,
    paired: Refiner,
    alpha: float,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Completion]]:
    """Fill clips in between evenly placed keyframes of the coarsest level, by each method.

    `interpolated` is the start of all others. `refined` is one step of the drifting refiner with
    the given keyframes clamped, `unclamped` the same without; `paired` one step of the refiner
    trained by regression, `cold` that refiner from level to level.

    Returns:
        The given keyframes, [n, T] bool, and the methods' clips.
    """
    ids, levels = torch.arange(len(truth)), corruption.levels
    masks = nested_masks(len(truth), truth.shape[2], corruption.counts, None)
    start = corruption.impute(truth, masks[-1], ids, generator)
    methods: dict[str, tuple[int, Callable[[], Tensor]]] = {
        "refined": (1, lambda: refine(refiner, start, classes, levels, alpha, clamp=True)),
        "unclamped": (1, lambda: refine(refiner, start, classes, levels, alpha, clamp=False)),
        "paired": (1, lambda: refine(paired, start, classes, levels, 1.0, clamp=True)),
        "cold": (
            levels,
            lambda: cold_sample(paired, corruption, truth, masks, classes, 1.0, generator),
        ),
    }
    completions = {"interpolated": Completion(start.latents, 0, 0.0)}
    for name, (calls, run) in methods.items():
        started = time.perf_counter()
        clips = run()
        milliseconds = 1000 * (time.perf_counter() - started) / len(truth)
        completions[name] = Completion(clips, calls, milliseconds)
    return start.mask, completions


def costs(completions: Mapping[str, Completion]) -> dict[str, float]:
    """What the clock says of each method."""
    return {f"milliseconds_{name}": one.milliseconds for name, one in completions.items()}


class ClipEvaluator:
    """Scores clips against held-out real ones."""

    def __init__(
        self,
        truth: Tensor,  # [n, C, T, H, W] held-out clips
        mask: Tensor,  # [n, T] true at given keyframes
        classes: NDArray[np.int64],  # [n] pseudo-classes
        convolutions: RandomConvolutions,
        pca: PcaSpace,
        device: torch.device,
    ) -> None:
        self.truth, self.mask, self.classes = truth, mask, classes
        self.convolutions, self.pca = convolutions.to(device), pca
        self.real = convolutions.points(truth)
        self.real_pca = pca.points(truth)

    def compare(
        self,
        completions: Mapping[str, Completion],
        real: Tensor,  # [N, C, T, H, W] other real clips
        generator: torch.Generator,  # of the choice among them
    ) -> dict[str, dict[str, float]]:
        """Figures of each method, and as `real` how far a sample of real clips is from another."""
        figures = {
            name: {**self.distances(completion.clips), **self.errors(completion.clips)}
            for name, completion in completions.items()
        }
        chosen = torch.randperm(len(real), generator=generator)[: len(self.truth)]
        return {**figures, "real": self.distances(real[chosen])}

    def distances(self, clips: Tensor) -> dict[str, float]:
        """How far clips [n, C, T, H, W] are from the held-out ones as a distribution."""
        points, pca = self.convolutions.points(clips), self.pca.points(clips)
        hit = covered(self.real, points, NEIGHBORS)
        by_class = [hit[self.classes == label].mean() for label in np.unique(self.classes)]
        return {
            "frechet": frechet_distance(self.real, points),
            "frechet_pca": frechet_distance(self.real_pca, pca),
            "energy": energy_distance(self.real, points),
            "energy_pca": energy_distance(self.real_pca, pca),
            **manifold(self.real, points, NEIGHBORS),
            "class_coverage": float(np.mean(by_class)),
            **self._motion(clips),
        }

    def errors(self, clips: Tensor) -> dict[str, float]:
        """How far clips are from the very clips that their keyframes were taken from."""
        error = (clips - self.truth).square().mean(dim=(1, 3, 4))
        return {
            "mse_missing": float(error[~self.mask].mean()),
            "mse_all": float(error.mean()),
            "keyframe_mse": float(error[self.mask].mean()),
        }

    def _motion(self, clips: Tensor) -> dict[str, float]:
        """Energy of frame-to-frame differences and of their changes, over the truth's."""
        steps, real = clips.diff(dim=2), self.truth.diff(dim=2)
        acceleration = steps.diff(dim=2).square().mean() / real.diff(dim=2).square().mean()
        return {
            "motion_energy": float(steps.square().mean() / real.square().mean()),
            "acceleration_energy": float(acceleration),
        }


def headline(figures: Mapping[str, Figures]) -> dict[str, Any]:
    """Of the figures of each method those that a reader compares first, and the status."""
    shown = {
        "frechet": ("frechet", ("refined", "interpolated", "paired", "real")),
        "energy": ("energy", ("refined", "interpolated")),
        "mse": ("mse_missing", ("refined", "interpolated")),
    }
    values = {
        name: {method: figures[method][measure] for method in methods}
        for name, (measure, methods) in shown.items()
    }
    return {**values, "status": drift_status(figures["interpolated"], figures["refined"])}


def methods_table(figures: Mapping[str, Figures], clips: int) -> list[dict[str, Any]]:
    """A row for each method: of how many clips, and all figures."""
    return [{"method": method, "clips": clips, **row} for method, row in figures.items()]


def drift_status(interpolated: Figures, refined: Figures) -> str:
    """`ok`, or what is wrong with refined clips, worst first."""
    if refined["recall"] < 0.5 * interpolated["recall"]:
        return "collapsed"
    if refined["frechet"] > FRECHET_RATIO * interpolated["frechet"]:
        return "no_better_than_interpolation"
    if refined["frechet_pca"] >= interpolated["frechet_pca"]:
        return "worse_in_pca"
    if refined["mse_missing"] > PAIRED_RATIO * interpolated["mse_missing"]:
        return "off_the_mark"
    return "ok"


def interpolation_table(
    truth: Tensor,  # [n, C, T, H, W]
    config: CorruptionConfig,
) -> list[dict[str, float]]:
    """Mean squared errors of all interpolators at evenly placed keyframes, a row a level.

    Levels count from 1: at level 0 nothing is missing. A row has `keyframes` and, for each
    interpolator, `<name>_mse_missing` over the missing frames and `<name>_mse_all` over all.
    """
    counts = level_counts(truth.shape[2], config)
    rows: list[dict[str, float]] = []
    masks = nested_masks(len(truth), truth.shape[2], counts, None).to(truth.device)
    for level, mask in list(enumerate(masks))[1:]:
        row: dict[str, float] = {"level": level, "keyframes": counts[level]}
        for method in METHODS:
            settings = config.model_copy(update={"interpolator": method})
            error = (interpolate(truth, mask, settings) - truth).square().mean((1, 3, 4))
            row[f"{method}_mse_missing"] = float(error[~mask].mean())
            row[f"{method}_mse_all"] = float(error.mean())
        rows.append(row)
    return rows


def clips_of_many_classes(classes: Tensor, count: int) -> list[int]:
    """The first clips [count] at most, no two of one class while there are others."""
    before: dict[int, int] = {}
    turns = []
    for label in classes.tolist():
        turns.append(before.get(label, 0))
        before[label] = turns[-1] + 1
    order = sorted(range(len(turns)), key=lambda clip: (turns[clip], clip))
    return order[:count]
