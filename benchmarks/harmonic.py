"""What solving for a whole batch is worth: harmonic interpolation against a solve for each image.

    python -m benchmarks.harmonic

64 images of which a quarter of the patches is known, one CPU thread, at the patch grids and
channels of: digits (2 x 2 patches), latents of 64 and of 256 pixels (2 x 2 of 4 channels), RGB
images of 64 pixels (8 x 8). `image by image` assembles the Laplacian of one image, solves its
system of unknown nodes densely, once for all channels, and goes on to the next. Both ways of
`braid.drifting.interpolation.interpolation` are timed; it takes the first on these grids. Runs are
interleaved and the fastest of each counts.

Expected: a ratio of 25 to 35 at 4 x 4, where calls cost more than arithmetic; of 1.3 to 2.6 at
8 x 8 and more, where both must do the same products on one thread. Iterating costs 3 to 10 times
the factorization at 4 x 4 and with many channels, and 1 to 2 times at 16 x 16 with 16.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from braid.drifting.config import HarmonicConfig
from braid.drifting.interpolation import interpolation as module
from braid.drifting.interpolation.interpolation import (
    DENSE,
    Laplacian,
    mean_by_distance,
    solve_harmonic,
)

BATCH = 64
GRIDS = {"digits": (4, 4), "latents of 64": (4, 16), "RGB of 64": (8, 192), "latents": (16, 16)}
CONFIG = HarmonicConfig(sigma_feature=1.0, sigma_space=0.5, lambda_reg=1e-3)
_REPEATS = 5

Problem = tuple[Tensor, Tensor, Tensor]


def draw(side: int, channels: int) -> Problem:
    """Values [B, C, h, w], which of them are known [B, h, w], and inverse distance's start."""
    source = torch.Generator().manual_seed(0)
    values = torch.randn(BATCH, channels, side, side, generator=source)
    ranks = torch.rand(BATCH, side * side, generator=source).argsort(1)
    known = (ranks < side * side // 4).view(BATCH, side, side)
    return values, known, mean_by_distance(values, known)


def factorized(values: Tensor, known: Tensor, start: Tensor) -> Tensor:
    """The systems of all images, factorized at once."""
    return solve_harmonic(values, known, start, CONFIG)


def iterated(values: Tensor, known: Tensor, start: Tensor) -> Tensor:
    """Conjugate gradients on all images and channels at once."""
    module.DENSE = 0
    try:
        return factorized(values, known, start)
    finally:
        module.DENSE = DENSE


def image_by_image(values: Tensor, known: Tensor, start: Tensor) -> Tensor:
    """A dense system of the unknown nodes alone for each image."""
    first = torch.where(known[:, None], values, start)
    solved = first.flatten(2).clone()
    for index in range(len(values)):
        laplacian = Laplacian(first[index : index + 1], CONFIG).matrix()[0]
        free = ~known[index].flatten()
        system = laplacian[free][:, free] + CONFIG.lambda_reg * torch.eye(int(free.sum()))
        right = -(laplacian[free] @ first[index].flatten(1).T)
        solved[index][:, free] += torch.linalg.solve(system, right).T
    return solved.view_as(values)


def compare(name: str, problem: Problem) -> str:
    """One line of the table."""
    ways = {"factorized": factorized, "iterated": iterated, "image by image": image_by_image}
    best, results = dict.fromkeys(ways, math.inf), {}
    for _ in range(_REPEATS):
        for way, solve in ways.items():
            start = time.thread_time()
            results[way] = solve(*problem)
            best[way] = min(best[way], time.thread_time() - start)
    error = (results["factorized"] - results["image by image"]).abs().max()
    times = "  ".join(f"{way} {1e3 * seconds:6.1f} ms" for way, seconds in best.items())
    ratio = best["image by image"] / best["factorized"]
    grid = "{2} x {3}, {1} channels".format(*problem[0].shape)
    return f"{name:13s} {grid:21s}  {times}  ratio {ratio:4.1f}  differ by {error:.0e}"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    for name, grid in GRIDS.items():
        print(compare(name, draw(*grid)))


if __name__ == "__main__":
    main()
