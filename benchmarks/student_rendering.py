"""A student's view by a pool of rays against one chunk of rays after another, blocks of samples.

    python -m benchmarks.student_rendering bricks photos 800

needs the student (`dvc repro`). Both leave a ray once its transmittance is below the same bound.
The chunks are what rendering was: all samples of 8,192 rays are made at once, and 16 of each ray
are evaluated before its transmittance is looked at. CPU seconds of one thread, the best of several
alternating runs; the look-ups and the networks that both use are the present ones.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from braid.radiance.scenes.blender import load_views
from braid.radiance.scenes.cameras import Cameras, Rays
from braid.radiance.student.marching import (
    Samples,
    _accumulate,
    compositing_weights,
    render_rays,
    sample,
    sample_rank,
)
from braid.radiance.student.student import Student, load_student
from braid.stage.params import load_params

ROOT = Path(__file__).parents[1]
CHUNK, BLOCK, ROUNDS = 8192, 16, 3


@torch.no_grad()
def by_chunks(student: Student, rays: Rays, stop: float) -> Tensor:
    """Premultiplied rgb, alpha and weighted distance of each ray, [R, 5]."""
    parts = zip(*(torch.split(tensor, CHUNK) for tensor in rays), strict=True)
    return torch.cat([_chunk(student, Rays(*part), stop) for part in parts])


def _chunk(student: Student, rays: Rays, stop: float) -> Tensor:
    samples, count, first = sample(student.occupancy, rays, student.step), len(rays.origins), 0
    total, rank = samples.t.new_zeros(count, 5), sample_rank(samples.ray, count)
    while len(rank):
        now = rank < first + BLOCK
        part = Samples(*(tensor[now] for tensor in samples))
        values = student.field(part.points, rays.directions[part.ray], features=False)
        weights = compositing_weights(part.ray, values.sigma * part.delta, count)
        left = 1 - total[:, 3]
        total += _accumulate(weights * left[part.ray], values.rgb, part, count)
        first += BLOCK
        later = ~now & (total[:, 3] <= 1 - stop)[samples.ray]
        samples, rank = Samples(*(tensor[later] for tensor in samples)), rank[later]
    return total


def main() -> None:
    """Print both times, their ratio and how far their images are apart."""
    scene, name, side = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    config = load_params(ROOT / "params.yaml").radiance.evaluation
    student = load_student(ROOT / f"models/student/{scene}/{name}")
    seen = load_views(ROOT / f"data/scenes/{scene}", "test").cameras
    cameras = Cameras(seen.camera_to_world, seen.focal * side / seen.width, side, side)
    rays = cameras.view_rays(0)
    best: dict[str, float] = {}
    images: dict[str, Tensor] = {}
    ways = {
        "chunks": lambda: by_chunks(student, rays, config.stop)[:, :3],
        "pool": lambda: render_rays(
            student.field, student.occupancy, rays, student.step, config.chunk, config.stop
        )[0],
    }
    for way in [*ways] * ROUNDS:
        start = time.process_time()
        with torch.no_grad():
            images[way] = ways[way]()
        best[way] = min(best.get(way, 1e9), time.process_time() - start)
    gap = float((images["pool"] - images["chunks"]).abs().max())
    print(
        f"{scene} {name}, {side} px, 1 thread: "
        + ", ".join(f"{w} {t:.2f} s" for w, t in best.items())
    )
    print(f"chunks / pool {best['chunks'] / best['pool']:.2f}; pixels differ by up to {gap:.4f}")


if __name__ == "__main__":
    main()
