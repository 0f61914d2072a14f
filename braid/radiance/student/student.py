"""A student: a KiloNeRF, its occupied voxels and the step of its rays.

In KiloNeRF (Reiser et al. 2021) a radiance field is a grid of tiny MLPs: a box is divided into
cells and every *occupied* cell has a network of its own, whose inputs are the position local to its
cell (scaled to [-1, 1]) and the view direction. Elsewhere the density is zero. With a ``margin``
the networks on both sides of a cell face are blended near it by a partition of unity, so that the
field has no seams.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from braid.common.progress import progress
from braid.radiance.config import EvaluationConfig, FieldConfig, StudentConfig
from braid.radiance.scenes.blender import Views
from braid.radiance.scenes.cameras import Cameras, Rendered
from braid.radiance.scenes.grids import CellGrid, Occupancy
from braid.radiance.scenes.renders import Renders
from braid.radiance.student.grid_mlp import Architecture, evaluate
from braid.radiance.student.marching import Field, render_view
from braid.training.distributed import is_main, shared


class Blend(NamedTuple):
    """B pairs of a point and a network that contributes to it."""

    point: Tensor  # [B] index of the point
    network: Tensor  # [B]
    local: Tensor  # [B, 3] position in the network's cell; a margin reaches beyond [-1, 1]
    weight: Tensor  # [B] sums to one over a point's networks


def fitted_resolution(
    low: Sequence[float],
    high: Sequence[float],
    cells: int,
) -> tuple[int, int, int]:
    """Cells per axis of a near-cubic grid with ``cells`` on the box's longest axis.

    KiloNeRF's rule: its Lego box with 16 cells gives 9 x 16 x 10.
    """
    if cells < 1:
        raise ValueError(f"cells must be at least 1, got {cells}")
    edges = [float(b) - float(a) for a, b in zip(low, high, strict=True)]
    x, y, z = (max(1, math.ceil(edge / max(edges) * cells - 1e-4)) for edge in edges)
    return x, y, z


class KiloNeRF(nn.Module):
    """Grid of tiny MLPs over a box, made by :meth:`for_cells` or :meth:`from_config`.

    ``config`` is a plain dict (JSON) that, with the state dict, restores the model.
    Attributes: ``weights`` [N, parameters], one row per network; ``network_of_cell`` [X, Y, Z],
    -1 where a cell has none.
    """

    network_of_cell: Tensor
    low: Tensor
    cells_per_unit: Tensor

    def __init__(
        self,
        low: Sequence[float],  # corner of the box
        high: Sequence[float],
        resolution: Sequence[int],  # cells along x, y, z
        networks: int,
        field: FieldConfig,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "low": [float(x) for x in low],
            "high": [float(x) for x in high],
            "resolution": [int(x) for x in resolution],
            "networks": networks,
            **field.model_dump(include=set(FieldConfig.model_fields)),
        }
        _check(self.config)
        self.architecture, self.field = Architecture(field), field
        edge = max((b - a) / n for a, b, n in zip(low, high, resolution, strict=True))
        self.density_scale = field.density_scale / edge  # per scene unit
        lower, upper = torch.tensor(self.config["low"]), torch.tensor(self.config["high"])
        self.register_buffer("low", lower, persistent=False)
        per_unit = torch.tensor(self.config["resolution"]) / (upper - lower)
        self.register_buffer("cells_per_unit", per_unit, persistent=False)
        cells = torch.full(tuple(self.config["resolution"]), -1, dtype=torch.int64)
        self.register_buffer("network_of_cell", cells)
        self.weights = nn.Parameter(torch.zeros(networks, self.architecture.parameters))

    @classmethod
    def for_cells(
        cls,
        cells: Tensor,  # [X, Y, Z] bool, cells that get a network
        low: Sequence[float],
        high: Sequence[float],
        config: FieldConfig,
        generator: torch.Generator | None = None,
    ) -> KiloNeRF:
        """A freshly initialized model with a network in each of the given cells.

        With a density scale well above one, an output of order one is a surface, opaque within a
        fraction of a cell.

        Raises:
            ValueError: no cell is occupied.
        """
        networks = int(cells.sum())
        if networks == 0:
            raise ValueError(f"the {'x'.join(map(str, cells.shape))} grid has no occupied cell")
        model = cls(low, high, cells.shape, networks, config)
        model.network_of_cell[cells.cpu()] = torch.arange(networks)
        model.weights.data = model.architecture.initial(networks, generator)
        return model.to(cells.device)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> KiloNeRF:
        """The model of a stored config; load the stored state dict into it.

        Raises:
            KeyError, TypeError, ValueError: an entry is missing, unknown or out of its range.
        """
        field = {name: config[name] for name in FieldConfig.model_fields}
        grid = {name: value for name, value in config.items() if name not in field}
        return cls(**grid, field=FieldConfig(**field))

    def _cell(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cell [P, 3], position within it in [0, 1] [P, 3], and whether in the box [P].

        A point on a face belongs to the upper cell, one on the box's upper face to the last cell.
        """
        shape = torch.tensor(self.network_of_cell.shape, device=points.device)
        scaled = (points - self.low) * self.cells_per_unit
        x, y, z = ((a >= 0) & (a <= n) for a, n in zip(scaled.unbind(1), shape, strict=True))
        cell = torch.minimum(scaled.floor(), shape - 1).clamp_min(0)
        return cell.long(), scaled - cell, x & y & z

    def _network_of(self, cell: Tensor) -> Tensor:
        """Network of each integer cell [P, 3] of the grid."""
        _, y, z = self.network_of_cell.shape
        flat = (cell[:, 0] * y + cell[:, 1]) * z + cell[:, 2]
        return self.network_of_cell.view(-1).index_select(0, flat)

    def _network(self, cell: Tensor) -> Tensor:
        """Network of each integer cell [P, 3]; -1 for cells outside the grid."""
        shape = torch.tensor(self.network_of_cell.shape, device=cell.device)
        outside = ((cell < 0) | (cell >= shape)).any(dim=1)
        return self._network_of(cell.masked_fill(outside[:, None], 0)).masked_fill(outside, -1)

    def blend(
        self,
        points: Tensor,  # [P, 3]
    ) -> Blend:
        """The networks that contribute to each point, sorted by point where there is no margin.

        At a distance u (in cells) from the nearest face along an axis, the cell beyond the face
        gets the weight (1 - u / margin) / 2; weights multiply over the axes and are normalized over
        the cells that have a network. A point in a cell without a network is in no pair.
        """
        cell, within, inside = self._cell(points)
        network = self._network_of(cell)
        own = torch.nonzero(inside & (network >= 0)).squeeze(1)
        if len(own) < len(points):
            cell, within = cell.index_select(0, own), within.index_select(0, own)
            network = network.index_select(0, own)
        if self.field.margin == 0:
            return Blend(own, network, 2 * within - 1, torch.ones_like(within[:, 0]))
        return _normalized(len(points), *self._around(own, cell, within))

    def _around(self, own: Tensor, cell: Tensor, within: Tensor) -> Blend:
        """Up to eight cells around each point, weights not yet normalized."""
        side = (within > 0.5).long() * 2 - 1
        to_face = torch.where(within > 0.5, 1 - within, within)
        beyond = (0.5 * (1 - to_face / self.field.margin)).clamp_min(0)
        parts = []
        for corner in itertools.product((0, 1), repeat=3):
            step = torch.tensor(corner, device=own.device)
            weight = torch.where(step == 1, beyond, 1 - beyond).prod(dim=1)
            near = torch.nonzero(weight > 0).squeeze(1)
            network = self._network(cell[near] + step * side[near])
            near, network = near[network >= 0], network[network >= 0]
            local = 2 * (within[near] - step * side[near]) - 1
            parts.append((own[near], network, local, weight[near]))
        return Blend(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def forward(
        self,
        points: Tensor,  # [P, 3] world
        directions: Tensor,  # [P, 3] unit, from the camera
        features: bool = True,
    ) -> Field:
        """The field at points seen along directions; differentiable in the weights.

        Without ``features`` the field's features are empty, [P, 0], which is faster.
        """
        blend = self.blend(points)
        whole = self.field.margin == 0 and len(blend.point) == len(points)  # a network each
        raw, hidden = evaluate(
            self.architecture,
            self.weights,
            blend.network,
            blend.local,
            directions if whole else directions[blend.point],
            features=features,
        )
        # The shift starts every cell as a fog, neither empty (no gradient) nor a wall.
        sigma = self.density_scale * nn.functional.softplus(raw[:, :1] - 2.25)
        mixed = torch.cat([sigma, torch.sigmoid(raw[:, 1:])], dim=1)
        if not whole:
            mixed, hidden = (_scatter(values, blend, len(points)) for values in (mixed, hidden))
        return Field(mixed[:, 0], mixed[:, 1:], hidden)


def _scatter(values: Tensor, blend: Blend, points: int) -> Tensor:
    """Weighted sum of the networks' values at each point."""
    out = values.new_zeros(points, values.shape[1])
    return out.index_add(0, blend.point, values * blend.weight.unsqueeze(1))


def _normalized(
    points: int, point: Tensor, network: Tensor, local: Tensor, weight: Tensor
) -> Blend:
    total = weight.new_zeros(points).index_add_(0, point, weight)
    return Blend(point, network, local, weight / total[point])


def _check(config: dict[str, Any]) -> None:
    low, high, resolution = config["low"], config["high"], config["resolution"]
    if len(resolution) != 3 or min(resolution) < 1:
        raise ValueError(f"resolution must be three positive numbers of cells, got {resolution}")
    if not all(a < b for a, b in zip(low, high, strict=True)):
        raise ValueError(f"the box must have low < high on each axis, got {low} and {high}")
    if config["networks"] < 1:
        raise ValueError("the grid has no occupied cell")


# ---- What it takes to render, in memory and on disk ----------------------------------------------


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
        """The chosen views composited over white, [N, H, W, 3] on the CPU: a set is large."""
        shown = progress(views, "render", "view")
        return torch.stack([self.shot(cameras, view, config) for view in shown])

    def shot(self, cameras: Cameras, view: int, config: EvaluationConfig) -> Tensor:
        """One view composited over white, [H, W, 3] on the CPU."""
        rendered = self.render(cameras, view, chunk=config.chunk, stop=config.stop)
        return (rendered.rgb + (1 - rendered.alpha[..., None])).cpu()


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


def halved(student: Student) -> Student:
    """The student with its weights rounded to half precision."""
    config, state = student.field.config, student.field.state_dict()
    field = KiloNeRF.from_config(config).to(state["weights"].device)
    field.load_state_dict(state | {"weights": state["weights"].half().float()})
    return Student(field, student.occupancy, student.step)


def stored_bytes(student: Student, number: int = 4) -> int:
    """Bytes of the weights, the table of networks and a bit a voxel: what rendering needs."""
    weights = number * student.parameters
    tables = 2 * student.field.network_of_cell.numel() + student.occupancy.occupied.numel() // 8
    return weights + tables


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


# ---- What is rendered to evaluate a student, by as many processes as there are -------------------


def evaluation_shots(
    student: Student,
    before: Student,  # Stage 2
    scene: Mapping[str, Views],  # `test` among them
    turntable: Renders,  # of the teacher, from the same poses
    frames: Sequence[int],  # of the test views, pictured before Stage 2 as well
    config: EvaluationConfig,
    scratch: Path | None = None,  # where several processes share the views
) -> dict[str, Tensor]:
    """What the student shows from where it was not trained, [N, H, W, 3] on the CPU, over white.

    By the scene's names but `train`, and `turntable`; `half`, the test views in half precision;
    `before`. Of several processes the first gets all, the others nothing. What a killed run left in
    its scratch folder is not rendered again.
    """
    device, models = student.field.weights.device, {"half": halved(student), "before": before}
    poses = {name: views.cameras for name, views in scene.items() if name != "train"}
    poses["turntable"] = turntable.cameras
    on_device = {name: cameras.to(device) for name, cameras in poses.items()}
    numbers = {name: range(len(cameras)) for name, cameras in poses.items()}
    sets = {**numbers, "half": numbers["test"], "before": frames}
    shots = [(name, view) for name, of_set in sets.items() for view in of_set]

    def rendered(number: int) -> dict[str, Tensor]:
        name, view = shots[number]
        cameras = on_device["test" if name in models else name]
        return {"image": models.get(name, student).shot(cameras, view, config)}

    files = [f"shot{number:05d}.pt" for number in range(len(shots))]
    images: dict[str, list[Tensor]] = {}
    done = shared(files, rendered, scratch, "render", "view")
    for (name, _), values in zip(shots, done, strict=is_main()):
        images.setdefault(name, []).append(values["image"])
    return {name: torch.stack(of_set) for name, of_set in images.items()}
