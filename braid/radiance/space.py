"""The teacher's space: which voxels it occupies, and its density and colour at points in them.

A student takes its occupancy from here and starts by regressing the field at these points, which
costs no ray marching.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from braid.radiance.occupancy import Occupancy


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
        return FieldPoints(*(each.to(device) for each in vars(self).values()))


def save_space(path: Path, occupancy: Occupancy, field: FieldPoints) -> None:
    """Write both to one safetensors file."""
    tensors = {
        **{f"occupancy.{name}": each for name, each in occupancy.state().items()},
        **{f"field.{name}": each for name, each in vars(field).items()},
    }
    path.write_bytes(save({name: each.cpu().contiguous() for name, each in tensors.items()}))


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
        raise ValueError(f"{path}: expected a surveyed space ({error})") from None
    if not occupancy.occupied.any():
        raise ValueError(f"{path}: the occupancy grid has no occupied voxel")
    return occupancy, field
