"""Fit 3D Gaussians to posed images: hull initialization, Adam, density control, resumable.

What a step draws depends on the seed and its number only, so a fit that was killed at any step and
started again in the same scratch folder ends with the same bytes as one that was not.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from braid.common.progress import progress
from braid.common.rng import generator
from braid.radiance.config import TeacherConfig
from braid.radiance.gaussians.gaussians import (
    Gaussians,
    base_coefficient,
    coefficients,
    concatenate,
    rotation_matrices,
)
from braid.radiance.gaussians.splat import render
from braid.radiance.scenes.cameras import Cameras, Rendered
from braid.training import checkpoint as checkpoints
from braid.training.trainer import Run

# ---- The visual hull of alpha masks, as the Gaussians from which a fit starts --------------------
# A voxel stays if it lies inside the mask of every view that shows it. The scene's box needs no
# argument: a generous cube around the point that all cameras look at is carved coarsely, twice, and
# tightened to what is left.

_COARSE = 48  # voxels along the box's longest side while the box is being found
_MASK = 0.3  # alpha above which a pixel belongs to the object
_SCALE = 0.6  # standard deviation of an initial Gaussian, in voxels
_OPACITY = 0.7


class Hull(NamedTuple):
    """Surface voxels of a visual hull."""

    points: Tensor  # [S, 3], voxel centers
    voxel: float  # side of a voxel, scene units
    box: Tensor  # [2, 3], lowest and highest corner of what is occupied


def initial_gaussians(
    hull: Hull,
    cameras: Cameras,
    rgba: Tensor,  # [N, H, W, 4], premultiplied
    degree: int,
) -> Gaussians:
    """A round Gaussian in every surface voxel, in the mean color of the views that see it."""
    count = len(hull.points)
    sh = hull.points.new_zeros(count, coefficients(degree), 3)
    sh[:, 0] = base_coefficient(surface_colors(hull, cameras, rgba))
    return Gaussians(
        means=hull.points,
        log_scales=torch.full_like(hull.points, math.log(_SCALE * hull.voxel)),
        quaternions=hull.points.new_tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        opacity_logits=hull.points.new_full((count,), math.log(_OPACITY / (1 - _OPACITY))),
        sh=sh,
    )


def visual_hull(
    cameras: Cameras,
    alpha: Tensor,  # [N, H, W]
    resolution: int,  # voxels along the longest side of the box
) -> Hull:
    """Carve the object's hull and keep the voxels at its surface.

    Raises:
        ValueError: if no voxel survives: the masks are empty, or the poses do not agree with them.
    """
    box = _first_box(cameras).to(alpha.device)
    for _ in range(2):
        voxel, grid = _carve(cameras, alpha, box, _COARSE, margin=math.sqrt(0.75))
        occupied = grid.nonzero()
        if not len(occupied):
            break
        low = box[0] + voxel * (occupied.amin(dim=0) - 1)
        box = torch.stack([low, box[0] + voxel * (occupied.amax(dim=0) + 2)])
    voxel, grid = _carve(cameras, alpha, box, resolution, margin=0.0)
    points = box[0] + voxel * (_surface(grid).nonzero() + 0.5)
    if not len(points):
        raise ValueError(
            f"the visual hull of {len(alpha)} views is empty at resolution {resolution}:"
            " expected alpha masks that overlap in space (check poses and masks)"
        )
    half = 0.5 * voxel
    return Hull(points, voxel, torch.stack([points.amin(0) - half, points.amax(0) + half]))


def _first_box(cameras: Cameras) -> Tensor:  # [2, 3]
    """A cube around the point nearest to all optical axes, as large as a view can show."""
    poses = cameras.camera_to_world.cpu().double()  # that driver and float64 are not everywhere
    centers, axes = poses[:, :3, 3], poses[:, :3, 2]
    across = torch.eye(3).to(poses) - axes[:, :, None] * axes[:, None, :]
    target = torch.linalg.lstsq(across.flatten(0, 1), (across @ centers[..., None]).flatten(0, 1))
    middle = target.solution[:, 0]
    distance = (centers - middle).norm(dim=1).median()
    slope = max(cameras.width, cameras.height) / (2 * cameras.focal)
    half = distance * min(1.0, slope / max(1 - slope, 1e-6))
    return torch.stack([middle - half, middle + half]).float()


def _carve(
    cameras: Cameras, alpha: Tensor, box: Tensor, resolution: int, margin: float
) -> tuple[float, Tensor]:
    """Voxel side and occupancy [X, Y, Z]; masks are widened by `margin` voxels."""
    size = box[1] - box[0]
    voxel = float(size.max()) / resolution
    shape = [max(1, math.ceil(side / voxel - 1e-6)) for side in size.tolist()]
    grid = torch.ones(shape, dtype=torch.bool, device=alpha.device)
    alive = grid.flatten().nonzero()[:, 0]
    points = box[0] + voxel * (grid.nonzero() + 0.5)
    seen = torch.zeros(len(points), dtype=torch.int32, device=alpha.device)
    for view in range(len(cameras)):
        x, y, z, inside = _pixels(points, cameras, view)
        nearest = float(z.clamp_min(voxel).median()) if len(z) else 1.0
        radius = math.ceil(margin * voxel * cameras.focal / nearest) if margin else 0
        mask = _widen(alpha[view] > _MASK, radius)
        keep = ~inside | mask[y, x]
        points, alive, seen = points[keep], alive[keep], (seen + inside)[keep]
    grid = torch.zeros_like(grid)
    grid.view(-1)[alive[seen > len(cameras) // 2]] = True
    return voxel, grid


def _pixels(points: Tensor, cameras: Cameras, view: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Column, row (both clamped to the image), depth z, and whether the view sees the point."""
    pose = cameras.world_to_camera()[view].to(points)
    x, y, z = (points @ pose[:3, :3].T + pose[:3, 3]).unbind(dim=1)
    scale = cameras.focal / z.clamp_min(1e-6)
    column = (x * scale + 0.5 * cameras.width).floor()
    row = (y * scale + 0.5 * cameras.height).floor()
    inside = (column >= 0) & (column < cameras.width) & (row >= 0) & (row < cameras.height)
    column = column.clamp(0, cameras.width - 1).long()
    return column, row.clamp(0, cameras.height - 1).long(), z, inside & (z > 0)


