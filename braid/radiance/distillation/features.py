"""Stage 2: the teacher's per-cell features beside the response.

    penultimate features -> the network's linear head -> standardized teacher features, or
    penultimate features -> the network's linear head -> latent -> frozen VAE decoder -> the same.

Heads are fitted to the student as Stage 1B left it, then trained with it. Points where features are
compared are drawn in proportion to compositing weight (`draw_points`) among those whose cell has a
teacher row: only what is seen counts, as in PVD's choice of points (Fang et al. 2023). The loss of
a point is weighted by its soft boundary mask and, with a VAE, by how well the VAE keeps that cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from braid.common.rng import generator
from braid.radiance.config import DistillConfig, VariantConfig
from braid.radiance.distillation.response import ResponseObjective
from braid.radiance.features.table import (
    FeatureSchema,
    StoredFeatures,
    apply_heads,
    channel_balance,
    explained_variance,
    find_rows,
    fit_heads,
)
from braid.radiance.features.vae import FeatureVae, load_vae
from braid.radiance.scenes.grids import CellGrid
from braid.radiance.student.marching import Marched, draw_points
from braid.radiance.student.student import Student
from braid.training.ema import Ema
from braid.training.trainer import TrainResult

# ---- The soft mask that keeps feature supervision away from where cells meet ---------------------
# What is compared with the threshold is one of two certainties in [0, 1]: the fraction of the ray's
# compositing weight in the cell where it has the most, at points of that cell, 0 at others (the
# seed's authors'); or the distance of the point to the nearest face of its cell in half edges, 0 on
# a face and 1 at the center. The weight rises from 0 at the threshold to 1 at threshold +
# soft_transition as a smoothstep; without a transition it is the step certainty >= threshold.


def weight_fraction(
    weights: Tensor,  # [M], compositing weight of each packed sample
    ray: Tensor,  # [M] int64, sorted
    cell: Tensor,  # [M] int64, the student's cell of each sample, -1 for none
    rays: int,
) -> Tensor:
    """The fraction of its ray's weight in the ray's main cell; 0 for samples of others, [M]."""
    key = ray * (int(cell.max()) + 2) + cell + 1 if len(cell) else ray
    pairs, member = torch.unique(key, return_inverse=True)
    owner = ray.new_empty(len(pairs)).index_copy_(0, member, ray)
    in_cell = weights.new_zeros(len(pairs)).index_add_(0, member, weights)
    most = weights.new_zeros(rays).scatter_reduce_(0, owner, in_cell, "amax")
    total = weights.new_zeros(rays).index_add_(0, ray, weights)
    own = in_cell[member]
    return torch.where(own == most[ray], own / total[ray].clamp_min(1e-12), 0.0)


def face_distance(
    points: Tensor,  # [P, 3], scene units
    grid: CellGrid,
) -> Tensor:
    """Distance to the nearest face of the own cell in half edges, [P] in [0, 1]."""
    place = grid.local(points)
    within = place - place.floor()
    return (1 - (2 * within - 1).abs()).amin(dim=-1)


def mask_weight(
    certainty: Tensor,  # [P] in [0, 1]
    threshold: float,
    soft_transition: float,
) -> Tensor:
    """The weight of the feature loss at each point, [P] in [0, 1]."""
    if soft_transition == 0:
        return (certainty >= threshold).to(certainty)
    rise = ((certainty - threshold) / soft_transition).clamp(0, 1)
    return rise * rise * (3 - 2 * rise)


# ---- The loss ------------------------------------------------------------------------------------


class Points(NamedTuple):
    """P points of a student where its features meet the teacher's."""

    features: Tensor  # [P, H], penultimate features
    network: Tensor  # [P] int64, the network whose cell the point lies in
    row: Tensor  # [P] int64, of the teacher's table
    certainty: Tensor  # [P] in [0, 1], what the boundary mask depends on


