"""Regular grids over a box: numbered cells, and voxels that are occupied or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from braid.radiance.scenes.cameras import Rays

# ---- Cells, and the cell that a point lies in ----------------------------------------------------
# Cells are numbered row-major, z fastest: (x * ny + y) * nz + z. A point on a face between two
# cells belongs to the upper one; a point on the upper face of the box belongs to the last cell.

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


# ---- Where a scene is not empty ------------------------------------------------------------------
# Filled from the teacher's Gaussians, it decides which cells of the student get a network and which
# samples along a ray are worth evaluating.

COARSE = 4  # edge in voxels of the coarse grid that rays are skipped by


@dataclass(frozen=True)
class Occupancy:
    """Voxels of a box, occupied or not."""

    occupied: Tensor  # [X, Y, Z] bool
    low: Tensor  # [3] corner of the box
    high: Tensor  # [3]

    @property
    def voxel(self) -> Tensor:
        """Edges of a voxel, [3]."""
        return (self.high - self.low) / torch.tensor(self.occupied.shape, device=self.low.device)

    def to(self, device: torch.device) -> Occupancy:
        """The same grid on another device."""
        return Occupancy(*(tensor.to(device) for tensor in self.state().values()))

    def state(self) -> dict[str, Tensor]:
        """Plain tensors that :meth:`from_state` restores."""
        return {"occupied": self.occupied, "low": self.low, "high": self.high}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Occupancy:
        """The grid that :meth:`state` described."""
        return cls(state["occupied"].bool(), state["low"], state["high"])

    def contains(
        self,
        points: Tensor,  # [P, 3]
    ) -> Tensor:
        """Whether each point lies in an occupied voxel, [P] bool; False outside the box."""
        inside = ((points >= self.low) & (points <= self.high)).all(dim=1)
        scaled = (points - self.low) / self.voxel
        return _look_up(self.occupied, scaled.unbind(1)) & inside

    def along(
        self,
        rays: Rays,
        ray: Tensor,  # [Q]
        t: Tensor,  # [Q, S] distances inside the box
    ) -> Tensor:
        """Whether the points at distances along rays lie in occupied voxels, [Q, S] bool."""
        return _look_up(self.occupied, _scaled(rays, self.low, self.voxel, ray, t))

    def near_along(
        self,
        rays: Rays,
        ray: Tensor,  # [Q]
        t: Tensor,  # [Q, S]
    ) -> Tensor:
        """False where no voxel within ``coarse_reach`` of the point is occupied, [Q, S] bool."""
        return _look_up(self._coarse, _scaled(rays, self.low, COARSE * self.voxel, ray, t))

    @property
    def coarse_reach(self) -> float:
        """How far around a point :meth:`near_along` looks at least, along each axis."""
        return COARSE * float(self.voxel.min())

    @cached_property
    def _coarse(self) -> Tensor:
        pad = [extent for n in reversed(self.occupied.shape) for extent in (0, -n % COARSE)]
        padded = torch.nn.functional.pad(self.occupied.float()[None, None], pad)
        coarse = torch.nn.functional.max_pool3d(padded, COARSE)
        near = torch.nn.functional.max_pool3d(coarse, 3, stride=1, padding=1)
        return near[0, 0] > 0.5

    def tight_box(
        self,
        padding: float = 0.0,  # scene units added on every side
    ) -> tuple[list[float], list[float]]:
        """Corners of the smallest box around the occupied voxels.

        Raises ``ValueError`` when no voxel is occupied.
        """
        index = torch.nonzero(self.occupied)
        if not len(index):
            raise ValueError("the occupancy grid has no occupied voxel")
        low = self.low + index.amin(0) * self.voxel - padding
        high = self.low + (index.amax(0) + 1) * self.voxel + padding
        return low.tolist(), high.tolist()

    def cells(
        self,
        resolution: tuple[int, int, int],
        low: list[float],  # corner of the cells' box
        high: list[float],
    ) -> Tensor:
        """Which cells of another grid overlap an occupied voxel, [X, Y, Z] bool."""
        overlap = self.occupied.float()
        for axis in range(3):
            touches = self._touches(axis, resolution[axis], low[axis], high[axis])
            overlap = torch.tensordot(touches, overlap, dims=([1], [axis])).clamp(max=1)
            overlap = overlap.movedim(0, axis)
        return overlap > 0.5

    def _touches(self, axis: int, cells: int, low: float, high: float) -> Tensor:
        """1 where a cell's interval along an axis overlaps a voxel's, [cells, voxels]."""
        count = self.occupied.shape[axis]
        voxel = torch.linspace(0, 1, count + 1, dtype=torch.float64)  # on the CPU: not everywhere
        start, end = float(self.low[axis]), float(self.high[axis])
        voxel = (start + voxel * (end - start) - low) / (high - low) * cells
        cell = torch.arange(cells, dtype=torch.float64).unsqueeze(1)
        tolerance = 1e-4
        overlaps = (voxel[1:] > cell + tolerance) & (voxel[:-1] < cell + 1 - tolerance)
        return overlaps.float().to(self.occupied.device)

    def sample(
        self,
        count: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Points uniform in the occupied voxels, [count, 3]."""
        index = torch.nonzero(self.occupied)
        where = generator.device if generator else index.device
        chosen = torch.randint(len(index), (count,), generator=generator, device=where)
        within = torch.rand(count, 3, generator=generator, device=where).to(self.low)
        return self.low + (index[chosen.to(index.device)] + within) * self.voxel


