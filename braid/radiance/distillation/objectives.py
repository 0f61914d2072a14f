"""What a student is trained on: Stage 1B (response) and Stage 2 (response and features).

An objective is a module whose `forward(step, generator)` draws a batch and returns named weighted
loss terms; the loss is their sum. `diagnostics` holds scalars of the last step for the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from braid.common.rng import generator
from braid.radiance.distillation.feature_loss import FeatureLoss, draw_points, feature_weight
from braid.radiance.features.vae import alignment
from braid.radiance.scenes.occupancy import FieldPoints
from braid.radiance.scenes.renders import RaySampler, Renders, effective_sample_size, hard_share
from braid.radiance.student.marching import Marched, march
from braid.radiance.student.student import Student
from braid.training.ema import Ema

# ---- The response loss: what a student's rays should look like, given the teacher's (Stage 1B)


class Response(Protocol):
    """What is seen along R rays."""

    @property
    def rgb(self) -> Tensor:
        """Premultiplied color, [R, 3]."""

    @property
    def alpha(self) -> Tensor:
        """Opacity, [R]."""

    @property
    def depth(self) -> Tensor:
        """Expected distance along the unit ray, [R]."""


class ResponseTerms(NamedTuple):
    """Weighted loss terms, and the error that decides where to look next."""

    terms: dict[str, Tensor]  # color, opacity, depth; the loss is their sum
    error: Tensor  # [R], color error of each ray, detached


class ResponseLoss:
    """Color L2 over a random background + opacity L1 + depth smooth L1 where the teacher is solid.

    Every term is a mean over rays of weight * error, so that importance weights 1 / (N p) keep it
    unbiased. Depth errors are in units of `scale` and count where the teacher's alpha exceeds
    `solid`; its depth in front of nothing means nothing.
    """

    def __init__(
        self,
        *,
        color: float = 1.0,
        opacity: float = 0.3,
        depth: float = 0.05,
        scale: float = 1.0,  # scene units
        solid: float = 0.6,
    ) -> None:
        self.color, self.opacity, self.depth = color, opacity, depth
        self.scale, self.solid = scale, solid

    def __call__(
        self,
        student: Response,
        teacher: Response,
        background: Tensor,  # [R, 3] in [0, 1], the same behind both
        weight: Tensor,  # [R], importance
    ) -> ResponseTerms:
        """The terms of a batch of rays."""
        alpha_gap = student.alpha - teacher.alpha
        color_gap = student.rgb - teacher.rgb - alpha_gap[:, None] * background
        color = color_gap.square().mean(dim=-1)
        depth = torch.nn.functional.smooth_l1_loss(
            student.depth / self.scale, teacher.depth / self.scale, reduction="none"
        ) * (teacher.alpha > self.solid)
        terms = {
            "color": self.color * (weight * color).mean(),
            "opacity": self.opacity * (weight * alpha_gap.abs()).mean(),
            "depth": self.depth * (weight * depth).mean(),
        }
        return ResponseTerms(terms, color.detach())


_FIELD_POINTS_PER_RAY = 4  # a point is about as much work as a quarter of a ray


class ResponseObjective(nn.Module):
    """Color, opacity and depth along rays that the teacher rendered (Stage 1B).

    The first `field_steps` steps regress the teacher's density and color at points instead, which
    needs no marching: density as the alpha of one ray step (as KiloNeRF does), so that what is
    opaque either way does not count.
    """

    def __init__(
        self,
        student: Student,
        renders: Renders,
        sampler: RaySampler,
        loss: ResponseLoss,
        *,
        rays: int,  # a step
        field_points: FieldPoints | None = None,
        field_steps: int = 0,
    ) -> None:
        super().__init__()
        self.field = student.field
        self.sampler = sampler
        self.student, self.renders, self.loss, self.rays = student, renders, loss, rays
        self.field_points, self.field_steps = field_points, field_steps
        self.diagnostics: dict[str, float | Tensor] = {}

    def forward(self, step: int, draws: torch.Generator) -> dict[str, Tensor]:
        """The weighted terms of one step."""
        if self.field_points is not None and step < self.field_steps:
            return self._regress(self.field_points, draws)
        terms, _, _ = self.look(draws, features=False)
        return terms

    def look(
        self, draws: torch.Generator, *, features: bool
    ) -> tuple[dict[str, Tensor], Marched, Tensor]:
        """March a batch of rays: terms, what was marched, and the rays' importance [R]."""
        device = self.field.weights.device
        draw = self.sampler.draw(self.rays, draws)
        teacher = self.renders.batch(draw.ray, device)
        importance = draw.weight.to(device)
        shape = teacher.rgb.shape
        background = torch.rand(shape, generator=draws, device=draws.device).to(device)
        marched = march(
            self.field,
            self.student.occupancy,
            teacher.rays,
            self.student.step,
            draws,
            features=features,
        )
        terms, error = self.loss(marched, teacher, background, importance)
        if self.training:
            self.sampler.update(draw.ray, error)
        self.diagnostics = {
            "samples_per_ray": len(marched.weights) / self.rays,
            "ray_ess": float(effective_sample_size(draw.weight)) / self.rays,
            "hard_ray_share": float(hard_share(draw.weight)),
        }
        return terms, marched, importance

    def _regress(self, known: FieldPoints, draws: torch.Generator) -> dict[str, Tensor]:
        shape = (_FIELD_POINTS_PER_RAY * self.rays,)
        index = torch.randint(len(known), shape, generator=draws, device=draws.device)
        here = known[index.to(known.points.device)]
        field = self.field(here.points, here.directions, features=False)
        alpha = -torch.expm1(-field.sigma * self.student.step)
        target = -torch.expm1(-here.sigma * self.student.step)
        color = (field.rgb - here.rgb).square().mean(dim=-1)
        return {
            "field_alpha": (alpha - target).square().mean(),
            "field_color": (target * color).mean(),
        }


