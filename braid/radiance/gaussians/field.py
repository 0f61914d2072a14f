"""What students and features take from the teacher: renders, occupied space, the field in it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import normalize

from braid.common.progress import progress
from braid.radiance.config import OwnTeacherConfig, RendersConfig
from braid.radiance.gaussians.compressed import half_turn, load_spz, save_spz
from braid.radiance.gaussians.gaussians import C0, Gaussians
from braid.radiance.gaussians.splat import render
from braid.radiance.scenes.blender import Views
from braid.radiance.scenes.cameras import Cameras, gaze
from braid.radiance.scenes.grids import FieldPoints, Occupancy
from braid.radiance.scenes.renders import Renders, joined
from braid.training.distributed import is_main, shared

# ---- What Gaussians say about space: which voxels they reach, and the field that they stand for
# A splat's opacity is not a density: alpha = 1 - exp(-tau) is what it shows along its central ray,
# so that as a field its density is tau / (sqrt(2 pi) s) exp(-d^2 / 2), where s is its standard
# deviation along the ray and d the Mahalanobis distance. The integral along any ray is then the
# splat's own optical depth there.

PAIRS = 1 << 22  # (Gaussian, voxel) pairs handled at once: bounds the memory of filling
SWEEPS = 3  # over the axes, of a coordinate descent


def widened(
    covariances: Tensor,  # [G, 3, 3]
    blur: float,
) -> Tensor:
    """Covariances as the rasterizer's screen-space blur of 0.3 px^2 leaves them."""
    eye = torch.eye(3, dtype=covariances.dtype, device=covariances.device)
    return covariances + 0.3 * blur**2 * eye


def occupancy_of_gaussians(
    means: Tensor,  # [G, 3]
    covariances: Tensor,  # [G, 3, 3]
    opacities: Tensor,  # [G] in [0, 1]
    resolution: int,  # voxels on the longest axis
    blur: float,  # scene units per pixel at a typical distance, z / focal
    radius: float = 2.5,
    min_opacity: float = 0.01,
) -> Occupancy:
    """Voxels that some Gaussian reaches within ``radius`` standard deviations.

    The rasterizer widens every splat by 0.3 pixels squared, so the extent counted here is that of
    the widened Gaussian, s' = sqrt(s^2 + 0.3 blur^2); without it the student lacks the silhouette's
    rim. Gaussians below ``min_opacity`` are skipped. Voxels are cubic, on the box of the counted
    Gaussians.

    Raises:
        ValueError: no Gaussian counts.
    """
    strong = opacities >= min_opacity
    if not bool(strong.any()):
        raise ValueError(f"no Gaussian reaches the opacity {min_opacity}: nothing is occupied")
    means, covariances = means[strong], widened(covariances[strong], blur)
    reach = radius * torch.sqrt(torch.diagonal(covariances, dim1=1, dim2=2))
    lower, upper = (means - reach).amin(0), (means + reach).amax(0)
    voxel = float((upper - lower).max()) / resolution
    shape = torch.ceil((upper - lower) / voxel - 1e-4).long().clamp_min(1)
    upper = lower + shape * voxel
    precision = torch.linalg.inv(covariances)
    occupied = torch.zeros(shape.tolist(), dtype=torch.bool, device=means.device)
    size = (upper - lower) / shape
    for gaussian, index in _pairs(means, reach, lower, size, shape):
        corner = lower + index * size - means[gaussian]
        hit = _least_distance_squared(precision[gaussian], corner, corner + size) <= radius**2
        occupied[tuple(index[hit].unbind(1))] = True
    return Occupancy(occupied, lower, upper)


