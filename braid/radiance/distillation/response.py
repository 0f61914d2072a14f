"""Stage 1B: a student's color, opacity and depth along rays, against those that the teacher has.

An objective is a module whose `forward(step, generator)` draws a batch and returns named weighted
loss terms; the loss is their sum. `diagnostics` holds scalars of the last step for the log.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, distributed, nn

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
#
# Full-size sets have millions of tiles, of which a step visits thousands: they are the leaves of a
# tree of sums, where a draw and an update cost one path for each ray.

_UNSEEN = -1.0  # the error of a tile that no ray was drawn from yet
_FAN = 8  # children of a node


class SumTree:
    """Rows, and their sums over ever larger runs: a node is the sum of the `_FAN` below it.

    A node depends on its leaves alone, to the last bit, not on the order in which they were set.
    """

    def __init__(
        self,
        leaves: Tensor,  # [T, C]
    ) -> None:
        self.count = len(leaves)
        self.levels = [_blocks(leaves)]  # each [blocks, _FAN, C]; a block's sum is a row above
        while len(self.levels[-1]) > 1:
            self.levels.append(_blocks(_summed(self.levels[-1])))

    @property
    def total(self) -> Tensor:
        """The sum of all rows, [C]."""
        return _summed(self.levels[-1])[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Rows, [R, C]."""
        return self.levels[0].flatten(0, 1)[rows]

    def set(
        self,
        rows: Tensor,  # [R] int64, sorted
        values: Tensor,  # [R, C]
    ) -> None:
        """Replace rows, and the sums above them."""
        for level in self.levels:
            level.flatten(0, 1)[rows] = values
            rows = torch.unique_consecutive(rows // _FAN)
            values = _summed(level[rows])

    def find(
        self,
        place: Tensor,  # [R] in [0, 1]
        factors: Tensor,  # [C], which make one mass of the columns
    ) -> Tensor:
        """The rows at places in the cumulative mass of all, as fractions of it, [R] int64."""
        row = torch.zeros(len(place), dtype=torch.int64)
        place = (place * (self.total @ factors))[:, None]
        for level in reversed(self.levels):
            row = row.clamp_max(len(level) - 1)  # a place rounded up to the end of all
            ends = (level[row] @ factors).cumsum(dim=1)
            child = torch.searchsorted(ends, place, right=True).clamp_max(_FAN - 1)
            passed = ends.gather(1, (child - 1).clamp_min(0)).where(child > 0, 0.0)
            row, place = row * _FAN + child[:, 0], place - passed
        return row.clamp_max(self.count - 1)


def _blocks(rows: Tensor) -> Tensor:
    """Rows [R, C] by `_FAN`, zeros after the last, [blocks, _FAN, C]."""
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -len(rows) % _FAN))
    return padded.view(-1, _FAN, rows.shape[1])


def _summed(values: Tensor) -> Tensor:  # [R, _FAN, C] -> [R, C]
    """Sums in one order, whatever the shape; torch.sum's is its own affair."""
    while values.shape[1] > 1:
        values = values[:, ::2] + values[:, 1::2]
    return values[:, 0]


class Draw(NamedTuple):
    """R rays drawn with replacement, on the CPU, where the targets lie."""

    ray: Tensor  # [R] int64, flat ray numbers: view * pixels + row-major pixel
    weight: Tensor  # [R] float32, 1 / (N p)


class RaySampler(nn.Module):
    """Draws rays of V views of one size; its state is saved with the model's and stays on the CPU.

    Processes that train together take in each other's errors, so that all have one state.
    """

    def __init__(self, views: int, width: int, height: int, config: RaysConfig) -> None:
        super().__init__()
        self.width, self.height, self.config = width, height, config
        tile = config.tile
        self.columns, self.rows = -(-width // tile), -(-height // tile)
        self.rays = views * width * height
        row_sizes = (height - tile * torch.arange(self.rows)).clamp_max(tile)
        column_sizes = (width - tile * torch.arange(self.columns)).clamp_max(tile)
        self.sizes = torch.outer(row_sizes, column_sizes).flatten().repeat(views)  # [T] rays
        self.set_extra_state(torch.full((len(self.sizes),), _UNSEEN))

    def get_extra_state(self) -> Tensor:
        """Running mean error of a ray in each tile, [T] float32."""
        return self.errors

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what `get_extra_state` gave."""
        self.errors = state
        self.tree = SumTree(self._masses(torch.arange(len(state))))

    def _masses(self, tile: Tensor) -> Tensor:
        """Of tiles: all rays, the summed error of rays seen, rays unseen; [R, 3] float64."""
        size, error = self.sizes[tile].double(), self.errors[tile].double()
        seen = error != _UNSEEN
        return torch.stack([size, (size * error).where(seen, 0.0), size.where(~seen, 0.0)], dim=1)

    def _factors(self) -> Tensor:
        """What makes a probability of masses, [3] float64; unseen rays are average."""
        _, error, unseen = self.tree.total.tolist()
        average = error / (self.rays - unseen) if unseen < self.rays else 1.0
        total = error + average * unseen
        hard = self.config.hard if total > 0 else 0.0
        by_error = hard / total if hard else 0.0
        factors = [(1 - hard) / self.rays, by_error, by_error * average]
        return torch.tensor(factors, dtype=torch.float64)

    def probability(
        self,
        tile: Tensor,  # [R] int64
    ) -> Tensor:
        """p of a ray in each tile, [R] float64, summing to 1 over all rays."""
        return self.tree[tile] @ self._factors() / self.sizes[tile]

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Draw rays."""
        shape = (4, count)
        u, fine, v, w = torch.rand(shape, generator=generator, device=generator.device).cpu()
        u = u.double() + fine.double() / 2**24  # 24 bits are too few to choose among millions
        tile = self.tree.find(u, self._factors())
        weight = 1 / (self.rays * self.probability(tile))
        return Draw(self._ray_in(tile, v, w), weight.float())

    def update(
        self,
        ray: Tensor,  # [R] int64
        error: Tensor,  # [R], >= 0
    ) -> None:
        """Take the errors of drawn rays into their tiles' running means."""
        tile = self.tile_of(_of_all(ray.to(error.device)).cpu())
        visited, member = torch.unique(tile, return_inverse=True)
        total = torch.bincount(member, weights=_of_all(error.detach()).cpu().double())
        mean = (total / torch.bincount(member)).float()
        old = self.errors[visited]
        running = self.config.decay * old + (1 - self.config.decay) * mean
        self.errors[visited] = torch.where(old == _UNSEEN, mean, running)
        self.tree.set(visited, self._masses(visited))

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


def _of_all(values: Tensor) -> Tensor:
    """Rows of all processes that train together, one after another."""
    if not distributed.is_initialized():
        return values
    parts = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


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
