"""How refined clips are judged: as a distribution, against their keyframes, in their motion.

Every measure is outside of the loss, and every method (interpolation, one step, many steps, other
real clips) is judged by the same ones on the same held-out clips.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.drifting.interpolation.keyframes import nested_masks
from braid.drifting.video.corruption import Corruption, interpolation_errors
from braid.drifting.video.refiner import Refiner
from braid.drifting.video.sampling import cold_sample, refine
from braid.metrics.distances import covered, energy_distance, frechet_distance, manifold
from braid.metrics.spaces import PcaSpace, RandomConvolutions

# ---- Every way of filling in a clip between its keyframes, on the same held-out clips ----------


@dataclass(frozen=True)
class Made:
    """The clips of one method and what they cost."""

    clips: Tensor  # [n, C, T, H, W]
    calls: int  # of a network, a clip
    milliseconds: float  # a clip, on this machine


def compare(
    truth: Tensor,  # [n, C, T, H, W] held-out clips
    classes: Tensor,  # [n]
    corruption: Corruption,
    refiner: Refiner,
    paired: Refiner,
    alpha: float,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Made]]:
    """Clips from evenly placed keyframes of the coarsest level, and what each method makes of them.

    `interpolated` is the start of all others. `refined` is one step of the drifting refiner with
    the given keyframes clamped, `unclamped` the same without; `paired` one step of the refiner
    trained by regression, `cold` that refiner from level to level.
    """
    ids, levels = torch.arange(len(truth)), corruption.levels
    masks = nested_masks(len(truth), truth.shape[2], corruption.counts, None)
    corrupted = corruption.impute(truth, masks[-1], ids, generator)

    def one_step(model: Refiner, clamp: bool, guidance: float) -> Callable[[], Tensor]:
        def run() -> Tensor:
            model.clamp = clamp
            return refine(model, corrupted, classes, levels, guidance)

        return run

    def cold() -> Tensor:
        paired.clamp = True
        return cold_sample(paired, corruption, truth, masks, classes, 1.0, generator)

    made = {"interpolated": Made(corrupted.latents, 0, 0.0)}
    for name, calls, run in (
        ("refined", 1, one_step(refiner, True, alpha)),
        ("unclamped", 1, one_step(refiner, False, alpha)),
        ("paired", 1, one_step(paired, True, 1.0)),
        ("cold", levels, cold),
    ):
        started = time.perf_counter()
        clips = run()
        made[name] = Made(clips, calls, 1000 * (time.perf_counter() - started) / len(truth))
    return corrupted.mask, made


def interpolation_table(
    truth: Tensor,  # [n, C, T, H, W]
    corruptions: Sequence[Corruption],  # one for each interpolator
) -> list[dict[str, float]]:
    """A row a level: its keyframes, `<interpolator>_mse_missing` and `<interpolator>_mse_all`."""
    rows: dict[float, dict[str, float]] = {}
    for each in corruptions:
        for error in interpolation_errors(truth, each.counts, each.interpolator, each.settings):
            level, keyframes = float(error["level"]), float(error["keyframes"])
            row = rows.setdefault(level, {"level": level, "keyframes": keyframes})
            for measure in ("mse_missing", "mse_all"):
                row[f"{each.interpolator}_{measure}"] = float(error[measure])
    return list(rows.values())


def clips_of_many_classes(classes: Tensor, count: int) -> list[int]:
    """The first clips [count] at most, no two of one class while there are others."""
    seen: dict[int, int] = {}
    turns = []
    for each in classes.tolist():
        turns.append(seen.get(each, 0))
        seen[each] = turns[-1] + 1
    order = sorted(range(len(turns)), key=lambda clip: (turns[clip], clip))
    return order[:count]


NEIGHBOURS = 5  # of precision, recall, density, coverage, as in Naeem et al.
FRECHET_RATIO = 0.7  # of refined to interpolated that counts as a success
PAIRED_RATIO = 1.25  # of the paired error that counts as off the mark


class Judge:
    """Scores clips against held-out real ones."""

    def __init__(
        self,
        truth: Tensor,  # [n, C, T, H, W] held-out clips
        mask: Tensor,  # [n, T] true at given keyframes
        classes: NDArray[np.int64],  # [n] pseudo-classes
        convolutions: RandomConvolutions,
        pca: PcaSpace,
    ) -> None:
        self.truth, self.mask, self.classes = truth, mask, classes
        self.convolutions, self.pca = convolutions, pca
        self.real = convolutions.points(truth)
        self.real_pca = pca.points(truth)

    def distances(self, clips: Tensor) -> dict[str, float]:
        """How far clips [n, C, T, H, W] are from the held-out ones as a distribution."""
        points, pca = self.convolutions.points(clips), self.pca.points(clips)
        hit = covered(self.real, points, NEIGHBOURS)
        by_class = [hit[self.classes == each].mean() for each in np.unique(self.classes)]
        return {
            "frechet": frechet_distance(self.real, points),
            "frechet_pca": frechet_distance(self.real_pca, pca),
            "energy": energy_distance(self.real, points),
            "energy_pca": energy_distance(self.real_pca, pca),
            **manifold(self.real, points, NEIGHBOURS),
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
        """Energy of frame-to-frame differences and of their changes, as shares of the truth's."""
        made, real = clips.diff(dim=2), self.truth.diff(dim=2)
        acceleration = made.diff(dim=2).square().mean() / real.diff(dim=2).square().mean()
        return {
            "motion_energy": float(made.square().mean() / real.square().mean()),
            "acceleration_energy": float(acceleration),
        }


def drift_status(interpolated: Mapping[str, float], refined: Mapping[str, float]) -> str:
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


def flattened(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`<measure>_<method>` for every method's measures."""
    return {
        f"{measure}_{method}": value
        for method, figures in methods.items()
        for measure, value in figures.items()
    }
