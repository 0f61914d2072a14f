"""What small tiles are worth: forward + backward of the rasterizer, 4x4 against 16x16 tiles.

    python -m benchmarks.rasterizer

Expected at 100 px with 5,000 Gaussians, one CPU thread: a ratio of 2.5 or more. Runs of the two
are interleaved and the fastest of each counts, so that a busy machine slows both alike.
"""

from __future__ import annotations

import math
import time
from dataclasses import fields

import torch

from braid.radiance.gaussians.gaussians import Gaussians
from braid.radiance.gaussians.splat import render
from braid.radiance.scenes.cameras import Cameras

_REPEATS = 20
_RADIUS = 0.7


def shell(count: int, generator: torch.Generator) -> Gaussians:
    """Round Gaussians on a sphere, as dense as those that a visual hull starts with.

    The sphere has the area of the Lego scene's hull, so that the splats look as large as its do.
    """
    directions = torch.randn(count, 3, generator=generator)
    area = 4 * math.pi * _RADIUS**2
    voxel = math.sqrt(1.5 * area / count)  # a hull has about 1.5 surface voxels per face's area
    return Gaussians(
        _RADIUS * torch.nn.functional.normalize(directions, dim=1),
        torch.full((count, 3), math.log(0.6 * voxel)),
        torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
        torch.full((count,), math.log(0.7 / 0.3)),
        0.1 * torch.randn(count, 4, 3, generator=generator),
    )


def seconds(gaussians: Gaussians, cameras: Cameras, tile: int) -> float:
    """CPU time of one forward and backward pass on one thread."""
    parts = [getattr(gaussians, field.name).requires_grad_() for field in fields(gaussians)]
    start = time.thread_time()
    rendered = render(Gaussians(*parts), cameras, 0, backend="torch", tile=tile)
    torch.autograd.grad(rendered.rgb.square().sum() + rendered.alpha.sum(), parts)
    return time.thread_time() - start


def compare(width: int, count: int) -> str:
    """One line of the table."""
    pose = torch.eye(4)
    pose[2, 3] = 4.0
    cameras = Cameras(pose[None], 1.39 * width, width, width)
    gaussians = shell(count, torch.Generator().manual_seed(0))
    best = {4: math.inf, 8: math.inf, 16: math.inf}
    for _ in range(_REPEATS):
        for tile in best:
            best[tile] = min(best[tile], seconds(gaussians, cameras, tile))
    times = "  ".join(f"{tile}x{tile} {1e3 * best[tile]:6.1f} ms" for tile in best)
    return f"{width:4d} px {count:6d} Gaussians  {times}  16x16 / 4x4 {best[16] / best[4]:.2f}"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    for width, count in ((100, 5_000), (200, 13_000)):
        print(compare(width, count))


if __name__ == "__main__":
    main()
