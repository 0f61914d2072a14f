"""Points and paths among obstacles: signed distance, collisions, length, smoothness, projection.

A map is a grid of square blocks, occupied or free; block (r, c) covers x in [c, c + 1) and y in
[r, r + 1), and what lies beyond the grid is occupied. Points are (x, y) in blocks. The signed
distance is that to the nearest wall: positive where it is free, negative inside of walls; it is
kept on a lattice of PER_BLOCK nodes a block and bilinear in between.

    collides     exact: a segment is cut at every grid line that it crosses, and each piece lies in
                 one block
    project      points that are nearer to a wall than a margin move along the distance's gradient
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PER_BLOCK = 4  # lattice nodes a block and axis
PIECE = 1e-6  # of a segment; shorter pieces are rounding
CHUNK = 256  # maps or paths at once


def signed_distance(
    occupied: Tensor,  # [M, H, W] bool
) -> Tensor:
    """Exact distances at the nodes, [M, PER_BLOCK H + 1, PER_BLOCK W + 1] float32."""
    height, width = occupied.shape[1:]
    ringed = functional.pad(occupied, (1, 1, 1, 1), value=True).flatten(1)
    rows, columns = (torch.arange(-1, n + 1.0) for n in (height, width))
    axes = [torch.arange(PER_BLOCK * n + 1) / PER_BLOCK for n in (height, width)]
    beyond = [
        torch.maximum(low - at[:, None], at[:, None] - low - 1).clamp(min=0)
        for at, low in zip(axes, (rows, columns), strict=True)
    ]  # from each node to each row or column of blocks
    square = beyond[0].square()[:, None, :, None] + beyond[1].square()[None, :, None, :]
    distance = square.sqrt().flatten(0, 1).flatten(1)  # [nodes, blocks]
    parts = []
    for chunk in ringed.split(8):
        outside, inside = (
            distance.masked_fill(~blocks[:, None], torch.inf).amin(2) for blocks in (chunk, ~chunk)
        )
        inside = torch.where(inside.isinf(), 0, inside)  # a map without a free block
        parts.append(torch.where(outside > 0, outside, -inside))
    return torch.cat(parts).unflatten(1, (len(axes[0]), len(axes[1])))


def distance_at(
    distance: Tensor,  # [B, R, S] of `signed_distance`
    points: Tensor,  # [B, N, 2] blocks
) -> Tensor:
    """The signed distance at points, [B, N]; beyond the grid that of its border."""
    size = points.new_tensor([distance.shape[2] - 1, distance.shape[1] - 1]) / PER_BLOCK
    grid = (2 * points / size - 1)[:, :, None]
    sampled = functional.grid_sample(
        distance[:, None], grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return sampled[:, 0, :, 0]


def inside(
    occupied: Tensor,  # [B, H, W] bool
    points: Tensor,  # [B, N, 2]
) -> Tensor:
    """Which points lie in a wall or beyond the grid, [B, N] bool."""
    height, width = occupied.shape[1:]
    column, row = points.floor().long().unbind(-1)
    beyond = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    flat = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    return occupied.flatten(1).gather(1, flat) | beyond


def collides(
    occupied: Tensor,  # [B, H, W] bool
    paths: Tensor,  # [B, T, 2]
) -> Tensor:
    """Which segments of paths touch a wall, [B, T - 1] bool."""
    parts = zip(occupied.split(CHUNK), paths.split(CHUNK), strict=True)
    return torch.cat([_collides(*part) for part in parts])


def _collides(occupied: Tensor, paths: Tensor) -> Tensor:
    start, step = paths[:, :-1], paths.diff(dim=1)
    lines = torch.arange(max(occupied.shape[1:]) + 1, device=paths.device)
    crossings = (lines - start[..., None]) / step[..., None]  # [B, S, 2, lines]
    crossings = torch.where(step[..., None] == 0, 0, crossings).clamp(0, 1).flatten(2)
    ends = torch.stack([torch.zeros_like(start[..., 0]), torch.ones_like(start[..., 0])], -1)
    cuts = torch.cat([crossings, ends], -1).sort(-1).values
    middle = (cuts[..., 1:] + cuts[..., :-1]) / 2  # [B, S, pieces]
    points = start[:, :, None] + middle[..., None] * step[:, :, None]
    hit = inside(occupied, points.flatten(1, 2)).unflatten(1, middle.shape[1:])
    return (hit & (cuts.diff(dim=-1) > PIECE)).any(-1)


def length(
    paths: Tensor,  # [B, T, 2]
) -> Tensor:
    """Length of paths, [B] in blocks."""
    return paths.diff(dim=1).norm(dim=-1).sum(1)


def acceleration(
    paths: Tensor,  # [B, T, 2]
) -> Tensor:
    """Energy of acceleration: mean square of second differences, [B] blocks^2 a step^4."""
    return paths.diff(n=2, dim=1).square().sum(-1).mean(1)


def project(
    distance: Tensor,  # [B, R, S]
    paths: Tensor,  # [B, T, 2]
    fixed: Tensor,  # [B, T] bool, points that stay
    margin: float,  # blocks from walls
    iterations: int = 10,
) -> Tensor:
    """Paths whose points were pushed out of walls along the signed distance, [B, T, 2]."""
    for _ in range(iterations):
        with torch.enable_grad():
            free = paths.detach().requires_grad_()
            depth = margin - distance_at(distance, free)
            (gradient,) = torch.autograd.grad(depth.sum(), free)
        unit = gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        push = torch.where(fixed, 0, depth.detach().clamp(min=0))
        paths = paths - push[..., None] * unit
    return paths
