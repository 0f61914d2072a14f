"""A ball of Gaussians, views of it and a student small enough to train in a test."""

from __future__ import annotations

import math

import torch

from braid.radiance.gaussians.field import render_all, scan_space
from braid.radiance.gaussians.gaussians import Gaussians
from braid.radiance.scenes.cameras import Cameras, look_at
from braid.radiance.scenes.grids import FieldPoints
from braid.radiance.scenes.renders import Renders
from braid.radiance.student.student import Student, build_student
from tests.radiance.settings import renders_config, student_config

RADIUS = 0.5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ball(count: int = 60, opacity: float = 0.95, size: float = 0.12) -> Gaussians:
    """Round Gaussians on a sphere, colored by place, with a view-dependent part."""
    means = RADIUS * torch.nn.functional.normalize(torch.randn(count, 3, generator=seeded()))
    sh = 0.1 * torch.randn(count, 4, 3, generator=seeded(1))
    sh[:, 0] = 1.5 * means
    return Gaussians(
        means,
        torch.full((count, 3), math.log(size)),
        torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        torch.full((count,), math.log(opacity / (1 - opacity))),
        sh,
    )


def views(count: int = 3, width: int = 16) -> Cameras:
    """Cameras around the ball, at a distance of 3, which see all of it."""
    back = torch.nn.functional.normalize(torch.randn(count, 3, generator=seeded(2)))
    return Cameras(
        look_at(3 * back, back, torch.tensor([0.0, 0.0, 1.0])), 1.8 * width, width, width
    )


def rendered(count: int = 3, width: int = 16) -> Renders:
    return render_all(ball(), views(count, width))


def field_points(count: int = 2000) -> FieldPoints:
    config = renders_config(voxels=12, field_points=count)
    return scan_space(ball(), views(), config, seeded())[1]


def student(seed: int = 0) -> Student:
    config = renders_config(voxels=12, field_points=1)
    occupancy, _ = scan_space(ball(), views(), config, seeded())
    sizes = student_config(cells=2, density_scale=10.0, step=0.7, layers=3)
    return build_student(occupancy, sizes, seeded(seed))