def _pairs(
    means: Tensor, reach: Tensor, low: Tensor, size: Tensor, shape: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """(Gaussian [Q], voxel [Q, 3]) for the voxels in each Gaussian's bounding box, in blocks."""
    first = ((means - reach - low) / size).floor().long().clamp_min(0)
    last = torch.minimum(((means + reach - low) / size).floor().long(), shape - 1)
    extent = (last - first + 1).clamp_min(0)
    volume = extent.prod(dim=1)
    ends = torch.cumsum(volume, 0)
    start = 0
    while start < len(means):
        done = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(torch.searchsorted(ends, done + PAIRS, right=True)))
        block = torch.arange(start, end, device=means.device)
        gaussian = torch.repeat_interleave(block, volume[start:end])
        offset = torch.arange(len(gaussian), device=means.device) + done
        offset = offset - (ends - volume)[gaussian]
        _, ny, nz = extent[gaussian].unbind(1)
        index = torch.stack([offset // (ny * nz), offset // nz % ny, offset % nz], dim=1)
        yield gaussian, index + first[gaussian]
        start = end


def _least_distance_squared(
    precision: Tensor,  # [Q, 3, 3]
    low: Tensor,  # [Q, 3] corner of a box, relative to the mean
    high: Tensor,  # [Q, 3]
) -> Tensor:
    """Least squared Mahalanobis distance of a box from a mean, by coordinate descent, [Q]."""
    x = torch.minimum(torch.zeros_like(low).maximum(low), high)
    for axis in list(range(3)) * SWEEPS:
        row = precision[:, axis]
        others = (row * x).sum(1) - row[:, axis] * x[:, axis]
        best = -others / row[:, axis]
        x[:, axis] = torch.minimum(best.maximum(low[:, axis]), high[:, axis])
    return torch.einsum("qi,qij,qj->q", x, precision, x)


def gaussian_field(
    points: Tensor,  # [P, 3]
    directions: Tensor,  # [P, 3] unit
    means: Tensor,  # [G, 3]
    covariances: Tensor,  # [G, 3, 3]
    opacities: Tensor,  # [G] in [0, 1]
    colors: Tensor,  # [G, 3]
    blur: float,  # scene units per pixel, as in occupancy_of_gaussians
    neighbors: int = 8,
    chunk: int = 1 << 16,
) -> tuple[Tensor, Tensor]:
    """Density [P] and color [P, 3] at points, from the ``neighbors`` nearest Gaussians.

    Opacities are clipped to the rasterizer's 0.99. The color is the density-weighted mean, that
    of the nearest Gaussian where all are negligible.
    """
    covariances = widened(covariances, blur)
    precision = torch.linalg.inv(covariances)
    depth = -torch.log1p(-opacities.clamp(max=0.99))
    count = min(neighbors, len(means))
    tree = cKDTree(means.detach().cpu().numpy())
    sigmas, rgbs = [], []
    for x, ray in zip(torch.split(points, chunk), torch.split(directions, chunk), strict=True):
        _, nearest = tree.query(x.detach().cpu().numpy(), k=list(range(1, count + 1)))
        index = torch.from_numpy(nearest).to(means.device)
        near = _densities(x, ray, means[index], precision[index], depth[index])
        fraction = near.clamp_min(1e-12) / near.clamp_min(1e-12).sum(1, keepdim=True)
        sigmas.append(near.sum(1))
        rgbs.append(torch.einsum("pk,pkc->pc", fraction, colors[index]))
    return torch.cat(sigmas), torch.cat(rgbs)


def _densities(
    x: Tensor,  # [P, 3]
    ray: Tensor,  # [P, 3]
    means: Tensor,  # [P, K, 3]
    precision: Tensor,  # [P, K, 3, 3]
    depth: Tensor,  # [P, K] optical depth along the central ray
) -> Tensor:
    offset = x.unsqueeze(1) - means
    squared = torch.einsum("pki,pkij,pkj->pk", offset, precision, offset)
    inverse_s = torch.einsum("pi,pkij,pj->pk", ray, precision, ray).sqrt()
    return depth * inverse_s / math.sqrt(2 * math.pi) * torch.exp(-0.5 * squared)


# ---- Renders, the scan of the space, contributions -----------------------------------------------


@torch.no_grad()
def render_all(gaussians: Gaussians, cameras: Cameras) -> Renders:
    """Every view of the Gaussians, rounded to what is stored."""
    rgba, depth = [], []
    for view in progress(range(len(cameras)), "render", "view"):
        rendered = render(gaussians, cameras, view)
        pixels = torch.cat([rendered.rgb, rendered.alpha[..., None]], dim=-1)
        rgba.append(pixels.half().cpu().numpy())
        depth.append(rendered.depth.half().cpu().numpy())
    return Renders(cameras.to(torch.device("cpu")), np.stack(rgba), np.stack(depth))


VIEWS = 8  # that one of several processes renders before it takes others


def render_sets(
    gaussians: Gaussians,
    poses: Mapping[str, Cameras],
    device: torch.device,
    scratch: Path,  # of finished parts, which all processes see
) -> dict[str, Renders]:
    """Every view of each set of poses; several processes share them, and the first gets all.

    What a killed run left in its scratch folder is not rendered again.
    """
    parts = [
        (name, rows.tolist())
        for name, cameras in poses.items()
        for rows in torch.arange(len(cameras)).split(VIEWS)
    ]
    names = [f"views{number:05d}.pt" for number in range(len(parts))]

    def rendered(number: int) -> dict[str, Tensor]:
        name, rows = parts[number]
        renders = render_all(gaussians, poses[name][rows].to(device))
        arrays = {"rgba": renders.rgba, "depth": renders.depth}
        return {key: torch.from_numpy(values) for key, values in arrays.items()}

    sets: dict[str, list[Renders]] = {name: [] for name in poses}
    done = shared(names, rendered, scratch, "render", "part")
    for (name, rows), values in zip(parts, done, strict=is_main()):
        arrays = {key: tensor.numpy() for key, tensor in values.items()}
        sets[name].append(Renders(poses[name][rows], **arrays))
    if not is_main():
        return {}
    return {name: joined(*renders) for name, renders in sets.items()}


def pixel_footprint(cameras: Cameras) -> float:
    """Scene units per pixel at the distance of what the views look at."""
    distance = (cameras.camera_to_world[:, :3, 3] - gaze(cameras)).norm(dim=-1).mean()
    return float(distance) / cameras.focal


@torch.no_grad()
def scan_space(
    gaussians: Gaussians, cameras: Cameras, config: RendersConfig, generator: torch.Generator
) -> tuple[Occupancy, FieldPoints]:
    """Occupied voxels of the Gaussians, and their field at random points in them.

    Raises:
        ValueError: all Gaussians are next to transparent.
    """
    points, blur = config.field_points, pixel_footprint(cameras)
    covariances = gaussians.covariances()
    occupancy = occupancy_of_gaussians(
        gaussians.means, covariances, gaussians.opacities, config.voxels, blur
    )
    where = occupancy.sample(points, generator)
    view = torch.randint(len(cameras), (points,), generator=generator)
    origins = cameras.camera_to_world[view.to(where.device), :3, 3]
    directions = normalize(where - origins, dim=-1)
    colors = (0.5 + C0 * gaussians.sh[:, 0]).clamp(0, 1)
    sigma, rgb = gaussian_field(
        where, directions, gaussians.means, covariances, gaussians.opacities, colors, blur
    )
    return occupancy, FieldPoints(where, directions, sigma, rgb)


def contributions(gaussians: Gaussians, cameras: Cameras) -> Tensor:  # [G]
    """Each Gaussian's sum of T * alpha over all pixels of the views.

    An image is linear in the colors: with gray Gaussians, the derivative of the summed red channel
    in a Gaussian's red coefficient is C0 times its contribution.
    """
    gray = torch.zeros_like(gaussians.sh[:, :1]).requires_grad_()
    total = torch.zeros_like(gaussians.opacity_logits)
    for view in progress(range(len(cameras)), "contributions", "view"):
        seen = replace(gaussians, sh=gray)
        (gradient,) = torch.autograd.grad(render(seen, cameras, view).rgb[..., 0].sum(), gray)
        total += gradient[:, 0, 0] / C0
    return total.clamp_min(0)


def packed(path: Path, gaussians: Gaussians, views: Views) -> dict[str, float | int | str | None]:
    """Write the Gaussians as an SPZ: its bytes, and the PSNR of what it shows of the views."""
    save_spz(path, gaussians)
    shown = load_spz(path).to(gaussians.means.device)
    cameras = views.cameras.to(gaussians.means.device)
    images, errors = render_all(shown, cameras).on_white().clamp(0, 1), []
    for image, truth in zip(images, views.on_white(), strict=True):
        errors.append((image - truth).square().mean())
    psnr = -10 * torch.stack(errors).clamp_min(1e-10).log10()
    return {"psnr": float(psnr.mean()), "bytes": path.stat().st_size}


# ---- A user's own Gaussians, verified against the scene before anything is distilled from them ---
# Files of real captures hold floaters, and one far away would stretch the box that all cells of
# features and students share. The box is therefore that of what contributes to the training views.

VIEWS = 24  # of the training views, evenly spaced, that are compared with
SLACK = 2.0  # times the reach of nearly all contribution: what is thin and sticks out stays


def turned_to(train: Views, gaussians: Gaussians) -> Gaussians:
    """The Gaussians of a `.spz`, or those half a turn about x: whichever show the views better.

    Not all writers of that format turn the axes, and the file does not say.
    """
    views = _spread(train)
    return min(gaussians, half_turn(gaussians), key=lambda one: rendering_error(one, views))


def _spread(train: Views) -> Views:
    return train[torch.linspace(0, len(train) - 1, min(VIEWS, len(train))).round().long()]


def verified(gaussians: Gaussians, train: Views, config: OwnTeacherConfig) -> Gaussians:
    """The Gaussians without floaters, if they show what the views show.

    Raises:
        ValueError: they are further from the views than a silhouette in one color (with
            `mismatch: warn` that is a warning).
    """
    views = _spread(train)
    error, trivial = rendering_error(gaussians, views), silhouette_error(views)
    if not error < trivial:  # NaN is worse, too
        line = (
            f"the teacher's mean squared error against {len(views)} training views is {error:.3g},"
            f" a silhouette's in one color {trivial:.3g}: expected Gaussians of this scene, in its"
            " frame and units, for these cameras (or radiance.own_teacher.mismatch: warn)"
        )
        if config.mismatch == "stop":
            raise ValueError(line)
        warnings.warn(line, stacklevel=2)
    if config.outside == 0:
        return gaussians
    return gaussians[
        main_part(gaussians.means, contributions(gaussians, views.cameras), config.outside)
    ]


def main_part(
    means: Tensor,  # [G, 3]
    contribution: Tensor,  # [G] >= 0, to the training views
    outside: float,  # fraction of it that says nothing about the extent
) -> Tensor:
    """Which Gaussians lie in the scene's box, [G] bool.

    Along each axis: within `SLACK` times the distance from the contribution's median that all but
    the fraction `outside` of it lies in.
    """
    kept = torch.ones(len(means), dtype=torch.bool, device=means.device)
    for axis in means.unbind(dim=1):
        distance = (axis - _quantile(axis, contribution, 0.5)).abs()
        kept &= distance <= SLACK * _quantile(distance, contribution, 1 - outside)
    return kept


def _quantile(values: Tensor, weight: Tensor, fraction: float) -> Tensor:
    """The least value that at least the fraction of the weight does not exceed."""
    ordered, order = values.sort()
    cumulative = weight[order].cpu().double().cumsum(0)
    place = torch.searchsorted(cumulative, fraction * cumulative[-1])
    return ordered[min(int(place), len(ordered) - 1)]


@torch.no_grad()
def rendering_error(gaussians: Gaussians, views: Views) -> float:
    """Mean squared error over white of what the Gaussians show."""
    errors, truth = [], views.on_white()
    for view in progress(range(len(views)), "compare", "view"):
        rendered = render(gaussians, views.cameras, view)
        shown = (rendered.rgb + (1 - rendered.alpha[..., None])).clamp(0, 1)
        errors.append((shown - truth[view]).square().mean())
    return float(torch.stack(errors).mean())


def silhouette_error(views: Views) -> float:
    """Mean squared error over white of the true silhouettes in the mean color."""
    alpha = views.alpha[..., None]
    color = views.rgba[..., :3].sum(dim=(0, 1, 2)) / alpha.sum().clamp_min(1e-8)
    return float((alpha * color + 1 - alpha - views.on_white()).square().mean())
