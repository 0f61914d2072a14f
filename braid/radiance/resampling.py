"""Active ray resampling: a mixture of all rays and the ones that the student gets wrong.

After PVD-AL (Fang et al. 2023), without its pools. Ray i is drawn with

    p_i = (1 - hard) / N + hard * e_i / sum_j e_j,

e being a running mean of the error in the ray's tile of the image (a tile of 1 pixel: of the ray).
A loss weighted by 1 / (N p_i) is unbiased: its mean over draws is the mean over all rays; with
hard = 0 every weight is 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

_UNSEEN = -1.0  # the error of a tile that no ray was drawn from yet


class Draw(NamedTuple):
    """R rays drawn with replacement, on the CPU, where the targets lie."""

    ray: Tensor  # [R] int64, flat ray numbers: view * pixels + row-major pixel
    weight: Tensor  # [R] float32, 1 / (N p)


class RaySampler(nn.Module):
    """Draws rays of V views of one size; its state, a buffer, is saved with the model's.

    Raises:
        ValueError: `hard` is no share.
    """

    def __init__(
        self,
        views: int,
        width: int,
        height: int,
        *,
        hard: float = 0.5,  # share drawn in proportion to the error, 0: uniform
        decay: float = 0.9,  # of the running error, per visit of a tile
        tile: int = 8,  # pixels a side
    ) -> None:
        super().__init__()
        if not 0 <= hard <= 1:
            raise ValueError(f"resampling: expected a hard share in [0, 1], got {hard}")
        self.width, self.height, self.tile = width, height, tile
        self.hard, self.decay = hard, decay
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
        share = errors / total if total > 0 else torch.full_like(errors, 1 / self.rays)
        return (1 - self.hard) / self.rays + self.hard * share

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
        running = self.decay * old + (1 - self.decay) * mean.to(old)
        self.errors[visited] = torch.where(old == _UNSEEN, mean.to(old), running)

    def _ray_in(self, tile: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """A ray at relative place (u, v) of [0, 1)^2 in each tile."""
        view, place = tile // (self.rows * self.columns), tile % (self.rows * self.columns)
        top, left = place // self.columns * self.tile, place % self.columns * self.tile
        row = top + (u * (self.height - top).clamp_max(self.tile)).long()
        column = left + (v * (self.width - left).clamp_max(self.tile)).long()
        return (view * self.height + row) * self.width + column

    def tile_of(
        self,
        ray: Tensor,  # [R] int64
    ) -> Tensor:
        """The tile of each ray, [R]."""
        pixel = ray % (self.width * self.height)
        row, column = pixel // self.width // self.tile, pixel % self.width // self.tile
        view = ray // (self.width * self.height)
        return (view * self.rows + row) * self.columns + column


def effective_sample_size(
    weight: Tensor,  # [R]
) -> Tensor:
    """(sum w)^2 / sum w^2: how many equally weighted rays the draw is worth."""
    return weight.sum().square() / weight.square().sum()


def hard_share(
    weight: Tensor,  # [R]
) -> Tensor:
    """Share of the draws that fell on rays more likely than under uniform sampling."""
    return (weight < 1).float().mean()
