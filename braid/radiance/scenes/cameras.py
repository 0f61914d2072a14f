"""Pinhole cameras and the rays through their pixels.

Conventions, the same everywhere in this strand: camera axes are OpenGL's (x right, y up, z back;
the NeRF-synthetic format), world axes are the scene's own (z up in the built-in scene and those of
NeRF-synthetic), the center of pixel (column x, row y) lies at (x + 0.5, y + 0.5), ray directions
have unit length, and *depth is the distance along that unit ray* in scene units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize


class Rays(NamedTuple):
    """A bundle of R rays."""

    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3], unit length


class Rendered(NamedTuple):
    """One rendered view."""

    rgb: Tensor  # [H, W, 3], premultiplied
    alpha: Tensor  # [H, W]
    depth: Tensor  # [H, W], expected distance along the unit ray; 0 where alpha is 0


@dataclass(frozen=True)
class Cameras:
    """N pinhole views that share one image size and focal length."""

    camera_to_world: Tensor  # [N, 4, 4], rigid, OpenGL axes
    focal: float  # pixels
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.camera_to_world)

    def __getitem__(self, views: slice | Tensor | list[int]) -> Cameras:
        """The chosen views, in that order."""
        return Cameras(self.camera_to_world[views], self.focal, self.width, self.height)

    @property
    def pixels(self) -> int:
        """Pixels in one view."""
        return self.width * self.height

    def to(self, device: torch.device) -> Cameras:
        """The same cameras on another device."""
        return Cameras(self.camera_to_world.to(device), self.focal, self.width, self.height)

    def rays(
        self,
        view: Tensor,  # [R] view indices
        pixel: Tensor,  # [R] row-major pixel indices, y * width + x
    ) -> Rays:
        """Rays through the centers of the given pixels."""
        x = (pixel % self.width + 0.5 - 0.5 * self.width) / self.focal
        y = (pixel // self.width + 0.5 - 0.5 * self.height) / self.focal
        local = torch.stack([x, -y, -torch.ones_like(x)], dim=-1).to(self.camera_to_world)
        pose = self.camera_to_world[view]
        directions = torch.einsum("rij,rj->ri", pose[:, :3, :3], local)
        return Rays(pose[:, :3, 3], torch.nn.functional.normalize(directions, dim=-1))

    def view_rays(self, view: int) -> Rays:
        """All rays of one view, in row-major pixel order."""
        pixel = torch.arange(self.pixels, device=self.camera_to_world.device)
        return self.rays(torch.full_like(pixel, view), pixel)

    def world_to_camera(self) -> Tensor:
        """World-to-camera matrices with OpenCV axes (x right, y down, z forward), [N, 4, 4]."""
        opencv = self.camera_to_world * self.camera_to_world.new_tensor([1.0, -1.0, -1.0, 1.0])
        return torch.linalg.inv(opencv)


# ---- New poses of the kind that a scene was photographed from ----------------------------------


def gaze(cameras: Cameras) -> Tensor:  # [3]
    """The point that the views look at: the nearest one to all optical axes (least squares)."""
    poses = cameras.camera_to_world.cpu().double()  # that driver and float64 are not everywhere
    origins, axes = poses[:, :3, 3], -poses[:, :3, 2]
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    # Parallel axes leave the point free along them; the minimum-norm solution then serves.
    solution = torch.linalg.lstsq(
        across.sum(0), (across @ origins[:, :, None]).sum(0), driver="gelsd"
    )
    return solution.solution[:, 0].to(cameras.camera_to_world)


def random_poses(cameras: Cameras, count: int, generator: torch.Generator) -> Cameras:
    """`count` poses that look at the same point from the same range of heights and distances.

    Uniform in area over the zone of the sphere between the lowest and the highest view; "up" is
    the mean of the views' own up axes.
    """
    orbit = _orbit(cameras)
    azimuth, u, v = torch.rand(3, count, generator=generator)
    low, high = orbit.height.min(), orbit.height.max()
    near, far = orbit.distance.min(), orbit.distance.max()
    return _around(cameras, orbit, azimuth, low + u * (high - low), near + v * (far - near))


def turntable(cameras: Cameras, count: int) -> Cameras:
    """`count` poses once around the same point, at the views' median height and distance."""
    orbit, azimuth = _orbit(cameras), torch.arange(count) / count
    height, distance = orbit.height.median(), orbit.distance.median()
    return _around(cameras, orbit, azimuth, height.expand(count), distance.expand(count))


class _Orbit(NamedTuple):
    """Where views look from, about the point that they look at."""

    center: Tensor  # [3]
    up: Tensor  # [3], unit
    height: Tensor  # [N], sine of the elevation
    distance: Tensor  # [N]


def _orbit(cameras: Cameras) -> _Orbit:
    center = gaze(cameras)
    offset = cameras.camera_to_world[:, :3, 3] - center
    distance = offset.norm(dim=-1)
    up = normalize(cameras.camera_to_world[:, :3, 1].mean(0), dim=0)
    return _Orbit(center, up, (offset @ up) / distance, distance)


def _around(
    cameras: Cameras,
    orbit: _Orbit,
    azimuth: Tensor,  # [C], turns
    sine: Tensor,  # [C], of the elevation
    radius: Tensor,  # [C]
) -> Cameras:
    cosine = (1 - sine**2).clamp_min(0).sqrt()
    east = normalize(torch.linalg.cross(orbit.up, _least_aligned_axis(orbit.up)), dim=0)
    north = torch.linalg.cross(orbit.up, east)
    angle = 2 * math.pi * azimuth
    back = (
        (cosine * angle.cos())[:, None] * east
        + (cosine * angle.sin())[:, None] * north
        + sine[:, None] * orbit.up
    )
    poses = look_at(orbit.center + radius[:, None] * back, back, orbit.up)
    return Cameras(poses, cameras.focal, cameras.width, cameras.height)


def look_at(
    origins: Tensor,  # [N, 3]
    back: Tensor,  # [N, 3], unit, from the target to the camera
    up: Tensor,  # [3], unit
) -> Tensor:  # [N, 4, 4]
    """Camera-to-world matrices, OpenGL axes; straight down or up, any right axis serves."""
    right = torch.linalg.cross(up.expand_as(back), back)
    spare = torch.linalg.cross(_least_aligned_axis(up).expand_as(back), back)
    vertical = right.norm(dim=-1, keepdim=True) < 1e-4
    right = normalize(torch.where(vertical, spare, right), dim=-1)
    poses = torch.eye(4, dtype=origins.dtype).repeat(len(origins), 1, 1)
    poses[:, :3, 0] = right
    poses[:, :3, 1] = torch.linalg.cross(back, right)
    poses[:, :3, 2] = back
    poses[:, :3, 3] = origins
    return poses


def _least_aligned_axis(direction: Tensor) -> Tensor:  # [3] -> [3]
    return torch.eye(3, dtype=direction.dtype)[direction.abs().argmin()]
