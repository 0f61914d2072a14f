"""Fill a clip's missing frames in from its keyframes, by any of five methods.

    linear             the straight line between the two keyframes around a frame
    cubic              Hermite's cubic through them, with Catmull and Rom's tangents
    inverse_distance   the mean of all keyframes weighted by 1 / (distance in time)^2
    harmonic           the edge-aware Laplace equation on the space-time grid
    sinkhorn           tokens moved along an optimal transport plan

Keyframes come out bit for bit, and nothing of a missing frame is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from types import EllipsisType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, normalize, pad

from braid.drifting.config import (
    CorruptionConfig,
    HarmonicConfig,
    Interpolator,
    MazeCorruptionConfig,
)
from braid.drifting.interpolation.keyframes import frames_at, neighbors

FRECHET_RATIO = 0.7  # of refined clips to interpolated ones, at most: better, in every status
CHUNK = 64  # clips at once: the harmonic system and the transport take many times their memory


def interpolate(
    latents: Tensor,  # [B, C, T, H, W]; missing frames are not read
    mask: Tensor,  # [B, T] bool, True: keyframe
    config: CorruptionConfig | MazeCorruptionConfig,
) -> Tensor:
    """Clips whose missing frames are made from their keyframes, [B, C, T, H, W].

    Raises:
        ValueError: a mask of another shape, or a clip without keyframes.
    """
    if latents.ndim != 5 or mask.shape != (latents.shape[0], latents.shape[2]):
        raise ValueError(
            f"interpolation: expected latents [B, C, T, H, W] and a mask [B, T], got "
            f"{list(latents.shape)} and {list(mask.shape)}"
        )
    method = METHODS[config.interpolator]
    parts = zip(latents.split(CHUNK), mask.split(CHUNK), strict=True)
    filled = torch.cat([method(*part, config) for part in parts])
    return torch.where(mask[:, None, :, None, None], latents, filled)


def linear(
    latents: Tensor,  # [B, C, T, H, W]
    mask: Tensor,  # [B, T] bool
    _: CorruptionConfig | None = None,
) -> Tensor:
    """The straight line between the neighboring keyframes, [B, C, T, H, W]."""
    around = neighbors(mask)
    left, right = frames_at(latents, around.left), frames_at(latents, around.right)
    return torch.lerp(left, right, around.fraction[:, None, :, None, None].to(left))


def cubic(
    latents: Tensor,  # [B, C, T, H, W]
    mask: Tensor,  # [B, T] bool
    _: CorruptionConfig | None = None,
) -> Tensor:
    """Hermite's cubic through the keyframes, [B, C, T, H, W]; with two keyframes the line.

    The tangent at a keyframe is that of the parabola through it and its two neighbors; at the
    first and the last one it is the slope towards the only neighbor.
    """
    around = neighbors(mask)
    left, right = frames_at(latents, around.left), frames_at(latents, around.right)
    out = _tangents(latents, mask, around.left)
    into = _tangents(latents, mask, around.right)
    a, gap = (values[:, None, :, None, None].to(left) for values in (around.fraction, around.gap))
    bend = (1 - a) * (out * gap - (right - left)) - a * (into * gap - (right - left))
    return torch.lerp(left, right, a) + a * (1 - a) * bend


def _tangents(latents: Tensor, mask: Tensor, key: Tensor) -> Tensor:
    """The change per frame at keyframes `key` [B, T], [B, C, T, H, W]."""
    last = mask.shape[1] - 1
    around = neighbors(mask)
    before = around.left.gather(1, (key - 1).clamp_min(0))
    after = around.right.gather(1, (key + 1).clamp_max(last))
    now = frames_at(latents, key)
    past, future = (
        (frame - key)[:, None, :, None, None].to(latents) for frame in (before, after)
    )  # signed frames; 0 where there is no such keyframe
    slope_past = (now - frames_at(latents, before)) / (-past).clamp_min(1)
    slope_future = (frames_at(latents, after) - now) / future.clamp_min(1)
    mean = (slope_past * future - slope_future * past) / (future - past).clamp_min(1)
    return torch.where(past == 0, slope_future, torch.where(future == 0, slope_past, mean))


def inverse_distance(
    latents: Tensor,  # [B, C, T, H, W]
    mask: Tensor,  # [B, T] bool
    _: CorruptionConfig | None = None,
) -> Tensor:
    """The mean of all keyframes weighted by 1 / (distance in time)^2, [B, C, T, H, W]."""
    series = latents.movedim(2, -1)  # [B, C, H, W, T]
    return mean_by_distance(series.flatten(1, 3), mask).view(series.shape).movedim(-1, 2)


def harmonic(
    latents: Tensor,  # [B, C, T, H, W]
    mask: Tensor,  # [B, T] bool
    config: CorruptionConfig,
) -> Tensor:
    """Laplace's equation on the space-time grid, started from the line, [B, C, T, H, W]."""
    given = mask[:, :, None, None].expand(-1, -1, *latents.shape[3:])
    return solve_harmonic(latents, given, linear(latents, mask), config)