class FeatureLoss(nn.Module):
    """L2 and cosine between a student's and the teacher's features, in balanced channels.

    Channels are scaled so that every group weighs the same in the squared length; the L2 term is
    then the mean over groups of the mean squared error, and the cosine is taken in that space.
    The table, latents and gates are fixed and no part of the state.
    """

    def __init__(
        self,
        stored: StoredFeatures,
        heads: tuple[int, int],  # networks of the student, features of each
        config: DistillConfig,
        vae: FeatureVae | None = None,
        compared: FeatureSchema | None = None,  # of the VAE's channels; None: all
    ) -> None:
        super().__init__()
        schema, standardized = stored.features.schema, stored.standardized
        chosen = compared or schema
        (networks, width), outputs = heads, vae.sizes.latent if vae else schema.channels
        self.heads = nn.Parameter(torch.zeros(networks, width + 1, outputs))
        self.vae, self.config = vae, config
        self.columns, self.grid = chosen.columns, schema.grid
        root = channel_balance(chosen.columns).to(standardized).sqrt()
        fixed = {"cells": stored.features.cells, "root": root, "chosen": schema.index(chosen)}
        fixed["target"] = standardized[:, fixed["chosen"]]
        fixed["means"] = torch.zeros(networks, len(root))
        if vae is not None:
            vae.freeze()
            with torch.no_grad():
                fixed["latents"] = vae.encode(standardized).mean
                gap = (vae.decode(fixed["latents"])[:, fixed["chosen"]] - fixed["target"]) * root
            fixed["gate"] = reconstruction_gate(gap.square().sum(dim=-1), config.gate_tau)
        for name, value in fixed.items():
            self.register_buffer(name, value, persistent=False)
        self.cells: Tensor
        self.root: Tensor
        self.chosen: Tensor
        self.target: Tensor
        self.means: Tensor
        self.latents: Tensor
        self.gate: Tensor

    def rows(
        self,
        points: Tensor,  # [P, 3], scene units
    ) -> Tensor:
        """The teacher's row for each point, [P]; -1 where its cell is empty."""
        return find_rows(self.cells, self.grid.index(points))

    @torch.no_grad()
    def fit(self, points: Points) -> None:
        """Fit the heads, and the mean target of each network beside them."""
        count, target = len(self.heads), self.target[points.row]
        fitted = target if self.vae is None else self.latents[points.row]
        self.heads.copy_(fit_heads(points.features, fitted, points.network, count))
        self.means.copy_(fit_heads(points.features[:, :0], target, points.network, count)[:, 0])

    def predict(self, points: Points) -> Tensor:
        """The standardized teacher features as the student predicts them, [P, F]."""
        projected = apply_heads(self.heads, points.features, points.network)
        return projected if self.vae is None else self.vae.decode(projected)[:, self.chosen]

    def mask(self, points: Points) -> Tensor:
        """The boundary weight of each point, [P]."""
        return mask_weight(points.certainty, self.config.threshold, self.config.soft_transition)

    def forward(
        self,
        points: Points,
        weight: float,  # from the schedule, `feature_weight`
    ) -> dict[str, Tensor]:
        """Mean over points of mask * gate * error: feature_l2, feature_cosine, feature_latent."""
        scale = self.mask(points) * weight
        if self.vae is None:
            return self._terms(self.predict(points), points.row, scale)
        scale = scale * self.gate[points.row]
        projected = apply_heads(self.heads, points.features, points.network)
        gap = (projected - self.latents[points.row]).square().mean(dim=-1)
        decoded = self.vae.decode(projected)[:, self.chosen]
        latent = {"feature_latent": self.config.latent * _mean(scale * gap)}
        return self._terms(decoded, points.row, scale) | latent

    def _terms(self, predicted: Tensor, row: Tensor, weight: Tensor) -> dict[str, Tensor]:
        predicted, target = predicted * self.root, self.target[row] * self.root
        square = (predicted - target).square().sum(dim=-1)
        cosine = torch.nn.functional.cosine_similarity(predicted, target, dim=-1)
        return {
            "feature_l2": self.config.l2 * _mean(weight * square),
            "feature_cosine": self.config.cosine * _mean(weight * (1 - cosine)),
        }


def feature_loss(
    stored: StoredFeatures,
    student: Student,
    config: DistillConfig,
    variant: VariantConfig,
    vae: Path,  # folder of the feature VAE
) -> FeatureLoss | None:
    """The loss of a variant, its VAE read from its folder; None for one without features.

    Raises:
        ValueError: as `load_vae`.
    """
    if not variant.groups:
        return None
    heads = len(student.field.weights), student.width
    if not variant.vae:
        return FeatureLoss(stored.select(variant.groups), heads, config)
    model, part = load_vae(vae, stored)
    schema = part.features.schema
    return FeatureLoss(part, heads, config, model, schema.select(variant.groups))


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