def _scaled(rays: Rays, low: Tensor, edge: Tensor, ray: Tensor, t: Tensor) -> list[Tensor]:
    """Coordinates in voxels of points along rays, one tensor [Q, S] per axis."""
    origins = ((rays.origins - low) / edge).T.index_select(1, ray).unsqueeze(2)
    directions = (rays.directions / edge).T.index_select(1, ray).unsqueeze(2)
    return [
        torch.addcmul(origin, direction, t)
        for origin, direction in zip(origins, directions, strict=True)
    ]


def _look_up(grid: Tensor, scaled: Sequence[Tensor]) -> Tensor:
    """Values of a voxel grid at coordinates in voxels; the upper face is part of the last one."""
    flat = torch.zeros_like(scaled[0], dtype=torch.int32)
    for axis, size in zip(scaled, grid.shape, strict=True):
        flat.mul_(size).add_(axis.clamp(0, size - 1).int())
    return grid.view(-1).index_select(0, flat.flatten()).view(flat.shape)


# ---- On disk: the voxels that the teacher occupies, and its density and color at points in them
# A student takes its occupancy from here and starts by regressing the field at these points, which
# costs no ray marching.


@dataclass(frozen=True)
class FieldPoints:
    """F points in occupied space with what the teacher is there."""

    points: Tensor  # [F, 3], scene units
    directions: Tensor  # [F, 3], unit: the ray on which the point is seen
    sigma: Tensor  # [F], 1 / scene unit
    rgb: Tensor  # [F, 3]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Tensor) -> FieldPoints:
        """The chosen points."""
        return FieldPoints(
            self.points[index], self.directions[index], self.sigma[index], self.rgb[index]
        )

    def to(self, device: torch.device) -> FieldPoints:
        """The same points on another device."""
        return FieldPoints(*(tensor.to(device) for tensor in vars(self).values()))


def save_space(path: Path, occupancy: Occupancy, field: FieldPoints) -> None:
    """Write both to one safetensors file."""
    tensors = {
        **{f"occupancy.{name}": tensor for name, tensor in occupancy.state().items()},
        **{f"field.{name}": tensor for name, tensor in vars(field).items()},
    }
    path.write_bytes(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}))


def load_space(path: Path) -> tuple[Occupancy, FieldPoints]:
    """Read what `save_space` wrote.

    Raises:
        ValueError: the file is missing or broken, or no voxel is occupied; the message names it.
    """
    try:
        tensors = load(path.read_bytes())
        occupancy = Occupancy.from_state(
            {name: tensors[f"occupancy.{name}"] for name in ("occupied", "low", "high")}
        )
        names = FieldPoints.__dataclass_fields__
        field = FieldPoints(**{name: tensors[f"field.{name}"] for name in names})
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path}: expected an occupied space ({error})") from None
    if not occupancy.occupied.any():
        raise ValueError(f"{path}: the occupancy grid has no occupied voxel")
    return occupancy, field
