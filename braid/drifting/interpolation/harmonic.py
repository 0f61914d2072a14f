"""Interpolation on a grid of which some nodes are known: inverse distance, and Laplace's equation.

The grid has one, two or three axes (a time line, an image's patches, a clip's space-time tokens).
Neighbors u, v, diagonal ones among them, are tied by

    w_uv = exp(-|f_u - f_v|^2 / (2 sigma_feature^2)) exp(-d_uv^2 / (2 sigma_space^2)),

f being a first guess at all values, |.|^2 the mean over channels and d the distance in grid steps.
With L = D - W the unknown values solve

    (L_UU + lambda I) X_U = -L_UK X_K + lambda X_start,

so that lambda draws them to the start and not to zero. On grids of few nodes, such as an image's
patches, the systems of all clips are factorized once for all channels. On others nothing is
assembled: conjugate gradients (Hestenes and Stiefel 1952) with Jacobi's preconditioner apply L to
all clips and channels at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from types import EllipsisType

import torch
from torch import Tensor

from braid.drifting.config import HarmonicConfig

TOLERANCE = 1e-5  # of the residual, relative to the first one
ITERATIONS = 500
DENSE = 256  # nodes of a grid, up to which a factorization is the faster way
PIVOT = 1e-6  # added to a unit diagonal, so that float32 can factorize it
WEAKEST = 16.0  # exponent of an edge; float32 cannot resolve much weaker ones beside others


def inverse_distance(
    values: Tensor,  # [B, C, *grid]; unknown nodes are not read
    known: Tensor,  # [B, *grid] bool
) -> Tensor:
    """The mean of a clip's known nodes, one at least, by 1 / distance^2, [B, C, *grid]."""
    axes = [torch.arange(n, device=values.device) for n in known.shape[1:]]
    nodes = torch.cartesian_prod(*axes).reshape(known[0].numel(), -1).to(values)
    distance = (nodes[:, None] - nodes).square().sum(2)  # [N, N]
    flat = known.flatten(1)
    weight = flat[:, None, :] / distance.fill_diagonal_(1.0)  # [B, N, N]
    source = torch.where(flat[:, None, :], values.flatten(2), 0)  # [B, C, N]
    mean = source @ (weight / weight.sum(2, keepdim=True)).transpose(1, 2)
    return torch.where(flat[:, None, :], source, mean).view_as(values)


def harmonic(
    values: Tensor,  # [B, C, *grid]; unknown nodes are not read
    known: Tensor,  # [B, *grid] bool
    start: Tensor,  # [B, C, *grid], a first guess
    config: HarmonicConfig,
) -> Tensor:
    """The solution of Laplace's equation with the known values given, [B, C, *grid]."""
    known = known[:, None]
    first = torch.where(known, values, start)
    graph = Laplacian(first, config)
    free = (~known).to(first)
    residual = -free * graph(first)  # the start's own pull vanishes at the start
    if known[0].numel() <= DENSE:
        return first + _factorized(graph, free, config.lambda_reg, residual)

    def system(x: Tensor) -> Tensor:
        return free * (graph(x) + config.lambda_reg * x)

    correction = conjugate_gradients(system, residual, graph.degree + config.lambda_reg)
    return first + correction


class Laplacian:
    """L = D - W of the grid graph, applied to [B, C, *grid] without being formed."""

    def __init__(
        self,
        features: Tensor,  # [B, C, *grid]
        config: HarmonicConfig,
    ) -> None:
        self.edges = []
        self.degree = torch.zeros_like(features[:, :1])  # [B, 1, *grid]
        for here, there, distance in _edges(features.ndim - 2):
            unlike = (features[here] - features[there]).square().mean(1, keepdim=True)
            exponent = unlike / (2 * config.sigma_feature**2)
            exponent = exponent + distance / (2 * config.sigma_space**2)
            weight = torch.exp(-exponent.clamp_max(WEAKEST))
            self.edges.append((here, there, weight))
            self.degree[here] += weight
            self.degree[there] += weight

    def __call__(
        self,
        x: Tensor,  # [B, C, *grid]
    ) -> Tensor:
        """L x: sums of weighted differences, so that constants give exactly 0."""
        result = torch.zeros_like(x)
        for here, there, weight in self.edges:
            flow = weight * (x[here] - x[there])
            result[here] += flow
            result[there] -= flow
        return result

    def matrix(self) -> Tensor:
        """L, [B, N, N]."""
        nodes = torch.arange(self.degree[0].numel(), device=self.degree.device)
        nodes = nodes.view(self.degree.shape[2:])
        matrix = torch.diag_embed(self.degree.flatten(1))
        for here, there, weight in self.edges:
            rows, columns = nodes[here].flatten(), nodes[there].flatten()
            matrix[:, rows, columns] = matrix[:, columns, rows] = -weight.flatten(1)
        return matrix


def _factorized(
    graph: Laplacian,
    free: Tensor,  # [B, 1, *grid] 1 at unknown nodes, else 0
    lambda_reg: float,
    right: Tensor,  # [B, C, *grid], 0 at known nodes
) -> Tensor:
    """(L_UU + lambda I)^-1 of the right side, 0 at known nodes, by Cholesky's factors."""
    scale = free * (graph.degree + lambda_reg).clamp_min(torch.finfo(free.dtype).tiny).rsqrt()
    scale = scale.flatten(1)[..., None]  # [B, N, 1], for a unit diagonal
    system = scale * graph.matrix() * scale.mT
    system.diagonal(dim1=1, dim2=2).fill_(1 + PIVOT)
    factor = torch.linalg.cholesky_ex(system)[0]
    solution = scale * torch.cholesky_solve(scale * right.flatten(2).mT, factor)
    return solution.mT.view_as(right)


_Index = tuple[EllipsisType | slice, ...]
_HERE = {-1: slice(1, None), 0: slice(None), 1: slice(None, -1)}


def _edges(axes: int) -> Iterator[tuple[_Index, _Index, int]]:
    """Both ends of all edges in one direction, and their squared length, for each direction."""
    for step in product((-1, 0, 1), repeat=axes):
        if step > (0,) * axes:  # one of each two opposite directions
            here: _Index = (..., *(_HERE[s] for s in step))
            there: _Index = (..., *(_HERE[-s] for s in step))
            yield here, there, sum(s * s for s in step)


def conjugate_gradients(
    system: Callable[[Tensor], Tensor],  # symmetric positive, on [B, C, *grid]
    right: Tensor,  # [B, C, *grid]
    diagonal: Tensor,  # [B, 1, *grid], the system's, for Jacobi's preconditioner
) -> Tensor:
    """Solve a system for each clip and channel, [B, C, *grid].

    Each stops where its residual fell to TOLERANCE of the right side, whatever its neighbors in
    the batch do, so that a batch may be split.
    """
    grid = tuple(range(2, right.ndim))
    inverse = 1 / diagonal.clamp_min(torch.finfo(right.dtype).tiny)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(grid, keepdim=True)  # [B, C, 1...]

    def ratio(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, a, 0) / torch.where(where, b, 1)

    x, residual = torch.zeros_like(right), right
    direction = inverse * residual
    energy = dot(residual, direction)
    goal = TOLERANCE**2 * dot(right, right)
    for _ in range(ITERATIONS):
        active = dot(residual, residual) > goal
        if not bool(active.any()):
            break
        image = system(direction)
        step = ratio(energy, dot(direction, image), active)
        x, residual = x + step * direction, residual - step * image
        conditioned = inverse * residual
        before, energy = energy, dot(residual, conditioned)
        direction = conditioned + ratio(energy, before, active) * direction
    return x