# ---- How far a student's features agree with its teacher's --------------------------------------
# The networks of a KiloNeRF share no basis, so raw student features of different cells are not
# comparable; cosine and explained variance are of the *heads' predictions*, only the CKA is of the
# raw features.


def alignment(
    student: Tensor,  # [N, H], penultimate features
    predicted: Tensor,  # [N, F], what their heads predict, standardized units
    target: Tensor,  # [N, F], teacher features, standardized
    columns: Mapping[str, slice],  # channel groups
) -> dict[str, float]:
    """`cosine`, `cka`, `explained_variance` (mean over groups), `explained_variance_<group>`."""
    explained = explained_variance(predicted, target, columns)
    return {
        "cosine": mean_cosine(predicted, target),
        "cka": linear_cka(student, target),
        "explained_variance": sum(explained.values()) / len(explained),
        **{f"explained_variance_{group}": value for group, value in explained.items()},
    }


def mean_cosine(
    x: Tensor,  # [N, F]
    y: Tensor,  # [N, F]
) -> float:
    """Mean cosine between rows."""
    return float(torch.nn.functional.cosine_similarity(x, y, dim=-1).mean())


def linear_cka(
    x: Tensor,  # [N, H]
    y: Tensor,  # [N, F]
) -> float:
    """Linear centered kernel alignment (Kornblith et al. 2019), in [0, 1].

    1 for features equal up to rotation, shift and scale; 0 where either does not vary. Independent
    features of N rows score about sqrt(H F) / N, not 0.
    """
    x, y = (m.cpu().double() - m.cpu().double().mean(dim=0) for m in (x, y))
    cross, own_x, own_y = (torch.linalg.matrix_norm(m) for m in (y.T @ x, x.T @ x, y.T @ y))
    scale = float(own_x * own_y)
    return float(cross**2) / scale if scale > 0 else 0.0


# ---- The objective -------------------------------------------------------------------------------