class FeatureObjective(nn.Module):
    """The response, and the teacher's features at points that the rays see (Stage 2).

    Without features it is the response alone: the control that trains for as many steps.
    """

    def __init__(
        self,
        response: ResponseObjective,
        features: FeatureLoss | None,
        *,
        points: int = 0,  # a step
        columns: Mapping[str, slice] | None = None,  # channel groups of the teacher's features
        **schedule: Any,  # of `feature_weight`: warmup, decay, floor
    ) -> None:
        super().__init__()
        self.response, self.features = response, features
        self.points, self.columns, self.schedule = points, columns or {}, schedule
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
        terms, marched, importance = self.response.look(draws, features=True)
        chosen = self._draw(marched, importance, draws)
        weight = feature_weight(step, **self.schedule)
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

    def _draw(self, marched: Marched, importance: Tensor, draws: torch.Generator) -> Tensor:
        ray = marched.samples.ray
        weights = marched.weights.detach() * importance[ray]
        return draw_points(weights, ray, marched.alpha.detach(), self.points, draws)

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
        self.response.eval()  # looking must not move the sampler's errors
        _, marched, importance = self.response.look(draws, features=True)
        self.response.train(training)
        chosen = self._draw(marched, importance, draws)
        row = self.features.rows(marched.samples.points[chosen])
        if not (row >= 0).any():
            return {}
        student = marched.field.features[chosen][row >= 0]
        target = self.features.standardized[row[row >= 0]]
        return alignment(student, self.features.predict(student), target, self.columns)


class AlignmentProbe:
    """A training hook that measures alignment three times."""

    SHARES = (0.2, 0.6, 1.0)  # of the steps

    def __init__(self, steps: int, seed: int) -> None:
        self.due = {max(1, round(share * steps)) for share in self.SHARES}
        self.seed = seed

    def __call__(
        self, step: int, objective: nn.Module, ema: Ema | None = None
    ) -> dict[str, float] | None:
        """A row of figures at the steps that are due."""
        if step not in self.due or not isinstance(objective, FeatureObjective):
            return None
        if objective.features is None:
            return {}
        return objective.alignment(generator(self.seed, "alignment"))
