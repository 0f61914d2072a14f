"""Drawing rays by their errors: the tree of sums against one pass over all tiles.

    python -m benchmarks.ray_sampler

600 views of 800 px in tiles of 8 pixels, 6 million tiles, 2,048 rays a step: a draw and an update.
The pass over all tiles is what a step takes without the tree: probabilities, their cumulative sum
and a search in it. CPU milliseconds of one thread, the median of several steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from braid.radiance.config import RaysConfig
from braid.radiance.distillation.response import RaySampler

VIEWS, SIDE, RAYS, STEPS = 600, 800, 2048, 15
CONFIG = RaysConfig(count=RAYS, hard=0.5, decay=0.9, tile=8)


def one_pass(sampler: RaySampler, generator: torch.Generator) -> Tensor:
    """Tiles drawn from the probabilities of all of them, [RAYS]."""
    mass = sampler.probability(torch.arange(len(sampler.sizes))) * sampler.sizes
    u = torch.rand(RAYS, dtype=torch.float64, generator=generator)
    return torch.searchsorted(mass.cumsum(0), u).clamp_max(len(mass) - 1)


def step(sampler: RaySampler, generator: torch.Generator) -> None:
    """A draw and an update."""
    drawn = sampler.draw(RAYS, generator)
    sampler.update(drawn.ray, torch.rand(RAYS, generator=generator))


def milliseconds(run: Callable[[], object]) -> float:
    """Median CPU time of a step."""
    times = []
    for _ in range(STEPS):
        start = time.process_time()
        run()
        times.append(1e3 * (time.process_time() - start))
    return statistics.median(times)


def main() -> None:
    """Print both and their ratio."""
    torch.set_num_threads(1)
    draws = torch.Generator().manual_seed(0)
    sampler = RaySampler(VIEWS, SIDE, SIDE, CONFIG)
    sampler.set_extra_state(torch.rand(len(sampler.sizes), generator=draws))
    by_tree = milliseconds(lambda: step(sampler, draws))
    by_pass = milliseconds(lambda: one_pass(sampler, draws))
    tiles = len(sampler.sizes)
    print(
        f"{tiles:,} tiles, {RAYS:,} rays a step: tree {by_tree:.1f} ms, one pass {by_pass:.0f} ms"
    )
    print(f"one pass / tree {by_pass / by_tree:.0f}")


if __name__ == "__main__":
    main()
