"""Small scenes of Gaussians and a camera that looks at them."""

import math
from dataclasses import fields

import torch

from braid.radiance.gaussians.gaussians import Gaussians
from braid.radiance.scenes.cameras import Cameras

NAMES = [field.name for field in fields(Gaussians)]


def random_gaussians(count, dtype=torch.float64, seed=0, spread=0.5, degree=3):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return Gaussians(
        spread * normal(count, 3),
        0.5 * normal(count, 3) - 2,
        normal(count, 4),
        1 + 2 * normal(count),
        0.3 * normal(count, (degree + 1) ** 2, 3),
    )


def camera(width, height, distance=4.0, focal=None, dtype=torch.float64):
    """A camera on the z axis that looks at the origin; world y is up in the image."""
    pose = torch.eye(4, dtype=dtype)
    pose[2, 3] = distance
    return Cameras(pose[None], focal or 1.4 * width, width, height)


def one(mean=(0.0, 0.0, 0.0), scale=0.1, opacity=0.8, gray=0.5, dtype=torch.float64):
    """One round, gray Gaussian."""
    sh = torch.full((1, 1, 3), (gray - 0.5) / 0.28209479177387814, dtype=dtype)
    return Gaussians(
        torch.tensor([mean], dtype=dtype),
        torch.full((1, 3), math.log(scale), dtype=dtype),
        torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=dtype),
        torch.tensor([math.log(opacity / (1 - opacity))], dtype=dtype),
        sh,
    )


def together(*parts):
    return Gaussians(*(torch.cat([getattr(part, name) for part in parts]) for name in NAMES))
