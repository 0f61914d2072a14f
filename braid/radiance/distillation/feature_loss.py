"""The feature loss of Stage 2: a student's penultimate features against the teacher's cells.

    penultimate features -> projector -> standardized teacher features, or
    penultimate features -> projector -> latent -> frozen VAE decoder -> standardized features.

Points where it is asked are drawn in proportion to compositing weight (`draw_points`): only what
is seen counts, as in PVD's choice of points (Fang et al. 2023). The loss of a point is weighted by
its soft boundary mask (`boundary`) and, with a VAE, by how well the VAE itself keeps that cell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from braid.radiance.features.table import CellFeatures, find_rows
from braid.radiance.features.vae import FeatureVae, channel_balance
from braid.radiance.scenes.cells import CellGrid

# ---- The soft mask that keeps feature supervision away from the faces between cells ------------
# d is the distance of a point to the nearest face of its cell in half edges: 0 on a face, 1 at the
# center. The weight rises from 0 at d = threshold to 1 at d = threshold + soft_transition as a
# smoothstep; without a transition it is the step d >= threshold.

COLLAPSED = 0.05  # mean weight below which the mask leaves next to nothing to learn from


def face_distance(
    points: Tensor,  # [P, 3], scene units
    grid: CellGrid,
) -> Tensor:
    """Distance to the nearest face of the own cell in half edges, [P] in [0, 1]."""
    place = grid.local(points)
    within = place - place.floor()
    return (1 - (2 * within - 1).abs()).amin(dim=-1)


def mask_weight(
    distance: Tensor,  # [P], half edges
    threshold: float,
    soft_transition: float,
) -> Tensor:
    """The weight of the feature loss at each point, [P] in [0, 1]."""
    if soft_transition == 0:
        return (distance >= threshold).to(distance)
    rise = ((distance - threshold) / soft_transition).clamp(0, 1)
    return rise * rise * (3 - 2 * rise)


def mask_state(mean: float) -> str:
    """`collapsed`, `saturated` (every weight is 1) or `ok`."""
    if mean < COLLAPSED:
        return "collapsed"
    return "saturated" if mean == 1.0 else "ok"


class Projector(nn.Module):
    """An MLP from student features to teacher features or to the VAE's latent."""

    def __init__(self, inputs: int, outputs: int, *, hidden: int = 256, depth: int = 2) -> None:
        """`depth` counts linear layers; a depth of 1 is one linear map."""
        super().__init__()
        sizes = [inputs, *[hidden] * (depth - 1), outputs]
        layers: list[nn.Module] = []
        for index in range(depth):
            layers += [nn.Linear(sizes[index], sizes[index + 1]), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(
        self,
        features: Tensor,  # [P, inputs]
    ) -> Tensor:
        """[P, outputs]."""
        projected: Tensor = self.layers(features)
        return projected


class FeatureMatch(NamedTuple):
    """Weighted loss terms and the mask that was applied."""

    terms: dict[str, Tensor]  # feature_l2, feature_cosine and, with a VAE, feature_latent
    mask: Tensor  # [P], boundary weight, 0 for points in cells without a teacher row


class FeatureLoss(nn.Module):
    """L2 and cosine between projected student features and the teacher's, in balanced channels.

    Channels are scaled so that every group weighs the same in the squared length; the L2 term is
    then the mean over groups of the mean squared error, and the cosine is taken in that space.
    The table, latents and gates are fixed and no part of the state.
    """

    def __init__(
        self,
        features: CellFeatures,  # whose rows and groups `standardized` has
        standardized: Tensor,  # [C, F]
        projector: Projector,  # to F, or to the VAE's latent
        mask_grid: CellGrid,  # the student's cells
        *,
        l2: float = 1.0,
        cosine: float = 0.2,
        latent: float = 1.0,  # with a VAE only
        threshold: float = 0.3,
        soft_transition: float = 0.1,
        vae: FeatureVae | None = None,
        gate_tau: float = 0.05,  # with a VAE only: its reconstruction error that halves the weight
    ) -> None:
        super().__init__()
        self.projector, self.vae = projector, vae
        self.grid, self.mask_grid = features.schema.grid, mask_grid
        self.l2, self.cosine, self.latent = l2, cosine, latent
        self.threshold, self.soft_transition = threshold, soft_transition
        root = channel_balance(features.schema.columns).to(standardized).sqrt()
        fixed = {"cells": features.cells, "standardized": standardized, "root": root}
        if vae is not None:
            vae.freeze()
            with torch.no_grad():
                fixed["latents"] = vae.encode(standardized).mean
                gap = (vae.decode(fixed["latents"]) - standardized) * root
            fixed["gate"] = reconstruction_gate(gap.square().sum(dim=-1), gate_tau)
        for name, value in fixed.items():
            self.register_buffer(name, value, persistent=False)
        self.cells: Tensor
        self.standardized: Tensor
        self.root: Tensor
        self.latents: Tensor
        self.gate: Tensor

    def rows(
        self,
        points: Tensor,  # [P, 3], scene units
    ) -> Tensor:
        """The teacher's row for each point, [P]; -1 where its cell is empty."""
        return find_rows(self.cells, self.grid.index(points))

    def predict(
        self,
        student: Tensor,  # [P, H]
    ) -> Tensor:
        """The student's view of the standardized teacher features, [P, F]."""
        projected: Tensor = self.projector(student)
        return projected if self.vae is None else self.vae.decode(projected)

    def forward(
        self,
        student: Tensor,  # [P, H], penultimate features
        points: Tensor,  # [P, 3], scene units
        weight: float,  # from the schedule, `feature_weight`
    ) -> FeatureMatch:
        """Mean over points of mask * gate * error, term by term."""
        row = self.rows(points)
        distance = face_distance(points, self.mask_grid)
        mask = mask_weight(distance, self.threshold, self.soft_transition) * (row >= 0)
        row = row.clamp_min(0)
        projected: Tensor = self.projector(student)
        if self.vae is None:
            return FeatureMatch(self._terms(projected, row, mask * weight), mask)
        share = mask * self.gate[row] * weight
        gap = (projected - self.latents[row]).square().mean(dim=-1)
        terms = self._terms(self.vae.decode(projected), row, share)
        return FeatureMatch({**terms, "feature_latent": self.latent * _mean(share * gap)}, mask)

    def _terms(self, predicted: Tensor, row: Tensor, share: Tensor) -> dict[str, Tensor]:
        predicted, target = predicted * self.root, self.standardized[row] * self.root
        square = (predicted - target).square().sum(dim=-1)
        cosine = torch.nn.functional.cosine_similarity(predicted, target, dim=-1)
        return {
            "feature_l2": self.l2 * _mean(share * square),
            "feature_cosine": self.cosine * _mean(share * (1 - cosine)),
        }


def draw_points(
    weights: Tensor,  # [S], compositing weight of each packed sample, times its ray's importance
    ray: Tensor,  # [S] int64, the ray of each sample
    alpha: Tensor,  # [R], opacity of each ray
    count: int,
    generator: torch.Generator,
    *,
    solid: float = 0.5,
) -> Tensor:
    """Samples drawn in proportion to weight on rays with alpha >= `solid`, [count] int64.

    Empty if no sample has weight there.
    """
    exact = torch.float32 if weights.device.type == "mps" else torch.float64
    cumulative = (weights * (alpha >= solid)[ray]).detach().to(exact).cumsum(0)
    if len(cumulative) == 0 or cumulative[-1] <= 0:
        return torch.empty(0, dtype=torch.int64, device=weights.device)
    u = torch.rand(count, generator=generator, device=generator.device)
    place = torch.searchsorted(cumulative, u.to(cumulative) * cumulative[-1], right=True)
    return place.clamp_max(len(cumulative) - 1)


def feature_weight(
    step: int,
    *,
    warmup: int,  # steps from 0 to 1
    decay: int,  # steps from 1 to the floor
    floor: float,
) -> float:
    """Schedule of the feature loss: linear rise to 1, then exponential decay to a floor.

    Raises:
        ValueError: a floor of 0, which the decay never reaches.
    """
    if floor <= 0:
        raise ValueError(f"feature weight: expected a floor > 0, got {floor}")
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, decay))
    return float(floor**progress)


def reconstruction_gate(
    error: Tensor,  # [C], balanced squared error of the VAE on each cell
    tau: float,
) -> Tensor:
    """1 / (1 + error / tau), [C]: inverse-variance weights, tau being the variance of the rest."""
    return 1 / (1 + error / tau)


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 for no values, still a function of them."""
    return values.sum() / max(1, len(values))
