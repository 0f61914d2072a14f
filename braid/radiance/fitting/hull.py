"""The visual hull of alpha masks, as the Gaussians from which a fit starts.

A voxel stays if it lies inside the mask of every view that shows it. The scene's box needs no
argument: a generous cube around the point that all cameras look at is carved coarsely, twice, and
tightened to what is left.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from braid.radiance.gaussians.gaussians import Gaussians, base_coefficient, coefficients
from braid.radiance.scenes.cameras import Cameras

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
