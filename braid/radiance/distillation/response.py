"""Stage 1B: a student's color, opacity and depth along rays, against those that the teacher has.

An objective is a module whose `forward(step, generator)` draws a batch and returns named weighted
loss terms; the loss is their sum. `diagnostics` holds scalars of the last step for the log.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from braid.radiance.config import RaysConfig, ResponseLossConfig
from braid.radiance.scenes.grids import FieldPoints
from braid.radiance.scenes.renders import Renders
from braid.radiance.student.marching import Marched, march
from braid.radiance.student.student import Student

# ---- The loss ------------------------------------------------------------------------------------


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
    """Weighted loss terms, and the error that decides where the next rays are drawn."""

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
        config: ResponseLossConfig,
        *,
        scale: float = 1.0,  # scene units
        solid: float = 0.6,
    ) -> None:
        self.config, self.scale, self.solid = config, scale, solid

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
            "color": self.config.color * (weight * color).mean(),
            "opacity": self.config.opacity * (weight * alpha_gap.abs()).mean(),
            "depth": self.config.depth * (weight * depth).mean(),
        }
        return ResponseTerms(terms, color.detach())


# ---- Active ray resampling: a mixture of all rays and the ones that the student gets wrong -------
# After PVD-AL (Fang et al. 2023), without its pools. Ray i is drawn with
#
#     p_i = (1 - hard) / N + hard * e_i / sum_j e_j,
#
# e being a running mean of the error in the ray's tile of the image (a tile of 1 pixel: of the
# ray). A loss weighted by 1 / (N p_i) is unbiased: its mean over draws is the mean over all rays;
# with hard = 0 every weight is 1.

_UNSEEN = -1.0  # the error of a tile that no ray was drawn from yet


class Draw(NamedTuple):
    """R rays drawn with replacement, on the CPU, where the targets lie."""

    ray: Tensor  # [R] int64, flat ray numbers: view * pixels + row-major pixel
    weight: Tensor  # [R] float32, 1 / (N p)


class RaySampler(nn.Module):
    """Draws rays of V views of one size; its state, a buffer, is saved with the model's."""

    def __init__(self, views: int, width: int, height: int, config: RaysConfig) -> None:
        super().__init__()
        self.width, self.height, self.config = width, height, config
        tile = config.tile
        self.columns, self.rows = -(-width // tile), -(-height // tile)
        self.rays = views * width * height
        row_sizes = (height - tile * torch.arange(self.rows)).clamp_max(tile)
        column_sizes = (width - tile * torch.arange(self.columns)).clamp_max(tile)
        sizes = torch.outer(row_sizes, column_sizes).flatten().repeat(views)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("errors", torch.full((len(sizes),), _UNSEEN))
        self.sizes: Tensor  # [T] rays in each tile
        self.errors: Tensor  # [T] running mean error of a ray there

    def probabilities(self) -> Tensor:
        """p of a ray by tile, [T] float64, summing to 1 over rays; unseen tiles are average."""
        errors = self.errors.cpu().double()
        seen = errors != _UNSEEN
        errors = torch.where(seen, errors, errors[seen].mean() if seen.any() else 1.0)
        total = (errors * self.sizes.cpu()).sum()
        by_error = errors / total if total > 0 else torch.full_like(errors, 1 / self.rays)
        return (1 - self.config.hard) / self.rays + self.config.hard * by_error

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Draw rays."""
        probability = self.probabilities()
        edges = (probability * self.sizes.cpu()).cumsum(0)
        shape = (4, count)
        u, fine, v, w = torch.rand(shape, generator=generator, device=generator.device).cpu()
        u = u.double() + fine.double() / 2**24  # 24 bits are too few to choose among millions
        tile = torch.searchsorted(edges, u * edges[-1], right=True).clamp_max(len(edges) - 1)
        weight = 1 / (self.rays * probability[tile])
        return Draw(self._ray_in(tile, v, w), weight.float())

    def update(
        self,
        ray: Tensor,  # [R] int64
        error: Tensor,  # [R], >= 0
    ) -> None:
        """Take the errors of drawn rays into their tiles' running means."""
        tile = self.tile_of(ray.cpu())
        visited, member = torch.unique(tile, return_inverse=True)
        total = torch.bincount(member, weights=error.detach().cpu().double())
        mean = total / torch.bincount(member)
        visited = visited.to(self.errors.device)
        old = self.errors[visited]
        running = self.config.decay * old + (1 - self.config.decay) * mean.to(old)
        self.errors[visited] = torch.where(old == _UNSEEN, mean.to(old), running)

    def _ray_in(self, tile: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """A ray at relative place (u, v) of [0, 1)^2 in each tile."""
        side = self.config.tile
        view, place = tile // (self.rows * self.columns), tile % (self.rows * self.columns)
        top, left = place // self.columns * side, place % self.columns * side
        row = top + (u * (self.height - top).clamp_max(side)).long()
        column = left + (v * (self.width - left).clamp_max(side)).long()
        return (view * self.height + row) * self.width + column

    def tile_of(
        self,
        ray: Tensor,  # [R] int64
    ) -> Tensor:
        """The tile of each ray, [R]."""
        side, pixel = self.config.tile, ray % (self.width * self.height)
        row, column = pixel // self.width // side, pixel % self.width // side
        view = ray // (self.width * self.height)
        return (view * self.rows + row) * self.columns + column


def effective_sample_size(
    weight: Tensor,  # [R]
) -> Tensor:
    """(sum w)^2 / sum w^2: how many equally weighted rays the draw is worth."""
    return weight.sum().square() / weight.square().sum()


def hard_fraction(
    weight: Tensor,  # [R]
) -> Tensor:
    """Fraction of the draws that fell on rays more likely than under uniform sampling."""
    return (weight < 1).float().mean()


# ---- The objective -------------------------------------------------------------------------------

_FIELD_POINTS_PER_RAY = 4  # a point is about as much work as a quarter of a ray


class ResponseObjective(nn.Module):
    """Color, opacity and depth along rays that the teacher rendered.

    The first `field_steps` steps regress the teacher's density and color at points instead, which
    needs no marching: density as the alpha of one ray step (as KiloNeRF does), so that what is
    opaque either way does not count.
    """

    def __init__(
        self,
        student: Student,
        renders: Renders,
        rays: RaysConfig,
        loss: ResponseLossConfig,
        *,
        field_points: FieldPoints | None = None,
        field_steps: int = 0,
    ) -> None:
        super().__init__()
        cameras = renders.cameras
        self.field = student.field
        self.sampler = RaySampler(len(cameras), cameras.width, cameras.height, rays)
        self.loss = ResponseLoss(loss, scale=student.extent)
        self.student, self.renders, self.rays = student, renders, rays.count
        self.field_points, self.field_steps = field_points, field_steps
        self.diagnostics: dict[str, float | Tensor] = {}

    def forward(self, step: int, draws: torch.Generator) -> dict[str, Tensor]:
        """The weighted terms of one step."""
        if self.field_points is not None and step < self.field_steps:
            return self._regress(self.field_points, draws)
        terms, _, _ = self.march_batch(draws, features=False)
        return terms

    def march_batch(
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
            "hard_ray_fraction": float(hard_fraction(draw.weight)),
        }
        return terms, marched, importance

    def _regress(self, targets: FieldPoints, draws: torch.Generator) -> dict[str, Tensor]:
        shape = (_FIELD_POINTS_PER_RAY * self.rays,)
        index = torch.randint(len(targets), shape, generator=draws, device=draws.device)
        target = targets[index.to(targets.points.device)]
        field = self.field(target.points, target.directions, features=False)
        alpha = -torch.expm1(-field.sigma * self.student.step)
        target_alpha = -torch.expm1(-target.sigma * self.student.step)
        color = (field.rgb - target.rgb).square().mean(dim=-1)
        return {
            "field_alpha": (alpha - target_alpha).square().mean(),
            "field_color": (target_alpha * color).mean(),
        }