class FeatureObjective(nn.Module):
    """The response, and the teacher's features at visible points on its rays.

    Without features it is the response alone: the control that trains for as many steps.
    """

    def __init__(
        self,
        response: ResponseObjective,
        features: FeatureLoss | None,
        config: DistillConfig,
    ) -> None:
        super().__init__()
        self.response, self.features, self.config = response, features, config
        self.diagnostics: dict[str, float | Tensor] = {}
        self.before: dict[str, float] = {}  # explained variance before training

    @property
    def field(self) -> nn.Module:
        """The student's field."""
        return self.response.field

    def forward(self, step: int, draws: torch.Generator) -> dict[str, Tensor]:
        """The weighted terms of one step."""
        if self.features is None:
            terms = self.response(step, draws)
            self.diagnostics = self.response.diagnostics
            return terms
        terms, marched, importance = self.response.march_batch(draws, features=True)
        points = self._points(self.features, marched, importance, draws, self.config.points)
        weight = self.weight(step)
        mask = self.features.mask(points)
        mask = mask if len(mask) else mask.new_zeros(1)
        low, high = torch.quantile(mask.float(), mask.new_tensor([0.05, 0.95]).float())
        self.diagnostics = {
            **self.response.diagnostics,
            "feature_weight": weight,
            "feature_mask_weight_mean": mask.mean(),
            "feature_mask_weight_p05": low,
            "feature_mask_weight_p95": high,
        }
        return {**terms, **self.features(points, weight)}

    def weight(self, step: int) -> float:
        """Of the feature loss at a step."""
        steps = self.config.steps
        warmup, decay = int(self.config.warmup * steps), int(self.config.decay * steps)
        return feature_weight(step, warmup=warmup, decay=decay, floor=self.config.floor)

    def _points(
        self,
        loss: FeatureLoss,
        marched: Marched,
        importance: Tensor,  # [R]
        draws: torch.Generator,
        count: int,
    ) -> Points:
        """Points drawn among the marched samples whose cell has a teacher row."""
        samples, weights = marched.samples, marched.weights.detach()
        row, cell = loss.rows(samples.points), self.response.student.grid.index(samples.points)
        wanted = weights * importance[samples.ray] * (row >= 0)
        chosen = draw_points(wanted, samples.ray, marched.alpha.detach(), count, draws)
        place = samples.points[chosen]
        if self.config.mask == "face":
            certainty = face_distance(place, self.response.student.grid)
        else:
            fraction = weight_fraction(weights, samples.ray, cell, len(marched.alpha))
            certainty = fraction[chosen]
        network = self.response.student.field.network_of_cell.view(-1)[cell[chosen]]
        return Points(marched.field.features[chosen], network, row[chosen], certainty)

    @torch.no_grad()
    def fresh_points(self, loss: FeatureLoss, draws: torch.Generator, batches: int) -> Points:
        """Points of batches of rays of their own; measuring must not move the sampler's errors."""
        training = self.response.training
        self.response.eval()
        parts = []
        for _ in range(batches):
            _, marched, importance = self.response.march_batch(draws, features=True)
            count = 4 * self.config.points  # more of a batch than a step takes
            parts.append(self._points(loss, marched, importance, draws, count))
        self.response.train(training)
        return Points(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def fit_heads(self, seed: int) -> None:
        """Fit the heads to the student as it is; nothing to do without features."""
        if self.features is not None:
            draws = generator(seed, "heads", device=self.response.field.weights.device)
            self.features.fit(self.fresh_points(self.features, draws, self.config.head_batches))
            self.before = self.alignment(seed)

    @torch.no_grad()
    def alignment(self, seed: int) -> dict[str, float]:
        """Agreement of the student's features with the teacher's at freshly drawn points.

        Beside it the explained variance of the networks' mean targets, which need no feature, and
        that before training. Empty where the student shows nothing solid in any cell of the
        teacher's.

        Raises:
            ValueError: the objective has no features.
        """
        if self.features is None:
            raise ValueError("alignment: this objective compares no features")
        draws = generator(seed, "alignment", device=self.response.field.weights.device)
        points = self.fresh_points(self.features, draws, batches=1)
        if len(points.row) == 0:
            return {}
        target, means = self.features.target[points.row], self.features.means[points.network]
        columns = self.features.columns
        figures = alignment(points.features, self.features.predict(points), target, columns)
        alone = explained_variance(means, target, columns)
        first = self.before.get("explained_variance", figures["explained_variance"])
        return figures | {
            "explained_variance_by_network": sum(alone.values()) / len(alone),
            "explained_variance_before": first,
        }


class AlignmentProbe:
    """A training hook that measures alignment three times, of the averages where they are kept."""

    FRACTIONS = (0.2, 0.6, 1.0)  # of the steps

    def __init__(self, steps: int, seed: int) -> None:
        self.due = {max(1, round(fraction * steps)) for fraction in self.FRACTIONS}
        self.seed = seed

    def __call__(
        self, step: int, objective: nn.Module, ema: Ema | None = None
    ) -> dict[str, float] | None:
        """A row of figures at the steps that are due; none where no features are compared."""
        if step not in self.due or not isinstance(objective, FeatureObjective):
            return None
        if objective.features is None:
            return None
        with ema.applied(objective) if ema else nullcontext():
            return objective.alignment(self.seed)


# ---- Curves that Stage 2 alone has, by what is drawn together ------------------------------------

Curve = list[dict[str, float]]
CURVES = {
    "feature_loss": ("step", "feature_weight", "feature_l2", "feature_cosine", "feature_latent"),
    "feature_mask": (
        "step",
        "feature_mask_weight_mean",
        "feature_mask_weight_p05",
        "feature_mask_weight_p95",
    ),
    "gradient_norms": (
        "step",
        "gradient_norm_color",
        "gradient_norm_opacity",
        "gradient_norm_depth",
        "gradient_norm_feature_l2",
        "gradient_norm_feature_cosine",
        "gradient_norm_feature_latent",
    ),
    "alignment": ("step", "cosine", "cka", "explained_variance"),
}


def feature_curves(result: TrainResult) -> Iterator[tuple[str, Curve, tuple[str, ...]]]:
    """(name, rows, columns that are there without rows) of each curve of a training.

    Steps of which nothing was logged are left out: of the control, all.
    """
    for name, columns in CURVES.items():
        rows = result.probes.get(name) or _select(result.history, columns)
        yield name, rows, columns


def _select(history: Curve, columns: Sequence[str]) -> Curve:
    rows = [{column: row[column] for column in columns if column in row} for row in history]
    return [row for row in rows if set(row) != {"step"}]
