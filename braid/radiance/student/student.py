"""A student: a KiloNeRF, the voxels worth looking at and the step rays are cut into."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from braid.radiance.config import EvaluationConfig, StudentConfig
from braid.radiance.scenes.cameras import Cameras, Rendered
from braid.radiance.scenes.cells import CellGrid
from braid.radiance.scenes.occupancy import Occupancy
from braid.radiance.student.kilonerf import KiloNeRF, fitted_resolution
from braid.radiance.student.marching import render_view


@dataclass(frozen=True)
class Student:
    """What it takes to render."""

    field: KiloNeRF
    occupancy: Occupancy
    step: float  # scene units

    @property
    def grid(self) -> CellGrid:
        """The cells of the networks."""
        config = self.field.config
        x, y, z = config["resolution"]
        return CellGrid(tuple(config["low"]), tuple(config["high"]), (x, y, z))

    @property
    def extent(self) -> float:
        """Longest side of the box, scene units."""
        grid = self.grid
        return max(high - low for low, high in zip(grid.lower, grid.upper, strict=True))

    @property
    def parameters(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.field.parameters())

    @property
    def width(self) -> int:
        """Penultimate features of a point."""
        return self.field.architecture.sizes.hidden

    def to(self, device: torch.device) -> Student:
        """The same student on another device."""
        return Student(self.field.to(device), self.occupancy.to(device), self.step)

    def render(self, cameras: Cameras, view: int, *, chunk: int, stop: float) -> Rendered:
        """One view, as in evaluation."""
        return render_view(
            self.field, self.occupancy, cameras, view, self.step, chunk=chunk, stop=stop
        )

    def on_white(self, cameras: Cameras, views: Iterable[int], config: EvaluationConfig) -> Tensor:
        """The chosen views composited over white, [N, H, W, 3]."""
        images = []
        for view in views:
            rendered = self.render(cameras, view, chunk=config.chunk, stop=config.stop)
            images.append(rendered.rgb + (1 - rendered.alpha[..., None]))
        return torch.stack(images)


def build_student(
    occupancy: Occupancy, config: StudentConfig, generator: torch.Generator
) -> Student:
    """A fresh student with a network in every cell that holds an occupied voxel.

    Raises:
        ValueError: no voxel is occupied.
    """
    resolution = fitted_resolution(*occupancy.tight_box(), config.cells)
    low, high = occupancy.tight_box(padding=1e-3 * float(occupancy.voxel.min()))
    occupied = occupancy.cells(resolution, low, high)
    field = KiloNeRF.for_cells(occupied, low, high, config, generator)
    return Student(field, occupancy, config.step * float(occupancy.voxel.min()))


def save_student(
    folder: Path,
    student: Student,
    snapshots: Mapping[str, Mapping[str, Tensor]] | None = None,  # name -> state of the field
) -> None:
    """Write `config.json`, `model.safetensors` and a further file for each named snapshot."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"field.{name}": tensor for name, tensor in student.field.state_dict().items()}
    state |= {f"occupancy.{name}": tensor for name, tensor in student.occupancy.state().items()}
    (folder / "model.safetensors").write_bytes(_packed(state))
    config = {"field": student.field.config, "step": student.step}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name, field in (snapshots or {}).items():
        (folder / f"{name}.safetensors").write_bytes(_packed(field))


def load_student(folder: Path, snapshot: str | None = None) -> Student:
    """Read a student, with the field's weights of a named snapshot instead of the last ones.

    Raises:
        ValueError: a file is missing or broken; the message names the folder.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        state = load((folder / "model.safetensors").read_bytes())
        weights = _under("field.", state)
        if snapshot:
            weights = load((folder / f"{snapshot}.safetensors").read_bytes())
        field = KiloNeRF.from_config(config["field"])
        field.load_state_dict(weights)
        occupancy = Occupancy.from_state(_under("occupancy.", state))
        return Student(field, occupancy, config["step"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: expected a stored student ({error})") from None


def _packed(state: Mapping[str, Tensor]) -> bytes:
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