def _widen(mask: Tensor, radius: int) -> Tensor:  # [H, W]
    if radius == 0:
        return mask
    side = 2 * radius + 1
    return torch.nn.functional.max_pool2d(mask[None].float(), side, 1, radius)[0] > 0


def _surface(grid: Tensor) -> Tensor:  # [X, Y, Z]
    """Occupied voxels with a face towards an empty one."""
    solid = torch.nn.functional.pad(grid, (1, 1, 1, 1, 1, 1))
    buried = grid.clone()
    for axis in range(3):
        for shift in (1, -1):
            buried &= solid.roll(shift, axis)[1:-1, 1:-1, 1:-1]
    return grid & ~buried


def surface_colors(
    hull: Hull,
    cameras: Cameras,
    rgba: Tensor,  # [N, H, W, 4], premultiplied
) -> Tensor:
    """Mean straight color of each surface voxel over the views that see it, [S, 3].

    A view sees a voxel if none lies clearly before it in a z-buffer whose cells are as large as
    a voxel looks. A voxel that nobody sees takes the mean of the others.
    """
    total = hull.points.new_zeros(len(hull.points), 4)
    for view in range(len(cameras)):
        x, y, z, inside = _pixels(hull.points, cameras, view)
        cell = math.ceil(1.5 * hull.voxel * cameras.focal / float(z.median().clamp_min(1e-6)))
        columns = cameras.width // cell + 1
        place = (y // cell) * columns + x // cell
        nearest = z.new_full(((cameras.height // cell + 1) * columns,), math.inf)
        nearest = nearest.scatter_reduce(0, place[inside], z[inside], "amin")
        visible = inside & (z < nearest[place] + 1.5 * hull.voxel)
        # The sum of premultiplied colors over the sum of alphas is the alpha-weighted mean.
        total += rgba[view, y, x] * visible[:, None]
    seen = total[:, 3] > 0
    mean = total.sum(dim=0)
    return (
        torch.where(seen[:, None], total, mean)[:, :3]
        / torch.where(seen, total[:, 3], mean[3].clamp_min(1e-6))[:, None]
    )


# ---- Density control: clone, split and prune Gaussians during a fit ----------------------------
# After Kerbl et al. 2023, with a budget in place of a gradient threshold: at each round the given
# fraction of the Gaussians, those with the largest accumulated position gradient, is doubled, so
# that the count is known beforehand. Every change is a choice of rows, which parameters and Adam
# moments follow alike, and edits of the new rows.

_SHRINK = 1.6  # a split Gaussian's children are smaller by this factor
_APART = 0.5  # deviations between the children of a clone; in one place they would stay equal


class Round(NamedTuple):
    """The Gaussians after one round of density control."""

    gaussians: Gaussians  # M rows
    source: Tensor  # [M], the row that each came from
    fresh: Tensor  # [M], True for the children of clones and splits


@torch.no_grad()
def control_density(
    gaussians: Gaussians,
    pressure: Tensor,  # [G], accumulated gradient norm of the means
    config: TeacherConfig,
    *,
    voxel: float,  # scene units
    generator: torch.Generator,  # of where the children of a split lie
) -> Round:
    """Prune the faint, then double the fraction of the others that is under most pressure.

    A Gaussian whose largest standard deviation exceeds `split_scale` voxels is split into two
    smaller ones within it; the others are cloned, their children moved apart a little.
    """
    kept = (gaussians.opacities >= config.prune_opacity).nonzero()[:, 0]
    count = min(int(config.density_grow * len(kept)), max(0, config.density_capacity - len(kept)))
    doubled = kept[torch.argsort(pressure[kept], descending=True, stable=True)[:count]]
    stays = torch.ones(len(gaussians), dtype=torch.bool, device=kept.device)
    stays[doubled] = False
    source = torch.cat([kept[stays[kept]], doubled, doubled])
    fresh = torch.arange(len(source), device=kept.device) >= len(kept) - count
    pairs = _children(gaussians[doubled], config.split_scale * voxel, generator)
    chosen = gaussians[kept[stays[kept]]]
    return Round(concatenate(chosen, pairs), source, fresh)


def _children(parents: Gaussians, limit: float, generator: torch.Generator) -> Gaussians:
    """First children, then second children of each parent.

    A clone's opacity is such that two of them cover as much as their parent did.
    """
    count = len(parents)
    large = (parents.log_scales.amax(dim=1) > math.log(limit))[:, None]
    draw = torch.randn(count, 3, generator=generator).to(parents.means)
    within = torch.where(large, draw, 0.5 * _APART * normalize(draw, dim=1))
    local = within * parents.log_scales.exp()
    offset = (rotation_matrices(parents.quaternions) @ local[:, :, None])[:, :, 0]
    smaller = parents.log_scales - math.log(_SHRINK) * large
    half = 1 - (1 - parents.opacities).sqrt()
    logits = torch.where(large[:, 0], parents.opacity_logits, torch.logit(half, eps=1e-6))
    first = Gaussians(parents.means + offset, smaller, parents.quaternions, logits, parents.sh)
    second = Gaussians(parents.means - offset, smaller, parents.quaternions, logits, parents.sh)
    return concatenate(first, second)


# ---- The state of a fit: leaf tensors, Adam's moments, step number, history --------------------


class FitState:
    """All that a step of a fit changes."""

    def __init__(self, gaussians: Gaussians, rates: dict[str, float]) -> None:
        self.rates = rates
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.pressure = torch.zeros_like(gaussians.opacity_logits)
        self.set_gaussians(gaussians)

    def set_gaussians(self, gaussians: Gaussians) -> None:
        """Make leaf tensors of the Gaussians, and an optimizer with fresh moments."""
        parts = {
            "means": gaussians.means,
            "log_scales": gaussians.log_scales,
            "quaternions": gaussians.quaternions,
            "opacity_logits": gaussians.opacity_logits,
            "color": gaussians.sh[:, :1],
            "harmonics": gaussians.sh[:, 1:],
        }
        self.parts = {k: v.detach().clone().requires_grad_() for k, v in parts.items()}
        groups = [{"params": [self.parts[k]], "lr": rate} for k, rate in self.rates.items()]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)

    def gaussians(self, degree: int) -> Gaussians:
        """The Gaussians with harmonics up to a degree."""
        parts = self.parts
        higher = parts["harmonics"][:, : coefficients(degree) - 1]
        return Gaussians(
            parts["means"],
            parts["log_scales"],
            parts["quaternions"],
            parts["opacity_logits"],
            torch.cat([parts["color"], higher], dim=1),
        )

    def replace(self, gaussians: Gaussians, source: Tensor, fresh: Tensor) -> None:
        """Take other Gaussians; Adam's moments follow the rows, those of fresh rows are zero."""
        old = [self.optimizer.state[part] for part in self.parts.values()]
        self.set_gaussians(gaussians)
        for part, moments in zip(self.parts.values(), old, strict=True):
            stale = fresh.view(-1, *[1] * (part.dim() - 1))
            self.optimizer.state[part] = {
                name: value[source].masked_fill(stale, 0.0) if value.dim() else value
                for name, value in moments.items()
            }
        self.pressure = torch.zeros_like(gaussians.opacity_logits)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers, for a checkpoint."""
        return {
            "step": self.step,
            "history": self.history,
            "pressure": self.pressure,
            "parts": {name: part.detach() for name, part in self.parts.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where a checkpoint was made."""
        parts = state["parts"]
        sh = torch.cat([parts.pop("color"), parts.pop("harmonics")], dim=1)
        device = self.pressure.device
        self.set_gaussians(Gaussians(**parts, sh=sh).to(device))
        self.optimizer.load_state_dict(state["optimizer"])
        self.pressure = state["pressure"].to(device)
        self.step, self.history = state["step"], state["history"]

    def gradient(self, name: str) -> Tensor:
        """The gradient of one part, as the last backward pass left it."""
        gradient = self.parts[name].grad
        assert gradient is not None, name
        return gradient


# ---- The fit -------------------------------------------------------------------------------------

COLUMNS = ("step", "loss", "psnr", "count")  # of the history; psnr: of one train view, on white


class Fit(NamedTuple):
    """A fitted scene."""

    gaussians: Gaussians
    history: list[dict[str, float]]


def fit(
    cameras: Cameras,
    rgba: Tensor,  # [N, H, W, 4], premultiplied
    config: TeacherConfig,
    run: Run,
    *,
    backend: str = "auto",  # of the rasterizer, see `braid.radiance.gaussians.splat.render`
) -> Fit:
    """Fit Gaussians to the views, on the device that holds them.

    The state is kept in the run's scratch folder; where one is there, the fit goes on from it.

    Raises:
        ValueError: if the visual hull is empty.
        FloatingPointError: if the loss or a gradient is not finite; the checkpoint stays as it was.
    """
    hull = visual_hull(cameras, rgba[..., 3], config.resolution)
    radius = 0.5 * float((hull.box[1] - hull.box[0]).max())
    gaussians = initial_gaussians(hull, cameras, rgba, config.sh_degree)
    state = FitState(gaussians, _rates(config, radius))
    checkpoint = run.scratch / "fit.pt" if run.scratch else None
    saved = checkpoints.load(checkpoint) if checkpoint else None
    if saved is not None:
        state.load_state_dict(saved)

    bar = progress(range(config.steps), "teacher", "step", initial=state.step)
    while state.step < config.steps:
        _step(state, cameras, rgba, config, run, backend)
        if _density_due(state.step, config):
            _density_round(state, config, run.seed, hull.voxel)
        if checkpoint and state.step % run.checkpoint_every == 0:
            checkpoints.save(checkpoint, state.state_dict())
        bar.update()
    bar.close()
    return Fit(state.gaussians(config.sh_degree).detach(), state.history)


def _step(
    state: FitState,
    cameras: Cameras,
    rgba: Tensor,
    config: TeacherConfig,
    run: Run,
    backend: str,
) -> None:
    """One view, one update."""
    view = _view(run.seed, state.step, len(cameras))
    degree = min(config.sh_degree, state.step // config.sh_interval)
    rendered = render(state.gaussians(degree), cameras, view, backend=backend)
    loss = photo_loss(rendered, rgba[view], config.alpha_weight)
    state.optimizer.zero_grad(set_to_none=False)
    loss.backward()
    _check_finite(loss, state)
    for group, rate in zip(state.optimizer.param_groups, state.rates.values(), strict=True):
        group["lr"] = rate * config.lr_decay ** (state.step / config.steps)
    state.optimizer.step()
    state.pressure += state.gradient("means").norm(dim=1)
    state.step += 1
    if state.step % run.log_every == 0 or state.step == config.steps:
        state.history.append(_row(state, loss, rendered, rgba[view]))
        if run.on_log:
            run.on_log(state.history[-1])


def photo_loss(
    rendered: Rendered,
    rgba: Tensor,  # [H, W, 4], premultiplied
    alpha_weight: float,
) -> Tensor:
    """L1 of the premultiplied color + alpha_weight * squared error of alpha."""
    color = (rendered.rgb - rgba[..., :3]).abs().mean()
    return color + alpha_weight * (rendered.alpha - rgba[..., 3]).square().mean()


def _rates(config: TeacherConfig, radius: float) -> dict[str, float]:
    return {
        "means": config.lr_means * radius,
        "log_scales": config.lr_scales,
        "quaternions": config.lr_quaternions,
        "opacity_logits": config.lr_opacities,
        "color": config.lr_color,
        "harmonics": config.lr_harmonics,
    }


def _view(seed: int, step: int, count: int) -> int:
    """Every view once per pass, in an order that is shuffled anew for each pass."""
    passed, place = divmod(step, count)
    return int(torch.randperm(count, generator=generator(seed, "views", passed))[place])


def _check_finite(loss: Tensor, state: FitState) -> None:
    sums = [loss.detach(), *(state.gradient(name).sum() for name in state.parts)]
    if not torch.stack(sums).isfinite().all():
        raise FloatingPointError(
            f"teacher: loss or gradient is not finite at step {state.step}"
            f" (loss {loss.item():g}); the last checkpoint is kept: lower the learning rates"
        )


def _density_due(step: int, config: TeacherConfig) -> bool:
    within = config.density_start <= step / config.steps <= config.density_stop
    return config.density_interval > 0 and within and step % config.density_interval == 0


def _density_round(state: FitState, config: TeacherConfig, seed: int, voxel: float) -> None:
    changed = control_density(
        state.gaussians(config.sh_degree).detach(),
        state.pressure,
        config,
        voxel=voxel,
        generator=generator(seed, "density", state.step),
    )
    state.replace(*changed)


@torch.no_grad()
def _row(state: FitState, loss: Tensor, rendered: Rendered, rgba: Tensor) -> dict[str, float]:
    error = rendered.rgb - rendered.alpha[..., None] - (rgba[..., :3] - rgba[..., 3:])
    psnr = -10 * math.log10(max(float(error.square().mean()), 1e-10))
    return {"step": state.step, "loss": loss.item(), "psnr": psnr, "count": len(state.pressure)}
