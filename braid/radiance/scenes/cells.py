"""A regular grid of cells over a box, and the cell that a point lies in.

Cells are numbered row-major, z fastest: (x * ny + y) * nz + z. A point on a face between two cells
belongs to the upper one; a point on the upper face of the box belongs to the last cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class CellGrid:
    """nx * ny * nz equal cells between the corners `lower` and `upper`.

    Raises:
        ValueError: the box is empty or not finite, or a resolution is below 1.
    """

    lower: Vector  # scene units
    upper: Vector
    resolution: tuple[int, int, int]

    def __post_init__(self) -> None:
        sides = [high - low for low, high in zip(self.lower, self.upper, strict=True)]
        if not all(math.isfinite(side) and side > 0 for side in sides):
            raise ValueError(f"cell grid: expected lower < upper, got {self.lower}, {self.upper}")
        if min(self.resolution) < 1:
            raise ValueError(f"cell grid: expected resolution >= 1, got {self.resolution}")

    @property
    def count(self) -> int:
        """Cells in the box, occupied or not."""
        return math.prod(self.resolution)

    @property
    def edges(self) -> Vector:
        """Side lengths of one cell, scene units."""
        x, y, z = (
            (high - low) / number
            for low, high, number in zip(self.lower, self.upper, self.resolution, strict=True)
        )
        return x, y, z

    @property
    def edge(self) -> float:
        """Geometric mean of the side lengths, scene units."""
        return math.prod(self.edges) ** (1 / 3)

    def local(
        self,
        points: Tensor,  # [P, 3], scene units
    ) -> Tensor:
        """Points in units of cells from the lower corner, [P, 3]."""
        return (points - points.new_tensor(self.lower)) / points.new_tensor(self.edges)

    def contains(
        self,
        points: Tensor,  # [P, 3], scene units
    ) -> Tensor:
        """Which points lie in the box or on its faces, [P] bool."""
        inside = (points >= points.new_tensor(self.lower)) & (
            points <= points.new_tensor(self.upper)
        )
        return inside.all(dim=-1)

    def index(
        self,
        points: Tensor,  # [P, 3], scene units
    ) -> Tensor:
        """The cell of each point, [P] int64; -1 outside the box."""
        flat = self.flatten(self.local(points).floor().long())
        return torch.where(self.contains(points), flat, -1)

    def flatten(
        self,
        coordinates: Tensor,  # [..., 3] int64; those beyond the grid count as the nearest cell's
    ) -> Tensor:
        """Numbers of the cells at integer coordinates, [...]."""
        last = coordinates.new_tensor(self.resolution) - 1
        x, y, z = torch.minimum(coordinates.clamp_min(0), last).unbind(-1)
        return (x * self.resolution[1] + y) * self.resolution[2] + z

    def coordinates(
        self,
        cells: Tensor,  # [C] int64
    ) -> Tensor:
        """Integer coordinates of cells, [C, 3]."""
        _, ny, nz = self.resolution
        return torch.stack([cells // (ny * nz), cells // nz % ny, cells % nz], dim=-1)

    def corners(
        self,
        points: Tensor,  # [P, 3], scene units, inside the box
    ) -> tuple[Tensor, Tensor]:
        """The 8 cells whose centers surround each point and their trilinear weights, both [P, 8].

        Weights are >= 0 and sum to 1; beyond the outer centers the border cell takes what its
        missing neighbor would have.
        """
        place = self.local(points) - 0.5
        base = place.floor()
        upper = place - base
        steps = torch.cartesian_prod(*[torch.arange(2, device=points.device)] * 3)  # [8, 3]
        weights = torch.where(steps.bool(), upper[:, None], 1 - upper[:, None])
        return self.flatten(base.long()[:, None] + steps), weights.prod(dim=-1)


def cubic_grid(
    lower: Vector,  # scene units
    upper: Vector,
    longest: int,  # cells along the longest axis
) -> CellGrid:
    """Cubic cells that cover a box, centered on it.

    Raises:
        ValueError: the box is empty, or `longest` is below 1.
    """
    tight = CellGrid(lower, upper, (longest, 1, 1))  # checks both
    sides = [high - low for low, high in zip(tight.lower, tight.upper, strict=True)]
    edge = max(sides) / longest
    x, y, z = (max(1, math.ceil(side / edge - 1e-6)) for side in sides)
    center = [(low + high) / 2 for low, high in zip(lower, upper, strict=True)]
    low_x, low_y, low_z = (c - n * edge / 2 for c, n in zip(center, (x, y, z), strict=True))
    high_x, high_y, high_z = (c + n * edge / 2 for c, n in zip(center, (x, y, z), strict=True))
    return CellGrid((low_x, low_y, low_z), (high_x, high_y, high_z), (x, y, z))


def points_grid(
    points: Tensor,  # [P, 3], scene units
    longest: int,  # cells along the longest axis
) -> CellGrid:
    """Cubic cells that cover all points, with a margin of a thousandth of the longest extent."""
    low, high = points.cpu().double().aminmax(dim=0)  # float64 is not everywhere
    margin = (high - low).max() / 1000 + 1e-9
    lower, upper = (low - margin).tolist(), (high + margin).tolist()
    return cubic_grid((lower[0], lower[1], lower[2]), (upper[0], upper[1], upper[2]), longest)
