"""The image of 3D Gaussians in plain words: every splat at every pixel, no tiles, no tricks.

Slow; the oracle for `braid.radiance.gaussians.splat`. Gradients come from autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from braid.radiance.gaussians.gaussians import Gaussians, basis
from braid.radiance.scenes.cameras import Cameras, Rendered


def render(gaussians: Gaussians, cameras: Cameras, view: int) -> Rendered:
    """Render one view, splat by splat, nearest first."""
    rays = cameras.view_rays(view)
    camera_to_world = cameras.camera_to_world[view].to(gaussians.means)
    axes = camera_to_world[:3, :3] * camera_to_world.new_tensor([1.0, -1.0, -1.0])  # OpenCV
    local = (gaussians.means - camera_to_world[:3, 3]) @ axes
    stretch = 1 / (rays.directions.to(axes) @ axes[:, 2])  # distance along the ray over z

    rgb = local.new_zeros(cameras.pixels, 3)
    z = local.new_zeros(cameras.pixels)
    left = local.new_ones(cameras.pixels)
    for i in torch.argsort(local[:, 2], stable=True).tolist():
        if local[i, 2] <= 0.2:
            continue
        alpha = _alpha(gaussians, i, local[i], axes, cameras)
        weight = torch.where(left >= 1e-4, left, 0) * alpha
        rgb = rgb + weight[:, None] * _color(gaussians, i, camera_to_world[:3, 3])
        z = z + weight * local[i, 2]
        left = torch.where(left >= 1e-4, left * (1 - alpha), left)
    alpha = 1 - left
    depth = torch.where(alpha > 0, z / alpha.clamp_min(1e-30), 0) * stretch
    shape = (cameras.height, cameras.width)
    return Rendered(rgb.view(*shape, 3), alpha.view(shape), depth.view(shape))


def _alpha(gaussians: Gaussians, i: int, local: Tensor, axes: Tensor, cameras: Cameras) -> Tensor:
    """Opacity of splat i at every pixel, row-major."""
    x, y, z = local
    limit_x = 1.3 * cameras.width / (2 * cameras.focal)
    limit_y = 1.3 * cameras.height / (2 * cameras.focal)
    zero = torch.zeros_like(z)
    jacobian = cameras.focal * torch.stack(
        [
            torch.stack([1 / z, zero, -(x / z).clamp(-limit_x, limit_x) / z]),
            torch.stack([zero, 1 / z, -(y / z).clamp(-limit_y, limit_y) / z]),
        ]
    )
    covariance = jacobian @ axes.T @ gaussians.covariances()[i] @ axes @ jacobian.T
    covariance = covariance + 0.3 * torch.eye(2).to(covariance)
    pixel = torch.arange(cameras.pixels).to(z)
    dx = pixel % cameras.width + 0.5 - (cameras.focal * x / z + cameras.width / 2)
    dy = (pixel / cameras.width).floor() + 0.5 - (cameras.focal * y / z + cameras.height / 2)
    offset = torch.stack([dx, dy], dim=1)
    power = 0.5 * (offset @ torch.linalg.inv(covariance) * offset).sum(dim=1)
    alpha = (gaussians.opacities[i] * torch.exp(-power)).clamp_max(0.99)
    return torch.where(alpha < 1 / 255, 0, alpha)


def _color(gaussians: Gaussians, i: int, center: Tensor) -> Tensor:
    direction = torch.nn.functional.normalize(gaussians.means[i] - center, dim=0)
    return torch.relu(0.5 + basis(direction, gaussians.degree) @ gaussians.sh[i])
