"""How refined clips are judged: as a distribution, against their keyframes, in their motion.

Every measure is outside of the loss, and every method (interpolation, one step, many steps, other
real clips) is judged by the same ones on the same held-out clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from braid.drifting.distances import covered, energy_distance, frechet_distance, manifold
from braid.drifting.spaces import PcaSpace, RandomConvolutions

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
