"""The grid of MLPs against one shared MLP of the same sizes: ``python -m benchmarks.grid_mlp``.

200,000 points in those cells of a 16^3 grid that a sphere's surface meets; the network of the
KiloNeRF paper (6,212 parameters, 10 and 4 octaves). The grid's time includes everything:
finding the cells, sorting, encoding, evaluation and putting the results back in order. The shared
MLP runs in cache-sized chunks, both in plain torch and as a grid of one cell, and the faster of
the two counts. CPU seconds of one thread, the best of several alternating runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from braid.radiance.config import StudentConfig
from braid.radiance.student.grid_mlp import Architecture, encode
from braid.radiance.student.student import KiloNeRF

POINTS, CHUNK, ROUNDS = 200_000, 4096, 9
LOW, HIGH = [-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]
PAPER = StudentConfig(
    cells=16,
    hidden=32,
    layers=4,
    frequencies=10,
    direction_frequencies=4,
    margin=0.0,
    density_scale=30.0,
    step=1.0,
)


def surface_points(generator: torch.Generator) -> Tensor:
    """Points in a thin shell around a sphere, [POINTS, 3]."""
    direction = torch.randn(POINTS, 3, generator=generator)
    radius = 0.7 + 0.02 * torch.randn(POINTS, 1, generator=generator)
    return torch.nn.functional.normalize(direction, dim=1) * radius


def surface_cells(points: Tensor) -> Tensor:
    """Cells of the 16^3 grid that hold a point."""
    cells = torch.zeros(16, 16, 16, dtype=torch.bool)
    cells[tuple(((points + 1) * 8).long().unbind(1))] = True
    return cells


class SharedMlp:
    """One network for all points, in plain torch: encode, then row-major ``addmm`` per chunk."""

    def __init__(self, architecture: Architecture, parameters: Tensor) -> None:
        self.architecture = architecture
        self.parameters = parameters  # [1, parameters]

    def _chunk(self, points: Tensor, directions: Tensor, encoded: tuple[Tensor, Tensor]) -> Tensor:
        *trunk, density, color, rgb = (x[0] for x in self.architecture.split(self.parameters))
        positions, view = (
            encode(x.T.unsqueeze(0), (out.shape[1] - 3) // 6, out)[0].T
            for x, out in zip((points, directions), encoded, strict=True)
        )
        x = positions
        for layer in trunk:
            x = torch.addmm(layer[-1], x, layer[:-1]).relu_()
        mixed = torch.cat([x, view], dim=1)
        mixed = torch.addmm(color[-1], mixed, color[:-1]).relu_()
        heads = [torch.addmm(layer[-1], h, layer[:-1]) for h, layer in ((x, density), (mixed, rgb))]
        return torch.cat(heads, dim=1)

    def __call__(self, points: Tensor, directions: Tensor) -> Tensor:
        """Raw outputs [P, 4]."""
        sizes = self.architecture.sizes
        octaves = (sizes.frequencies, sizes.direction_frequencies)
        results = []
        for x, d in zip(torch.split(points, CHUNK), torch.split(directions, CHUNK), strict=True):
            buffers = [torch.empty(1, 3 + 6 * n, len(x)) for n in octaves]
            results.append(self._chunk(x, d, (buffers[0], buffers[1])))
        return torch.cat(results)


def best_times(functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Best CPU milliseconds of each, measured in turns so that all meet the same machine."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.process_time()
            function()
            best[name] = min(best[name], 1e3 * (time.process_time() - start))
    return best


def main() -> None:
    """Print the times and their ratios."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    points = surface_points(generator)
    directions = torch.randn(points.shape, generator=generator)
    cells = surface_cells(points)
    grid = KiloNeRF.for_cells(cells, LOW, HIGH, PAPER, generator)
    one = KiloNeRF.for_cells(torch.ones(1, 1, 1, dtype=torch.bool), LOW, HIGH, PAPER, generator)
    shared = SharedMlp(one.architecture, one.weights)

    def field(model: KiloNeRF) -> Tensor:
        result = model(points, directions, features=False)
        return torch.cat([result.sigma.unsqueeze(1), result.rgb], dim=1)

    def plain() -> Tensor:
        raw = shared(points, directions)
        sigma = torch.nn.functional.softplus(raw[:, :1] - 2.25)
        return torch.cat([sigma, torch.sigmoid(raw[:, 1:])], dim=1)

    functions = {"grid": lambda: field(grid), "plain": plain, "one cell": lambda: field(one)}
    print(f"{POINTS:,} points, {int(cells.sum())} of {cells.numel()} cells, 1 thread")
    for task, wrap in (("evaluation", torch.no_grad()), ("forward + backward", _with_backward)):
        times = best_times({name: wrap(function) for name, function in functions.items()})
        ratio = times["grid"] / min(times["plain"], times["one cell"])
        row = ", ".join(f"{name} {milliseconds:.0f} ms" for name, milliseconds in times.items())
        print(f"{task}: {row}; grid / shared {ratio:.2f}")


def _with_backward(function: Callable[[], Tensor]) -> Callable[[], object]:
    def run() -> None:
        torch.autograd.backward(function().sum())

    return run


if __name__ == "__main__":
    main()
