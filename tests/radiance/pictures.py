"""Random images and views for the tests of image metrics."""

from __future__ import annotations

import torch

from braid.radiance.scenes.blender import Views
from braid.radiance.scenes.cameras import Cameras


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def views(count: int = 2, size: int = 16, seed: int = 0) -> Views:
    """A disc-like blob of random colors."""
    line = torch.linspace(-1, 1, size)
    alpha = ((line[:, None] ** 2 + line**2) < 0.5).float().expand(count, size, size)[..., None]
    color = noise(count, size, size, 3, seed=seed)
    poses = torch.eye(4).expand(count, 4, 4)
    return Views(Cameras(poses, 20.0, size, size), torch.cat([color * alpha, alpha], dim=-1))
