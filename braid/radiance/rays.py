"""Pinhole cameras and the rays through their pixels.

Conventions, the same everywhere in this strand: world and camera axes are OpenGL's (x right,
y up, z back; the NeRF-synthetic format), the centre of pixel (column x, row y) lies at
(x + 0.5, y + 0.5), ray directions have unit length, and *depth is the distance along that unit
ray* in scene units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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
        """Rays through the centres of the given pixels."""
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