def sinkhorn(
    latents: Tensor,  # [B, C, T, H, W]
    mask: Tensor,  # [B, T] bool
    config: CorruptionConfig,
) -> Tensor:
    """The line, with what moves moved along, [B, C, T, H, W]."""
    return warp(latents, mask, linear(latents, mask), config)


METHODS: dict[Interpolator, Callable[[Tensor, Tensor, Any], Tensor]] = {
    "linear": linear,
    "cubic": cubic,
    "inverse_distance": inverse_distance,
    "harmonic": harmonic,
    "sinkhorn": sinkhorn,
}


# ---- Interpolation that moves tokens: an optimal transport plan between two keyframes, and a warp
# The cells of one keyframe are matched to those of the next by entropic optimal transport (Cuturi
# 2013) with a dustbin for what has no partner (as in SuperGlue, Sarlin et al. 2020):
#
#     logit_ij = <f_i, f_j> / temperature - |p_i - p_j|^2 / (2 reach^2),     f of unit length.
#
# From the plan each cell has a flow, to where its partners lie on average, and a confidence: its
# mass outside the dustbin, times how well forward and backward flow cancel, times the fraction of
# the cell's change that the motion explains. Still cells explain nothing, so a moving thing passes
# in front of them. Flows are carried to the time of a missing frame; both keyframes are sampled
# against the flow and blended by time; where no confident cell arrives, the straight line stays.

ITERATIONS = 20
CONSISTENCY = 0.5  # cells by which forward and backward flow may miss each other
_CHUNK = 2**25  # elements of the plans that are in memory at once


class Motion(NamedTuple):
    """Where the cells of one keyframe are found in another."""

    flow: Tensor  # [P, 2, H, W] cells: rows, columns
    confidence: Tensor  # [P, 1, H, W] in [0, 1]


def warp(
    latents: Tensor,  # [B, C, T, H, W]; missing frames are not read
    mask: Tensor,  # [B, T] bool, True: keyframe
    straight: Tensor,  # [B, C, T, H, W], the linear interpolation
    config: CorruptionConfig,
) -> Tensor:
    """The linear interpolation, with what moves moved along, [B, C, T, H, W]."""
    around, frames = neighbors(mask), mask.shape[1]
    clip, time = (~mask & (around.gap > 0)).nonzero(as_tuple=True)
    first, pair = torch.unique(clip * frames + around.left[clip, time], return_inverse=True)
    owner, begin = first // frames, first % frames
    end = around.right[owner, (begin + 1).clamp_max(frames - 1)]
    source, target = latents[owner, :, begin], latents[owner, :, end]  # [P, C, H, W]

    forward, backward = motions(source, target, config)
    fraction = around.fraction[clip, time][:, None, None, None].to(latents)
    carried = at_time(
        Motion(*(values[pair] for values in forward)),
        Motion(*(values[pair] for values in backward)),
        fraction,
    )
    place = _places(carried.flow)
    moved = torch.lerp(
        _sampled(source[pair], place - fraction * carried.flow),
        _sampled(target[pair], place + (1 - fraction) * carried.flow),
        fraction,
    )
    result = straight.clone()
    result[clip, :, time] += carried.confidence * (moved - straight[clip, :, time])
    return result


