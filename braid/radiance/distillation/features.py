"""Stage 2: the teacher's per-cell features beside the response.

    penultimate features -> projector -> standardized teacher features, or
    penultimate features -> projector -> latent -> frozen VAE decoder -> standardized features.

Points where they are compared are drawn in proportion to compositing weight (`draw_points`): only
what is seen counts, as in PVD's choice of points (Fang et al. 2023). The loss of a point is
weighted by its soft boundary mask and, with a VAE, by how well the VAE itself keeps that cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from braid.common.rng import generator
from braid.radiance.config import DistillConfig
from braid.radiance.distillation.response import ResponseObjective
from braid.radiance.features.table import StoredFeatures, find_rows
from braid.radiance.features.vae import FeatureVae, channel_balance, explained_variance
from braid.radiance.scenes.cells import CellGrid
from braid.radiance.student.marching import Marched
from braid.training.ema import Ema
from braid.training.trainer import TrainResult

# ---- The soft mask that keeps feature supervision away from the faces between cells --------------
# d is the distance of a point to the nearest face of its cell in half edges: 0 on a face, 1 at the
# center. The weight rises from 0 at d = threshold to 1 at d = threshold + soft_transition as a
# smoothstep; without a transition it is the step d >= threshold.


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


# ---- The loss ------------------------------------------------------------------------------------


class Projector(nn.Module):
    """An MLP from student features to teacher features or to the VAE's latent."""

    def __init__(self, inputs: int, outputs: int, *, hidden: int, depth: int) -> None:
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
        stored: StoredFeatures,
        width: int,  # of the student's features
        mask_grid: CellGrid,  # the student's cells
        config: DistillConfig,
        vae: FeatureVae | None = None,
    ) -> None:
        super().__init__()
        schema, standardized = stored.features.schema, stored.standardized
        self.projector = Projector(
            width,
            vae.sizes.latent if vae else schema.channels,
            hidden=config.projector_hidden,
            depth=config.projector_depth,
        )
        self.vae, self.config = vae, config
        self.columns, self.grid, self.mask_grid = schema.columns, schema.grid, mask_grid
        root = channel_balance(schema.columns).to(standardized).sqrt()
        fixed = {"cells": stored.features.cells, "standardized": standardized, "root": root}
        if vae is not None:
            vae.freeze()
            with torch.no_grad():
                fixed["latents"] = vae.encode(standardized).mean
                gap = (vae.decode(fixed["latents"]) - standardized) * root
            fixed["gate"] = reconstruction_gate(gap.square().sum(dim=-1), config.gate_tau)
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
        """The standardized teacher features as the student predicts them, [P, F]."""
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
        mask = mask_weight(distance, self.config.threshold, self.config.soft_transition)
        mask = mask * (row >= 0)
        row = row.clamp_min(0)
        projected: Tensor = self.projector(student)
        if self.vae is None:
            return FeatureMatch(self._terms(projected, row, mask * weight), mask)
        gated = mask * self.gate[row] * weight
        gap = (projected - self.latents[row]).square().mean(dim=-1)
        terms = self._terms(self.vae.decode(projected), row, gated)
        latent = self.config.latent * _mean(gated * gap)
        return FeatureMatch({**terms, "feature_latent": latent}, mask)

    def _terms(self, predicted: Tensor, row: Tensor, weight: Tensor) -> dict[str, Tensor]:
        predicted, target = predicted * self.root, self.standardized[row] * self.root
        square = (predicted - target).square().sum(dim=-1)
        cosine = torch.nn.functional.cosine_similarity(predicted, target, dim=-1)
        return {
            "feature_l2": self.config.l2 * _mean(weight * square),
            "feature_cosine": self.config.cosine * _mean(weight * (1 - cosine)),
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


# ---- How far a student's features agree with its teacher's --------------------------------------
# The networks of a KiloNeRF share no basis, so raw student features of different cells are not
# comparable; cosine and explained variance are of the *projector's predictions*, only the CKA is of
# the raw features.


def alignment(
    student: Tensor,  # [N, H], penultimate features
    predicted: Tensor,  # [N, F], their projection, standardized units
    target: Tensor,  # [N, F], teacher features, standardized
    columns: Mapping[str, slice],  # channel groups
) -> dict[str, float]:
    """`cosine`, `cka` and `explained_variance_<group>`."""
    explained = explained_variance(predicted, target, columns)
    return {
        "cosine": mean_cosine(predicted, target),
        "cka": linear_cka(student, target),
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
        chosen = self._draw(marched, importance, draws)
        weight = self.weight(step)
        match = self.features(
            marched.field.features[chosen], marched.samples.points[chosen], weight
        )
        mask = match.mask if len(match.mask) else match.mask.new_zeros(1)
        self.diagnostics = {
            **self.response.diagnostics,
            "feature_weight": weight,
            "feature_mask_weight_mean": mask.mean(),
            "feature_mask_weight_min": mask.min(),
            "feature_mask_weight_max": mask.max(),
        }
        return {**terms, **match.terms}

    def weight(self, step: int) -> float:
        """Of the feature loss at a step."""
        steps = self.config.steps
        warmup, decay = int(self.config.warmup * steps), int(self.config.decay * steps)
        return feature_weight(step, warmup=warmup, decay=decay, floor=self.config.floor)

    def _draw(self, marched: Marched, importance: Tensor, draws: torch.Generator) -> Tensor:
        ray = marched.samples.ray
        weights = marched.weights.detach() * importance[ray]
        return draw_points(weights, ray, marched.alpha.detach(), self.config.points, draws)

    @torch.no_grad()
    def alignment(self, draws: torch.Generator) -> dict[str, float]:
        """Agreement of the student's features with the teacher's at freshly drawn points.

        Empty where the student shows nothing solid in any cell of the teacher's.

        Raises:
            ValueError: the objective has no features.
        """
        if self.features is None:
            raise ValueError("alignment: this objective compares no features")
        training = self.response.training
        self.response.eval()  # measuring must not move the sampler's errors
        _, marched, importance = self.response.march_batch(draws, features=True)
        self.response.train(training)
        chosen = self._draw(marched, importance, draws)
        row = self.features.rows(marched.samples.points[chosen])
        if not (row >= 0).any():
            return {}
        student = marched.field.features[chosen][row >= 0]
        target = self.features.standardized[row[row >= 0]]
        return alignment(student, self.features.predict(student), target, self.features.columns)


class AlignmentProbe:
    """A training hook that measures alignment three times."""

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
        return objective.alignment(generator(self.seed, "alignment"))


# ---- Curves that Stage 2 alone has, by what is drawn together ------------------------------------

Curve = list[dict[str, float]]
CURVES = {
    "feature_loss": ("step", "feature_weight", "feature_l2", "feature_cosine", "feature_latent"),
    "feature_mask": (
        "step",
        "feature_mask_weight_mean",
        "feature_mask_weight_min",
        "feature_mask_weight_max",
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
    "alignment": ("step", "cosine", "cka"),
}


def feature_curves(result: TrainResult) -> Iterator[tuple[str, Curve, tuple[str, ...]]]:
    """(name, rows, columns that are there without rows) of each curve of a training.

    Steps of which nothing was logged are left out: of the control all but the gradient norms.
    """
    for name, columns in CURVES.items():
        rows = result.probes.get(name) or _select(result.history, columns)
        yield name, rows, columns


def _select(history: Curve, columns: Sequence[str]) -> Curve:
    rows = [{column: row[column] for column in columns if column in row} for row in history]
    return [row for row in rows if set(row) != {"step"}]
