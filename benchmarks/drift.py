"""What batching is worth: forward + backward of the drift loss against loops over its vectors.

    python -m benchmarks.drift

8 classes, 125 vectors (63 of 256 and 62 of 512 dimensions) in 13 groups, 3 temperatures, 16
unconditional samples; one process, on one CPU thread and then on two, both ways alike. The loop is
`braid.drifting.loss.reference`: class by class and vector by vector, one distance matrix for all
temperatures, the same shared scales. Runs of the two are interleaved and the fastest of each by the
wall counts.

Expected, on a machine that does nothing else:

    generated, positive    one thread    two threads
    32, 64                 2.7 to 2.9    5.0 to 5.2
    4, 32                  9.6 to 10.2   16 to 18

At 4 and 32 calls cost more than arithmetic. At 32 and 64 both must do the same 11 GFLOP of
products, which are two thirds of the batched time: on one thread no more than 4.5 is to be had
there. The loop's calls are too small for a second thread to help, which slows it at times.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from braid.drifting.config import DriftLossConfig
from braid.drifting.loss import reference as drift_reference
from braid.drifting.loss.drift import DriftLoss, Samples

CLASSES, UNCONDITIONAL = 8, 16
CONFIG = DriftLossConfig(
    temperatures=(0.02, 0.05, 0.2),
    annealing=1.0,
    annealing_steps=0,
    coupling="softmax",
    normalization="joint",
    attraction=1.0,
    floor=1e-6,
    self_mask=100.0,
    weighting="affinity",
    reduction="mean",
    scale_scope="batch",
)
GROUPS = {256: (16, 16, 16, 4, 4, 4, 3), 512: (16, 16, 16, 6, 4, 4)}  # locations
_REPEATS = 7


def draw(generated: int, positives: int) -> dict[str, Samples]:
    """One step's features, laid out as an encoder gives them."""
    source = torch.Generator().manual_seed(0)
    return {
        f"{dims}/{index}": Samples(
            torch.randn(CLASSES, generated, locations, dims, generator=source).requires_grad_(),
            0.3 + torch.randn(CLASSES, positives, locations, dims, generator=source),
            unconditional=torch.randn(UNCONDITIONAL, locations, dims, generator=source),
        )
        for dims, sizes in GROUPS.items()
        for index, locations in enumerate(sizes)
    }


def batched(groups: dict[str, Samples], weight: Tensor) -> list[Tensor]:
    """Gradients by the loss that trains."""
    loss = DriftLoss(CONFIG)(groups, weight).loss
    return list(torch.autograd.grad(loss, [group.generated for group in groups.values()]))


def looped(groups: dict[str, Samples], weight: Tensor) -> list[Tensor]:
    """Gradients by the reference."""
    losses = [drift_reference.drift_loss(group, weight, CONFIG) for group in groups.values()]
    return list(
        torch.autograd.grad(
            torch.stack(losses).sum(), [group.generated for group in groups.values()]
        )
    )


def compare(generated: int, positives: int) -> str:
    """One line of the table."""
    groups, weight = draw(generated, positives), torch.linspace(0, 3, CLASSES)
    ways = {"batched": batched, "looped": looped}
    best, gradients = dict.fromkeys(ways, math.inf), {}
    for _ in range(_REPEATS):
        for name, way in ways.items():
            start = time.perf_counter()
            result = way(groups, weight)
            best[name] = min(best[name], time.perf_counter() - start)
            gradients[name] = torch.cat([gradient.flatten() for gradient in result])
    error = (gradients["batched"] - gradients["looped"]).norm() / gradients["looped"].norm()
    times = "  ".join(f"{name} {1e3 * seconds:6.1f} ms" for name, seconds in best.items())
    ratio = best["looped"] / best["batched"]
    return (
        f"threads {torch.get_num_threads()}  "
        f"{generated:3d} generated {positives:3d} positive  {times}  "
        f"looped / batched {ratio:4.1f}  gradients differ by {error:.1e}"
    )


def main() -> None:
    """Print the table."""
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for generated, positives in ((32, 64), (4, 32)):
            print(compare(generated, positives))


if __name__ == "__main__":
    main()
