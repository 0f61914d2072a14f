"""What the seeding in a projection is worth: K-means against scikit-learn's greedy k-means++.

    python -m benchmarks.kmeans

n = 50,000 rows of 512 dimensions, K = 1024, one process, one thread for both. The rows are a
mixture of 2,000 Gaussians with Zipf's frequencies in 32 dimensions, plus noise in all. Expected:
an inertia of at most 1.03 times scikit-learn's in at most 0.25 times its time. Runs alternate; the
fastest of each and the mean inertia count. About three minutes.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from braid.clustering.kmeans import kmeans, nearest
from braid.stage.params import load_params

_CONFIG = load_params(Path(__file__).parents[1] / "params.yaml").clips.quantizer
_REPEATS = 2
_ITERATIONS = _CONFIG.projected_iterations + _CONFIG.exact_iterations  # of scikit-learn's


def mixture(n: int, d: int, generator: torch.Generator) -> Tensor:
    """Rows of a Gaussian mixture, [n, d] float32."""
    modes, intrinsic = 2000, 32
    frequency = 1 / torch.arange(1, modes + 1)
    mode = torch.multinomial(frequency, n, replacement=True, generator=generator)
    centers = torch.randn(modes, intrinsic, generator=generator)
    low = centers[mode] + 0.4 * torch.randn(n, intrinsic, generator=generator)
    basis = torch.linalg.qr(torch.randn(d, intrinsic, generator=generator)).Q
    return low @ basis.T + 0.02 * torch.randn(n, d, generator=generator)


def ours(x: Tensor, k: int, seed: int) -> tuple[float, Tensor]:
    """CPU seconds and centroids of the library's K-means, with the committed settings."""
    start = time.process_time()
    clusters = kmeans(x, k, _CONFIG, torch.Generator().manual_seed(seed))
    return time.process_time() - start, clusters.centroids


def theirs(x: Tensor, k: int, seed: int) -> tuple[float, Tensor]:
    """CPU seconds and centroids of scikit-learn's."""
    start = time.process_time()
    clusters = KMeans(k, n_init=1, max_iter=_ITERATIONS, random_state=seed).fit(x.numpy())
    return time.process_time() - start, torch.from_numpy(clusters.cluster_centers_)


def compare(n: int, d: int, k: int) -> str:
    """One line of the table."""
    x = mixture(n, d, torch.Generator().manual_seed(0))
    total = float((x - x.mean(0)).square().sum(dtype=torch.float64))
    seconds: dict[str, float] = {"ours": math.inf, "theirs": math.inf}
    inertia = dict.fromkeys(seconds, 0.0)
    for seed in range(_REPEATS):
        for name, method in (("ours", ours), ("theirs", theirs)):
            spent, centroids = method(x, k, seed)
            within = float(nearest(x, centroids)[1].sum(dtype=torch.float64))
            seconds[name] = min(seconds[name], spent)
            inertia[name] += within / total / _REPEATS
    (low, reference), (fast, slow) = inertia.values(), seconds.values()
    return (
        f"n {n:6d} d {d} K {k:4d}  inertia / total {low:.4f}, scikit-learn {reference:.4f},"
        f" ratio {low / reference:.3f}  CPU {fast:.1f} s, {slow:.1f} s, ratio {fast / slow:.3f}"
    )


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for k in (256, 1024):
            print(compare(50_000, 512, k), flush=True)


if __name__ == "__main__":
    main()