def motions(
    source: Tensor,  # [P, C, H, W]
    target: Tensor,  # [P, C, H, W]
    config: CorruptionConfig,
) -> tuple[Motion, Motion]:
    """From source to target and back."""
    place = _places(source).flatten(1).T  # [N, 2]
    prior = (place[:, None] - place).square().sum(2) / (2 * config.sinkhorn_reach**2)
    parts = []
    size = max(1, _CHUNK // len(place) ** 2)
    for a, b in zip(source.split(size), target.split(size), strict=True):
        unit_a, unit_b = (normalize(z.flatten(2), dim=1) for z in (a, b))
        cosine = unit_a.transpose(1, 2) @ unit_b
        plan = transport(cosine / config.sinkhorn_temperature - prior, config.dustbin)
        matched = plan[:, :-1, :-1]
        forward, backward = _motion(matched, a), _motion(matched.transpose(1, 2), b)
        parts.append((*_checked(forward, backward, a, b), *_checked(backward, forward, b, a)))
    flow, trust, flow_back, trust_back = (torch.cat(values) for values in zip(*parts, strict=True))
    return Motion(flow, trust), Motion(flow_back, trust_back)


def transport(
    logits: Tensor,  # [P, N, M]
    dustbin: float,
) -> Tensor:
    """The plan, [P, N + 1, M + 1], dustbins last: each cell gives and takes a mass of 1.

    Row and column scalings in turn, in the log domain; the dustbins can hold all of the mass.
    """
    rows, columns = logits.shape[1:]
    logits = pad(logits, (0, 1, 0, 1), value=dustbin)
    given, taken = logits.new_zeros(rows + 1, 1), logits.new_zeros(columns + 1)
    given[-1], taken[-1] = math.log(columns), math.log(rows)
    v = torch.zeros_like(taken)
    for _ in range(ITERATIONS):
        u = given - (logits + v).logsumexp(2, keepdim=True)
        v = taken - (logits + u).logsumexp(1, keepdim=True)
    return (logits + u + v).exp()


def _motion(
    matched: Tensor,  # [P, N, N], the plan without its dustbins
    cells: Tensor,  # [P, C, H, W]
) -> Motion:
    """To the mean place of a cell's partners, as surely as it has any."""
    place = _places(cells)
    mass = matched.sum(2)[:, None]  # [P, 1, N]
    # bmm: a product folded into one matrix would round by the size of the batch
    spread = place.flatten(1).expand(len(matched), -1, -1)
    partner = torch.bmm(spread, matched.transpose(1, 2)) / mass.clamp_min(1e-6)  # [P, 2, N]
    shape = cells.shape[2:]
    return Motion(partner.unflatten(2, shape) - place, mass.unflatten(2, shape).clamp_max(1))


def _checked(there: Motion, back: Motion, a: Tensor, b: Tensor) -> Motion:
    """A motion of confidence only where the way back agrees and the change is explained."""
    place = _places(a) + there.flow
    miss = (there.flow + _sampled(back.flow, place)).square().sum(1, keepdim=True)
    change = (a - b).square().sum(1, keepdim=True)
    left = (a - _sampled(b, place)).square().sum(1, keepdim=True)  # unexplained
    explained = torch.where(change > 0, 1 - left / change, 0).clamp_min(0)
    trust = torch.exp(-miss / (2 * CONSISTENCY**2)) * explained
    return Motion(there.flow, there.confidence * trust)


def at_time(
    forward: Motion,
    backward: Motion,
    fraction: Tensor,  # [M, 1, 1, 1] of the way from source to target
) -> Motion:
    """The forward flow at the cells of the frame between, [M, 2 and 1, H, W]."""
    place = _places(forward.flow)
    total = torch.zeros_like(torch.cat(forward, 1))
    for motion, part, sign in ((forward, fraction, 1), (backward, 1 - fraction, -1)):
        weighted = torch.cat([sign * motion.confidence * motion.flow, motion.confidence], 1)
        total += (1 - part) * _splat(weighted, place + part * motion.flow)
    flow, confidence = total[:, :2], total[:, 2:]
    return Motion(flow / confidence.clamp_min(1e-6), confidence.clamp_max(1))


def _places(
    cells: Tensor,  # [..., H, W]
) -> Tensor:
    """Row and column of every cell, [2, H, W]."""
    axes = [torch.arange(n, device=cells.device) for n in cells.shape[-2:]]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).to(cells)


