"""Everything that students and feature tables need to know of the teacher, taken from it once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from braid.radiance.gaussian_field import gaussian_field, occupancy_of_gaussians
from braid.radiance.gaussians import Gaussians
from braid.radiance.harmonics import C0
from braid.radiance.occupancy import Occupancy
from braid.radiance.poses import gaze
from braid.radiance.rays import Cameras
from braid.radiance.renders import Renders
from braid.radiance.space import FieldPoints
from braid.radiance.splat import render


@torch.no_grad()
def render_all(gaussians: Gaussians, cameras: Cameras) -> Renders:
    """Every view of the Gaussians, rounded to what is stored."""
    rgba, depth = [], []
    for view in range(len(cameras)):
        rendered = render(gaussians, cameras, view)
        pixels = torch.cat([rendered.rgb, rendered.alpha[..., None]], dim=-1)
        rgba.append(pixels.half().cpu().numpy())
        depth.append(rendered.depth.half().cpu().numpy())
    return Renders(cameras.to(torch.device("cpu")), np.stack(rgba), np.stack(depth))


def pixel_footprint(cameras: Cameras) -> float:
    """Scene units per pixel at the distance of what the views look at."""
    distance = (cameras.camera_to_world[:, :3, 3] - gaze(cameras)).norm(dim=-1).mean()
    return float(distance) / cameras.focal


@torch.no_grad()
def survey(
    gaussians: Gaussians,
    cameras: Cameras,
    *,
    voxels: int,  # along the longest axis
    points: int,
    generator: torch.Generator,
) -> tuple[Occupancy, FieldPoints]:
    """Occupied voxels of the Gaussians, and their field at random points in them."""
    blur = pixel_footprint(cameras)
    covariances = gaussians.covariances()
    occupancy = occupancy_of_gaussians(
        gaussians.means, covariances, gaussians.opacities, voxels, blur
    )
    where = occupancy.sample(points, generator)
    view = torch.randint(len(cameras), (points,), generator=generator)
    origins = cameras.camera_to_world[view.to(where.device), :3, 3]
    directions = normalize(where - origins, dim=-1)
    colours = (0.5 + C0 * gaussians.sh[:, 0]).clamp(0, 1)
    sigma, rgb = gaussian_field(
        where, directions, gaussians.means, covariances, gaussians.opacities, colours, blur
    )
    return occupancy, FieldPoints(where, directions, sigma, rgb)


def contributions(gaussians: Gaussians, cameras: Cameras) -> Tensor:  # [G]
    """Each Gaussian's sum of T * alpha over all pixels of the views.

    An image is linear in the colours: with grey Gaussians, the derivative of the summed red channel
    in a Gaussian's red coefficient is C0 times its contribution.
    """
    grey = torch.zeros_like(gaussians.sh[:, :1]).requires_grad_()
    total = torch.zeros_like(gaussians.opacity_logits)
    for view in range(len(cameras)):
        seen = replace(gaussians, sh=grey)
        (gradient,) = torch.autograd.grad(render(seen, cameras, view).rgb[..., 0].sum(), grey)
        total += gradient[:, 0, 0] / C0
    return total.clamp_min(0)
