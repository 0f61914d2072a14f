"""Which splats can show in which small tile of the image, in batches that composite together."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from braid.radiance.compositing import MIN_ALPHA
from braid.radiance.projection import Splats

_CHUNK = 1 << 16  # (splat, pixel) pairs composited at once: activations stay in the CPU's cache


class Tiles(NamedTuple):
    """The splats of every tile that has any, nearest first, padded to the batch's longest list."""

    tile: Tensor  # [T] tile numbers, row-major, those with the longest lists first
    splat: Tensor  # [P] splat numbers; V stands for "nothing"
    place: Tensor  # [P], which of the T tiles a place belongs to
    batches: list[tuple[int, int]]  # B tiles with K places each; P is the sum of the B * K


@torch.no_grad()
def assign_tiles(splats: Splats, width: int, height: int, side: int) -> Tiles:
    """List for every tile of `side` pixels the splats whose alpha can reach 1/255 in it."""
    columns = math.ceil(width / side)
    reach = 2 * (splats.log_opacities - math.log(MIN_ALPHA))  # squared, in standard deviations
    extent = (reach.clamp_min(0) * splats.covariances[::2]).sqrt()
    # Pixel i has its centre at i + 0.5: the first and last one inside the splat's box.
    first = (splats.centres - extent - 0.5).ceil().clamp_min(0)
    last = torch.minimum(
        (splats.centres + extent - 0.5).floor(), extent.new_tensor([[width - 1], [height - 1]])
    )
    visible = (last >= first).all(dim=0) & (reach > 0)
    first = first.div_(side).floor_().long()
    across, down = (last.div_(side).floor_().long() - first + 1).clamp_min_(0) * visible
    nearest = torch.argsort(splats.depths, stable=True)
    rank, number = _expand((across * down).index_select(0, nearest))
    splat = nearest.index_select(0, rank)
    corner = (first[1] * columns + first[0]).index_select(0, splat)
    stride = across.index_select(0, splat)
    tile = corner + number // stride * columns + number % stride
    tile, order = torch.sort(tile.int(), stable=True)
    return _pad(tile, splat.index_select(0, order), len(nearest), max(1, _CHUNK // side**2))


def _expand(
    counts: Tensor,  # [V]
) -> tuple[Tensor, Tensor]:  # [sum], [sum]
    """Repeat index i `counts[i]` times; also the running number within each repetition."""
    index = torch.repeat_interleave(counts)
    starts = counts.cumsum(0) - counts
    number = torch.arange(len(index), device=counts.device)
    return index, number - starts.index_select(0, index)


def _pad(
    tile: Tensor,  # [pairs], ascending
    splat: Tensor,  # [pairs]
    nothing: int,
    budget: int,
) -> Tiles:
    """Batches of at most `budget` places (one tile at the least), longest lists first."""
    numbers, counts = torch.unique_consecutive(tile, return_counts=True)
    starts = counts.cumsum(0) - counts
    counts, order = torch.sort(counts, descending=True, stable=True)
    batches = _batches(counts.tolist(), budget)
    widths = [width for count, width in batches for _ in range(count)]
    place, number = _expand(torch.tensor(widths, dtype=torch.long, device=tile.device))
    source = starts[order].index_select(0, place) + number
    listed = torch.where(number < counts.index_select(0, place), source, len(splat))
    splat = torch.nn.functional.pad(splat, (0, 1), value=nothing)
    return Tiles(numbers[order].long(), splat.index_select(0, listed), place, batches)


def _batches(lengths: list[int], budget: int) -> list[tuple[int, int]]:
    batches, begin = [], 0
    while begin < len(lengths):
        count = min(max(1, budget // lengths[begin]), len(lengths) - begin)
        batches.append((count, lengths[begin]))
        begin += count
    return batches


def monomials(side: int, like: Tensor) -> Tensor:  # [6, side * side]
    """1, u, v, u^2, uv, v^2 at a tile's pixel centres, (u, v) from the middle of the tile."""
    place = torch.arange(side).to(like) + 0.5 - 0.5 * side
    v, u = (grid.flatten() for grid in torch.meshgrid(place, place, indexing="ij"))
    return torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v])