def _sampled(
    cells: Tensor,  # [P, C, H, W]
    place: Tensor,  # [P, 2, H, W]
) -> Tensor:
    """Bilinear samples, held at the border, [P, C, H, W]."""
    last = torch.tensor(cells.shape[2:], device=cells.device).sub(1).clamp_min(1)
    grid = place.permute(0, 2, 3, 1) * 2 / last - 1
    return grid_sample(cells, grid.flip(3), padding_mode="border", align_corners=True)


def _splat(
    values: Tensor,  # [M, C, H, W]
    place: Tensor,  # [M, 2, H, W], where each cell lands
) -> Tensor:
    """What lands on each cell, spread bilinearly, [M, C, H, W]."""
    count, channels, height, width = values.shape
    corner = place.floor()
    part = place - corner
    batch = torch.arange(count, device=values.device)[:, None, None] * height
    result = values.new_zeros(count * height * width, channels)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        y, x = corner[:, 0] + row, corner[:, 1] + column
        weight = (1 - (part[:, 0] - row).abs()) * (1 - (part[:, 1] - column).abs())
        y, x = y.long().clamp(0, height - 1), x.long().clamp(0, width - 1)  # of weight 0 outside
        index = ((batch + y) * width + x).flatten()
        result.index_add_(0, index, (weight[:, None] * values).permute(0, 2, 3, 1).flatten(0, 2))
    return result.view(count, height, width, channels).permute(0, 3, 1, 2)


# ---- On a grid of which some nodes are known: inverse distance, and Laplace's equation ----------
# The grid has one, two or three axes (a time line, an image's patches, a clip's space-time tokens).
# Neighbors u, v, diagonal ones among them, are tied by
#
#     w_uv = exp(-|f_u - f_v|^2 / (2 sigma_feature^2)) exp(-d_uv^2 / (2 sigma_space^2)),
#
# f being a first guess at all values, |.|^2 the mean over channels and d the distance in grid
# steps. With L = D - W the unknown values solve
#
#     (L_UU + lambda I) X_U = -L_UK X_K + lambda X_start,
#
# so that lambda draws them to the start and not to zero. On grids of few nodes, such as an image's
# patches, the systems of all clips are factorized once for all channels. On others nothing is
# assembled: conjugate gradients (Hestenes and Stiefel 1952) with Jacobi's preconditioner apply L to
# all clips and channels at once.

TOLERANCE = 1e-5  # of the residual, relative to the first one
STEPS_AT_MOST = 500
DENSE = 256  # nodes of a grid, up to which a factorization is the faster way
PIVOT = 1e-6  # added to a unit diagonal, so that float32 can factorize it
WEAKEST = 16.0  # exponent of an edge; float32 cannot resolve much weaker ones beside others


def mean_by_distance(
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


def solve_harmonic(
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
    for _ in range(STEPS_AT_MOST):
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
