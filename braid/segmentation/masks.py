"""Masks at another resolution, and how well two of them overlap.

A coarse cell holds the mean of the *probabilities* that it covers: the share of it that belongs to
the object. Means of logits would depend on how sure the inside is, and single samples would miss
thin things. The mean is exact for any two sizes: a cell of 252 px that lies across two cells of
64 px counts for either by the area that it has there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_IMPOSSIBLE = 1e-30  # least probability, so that its logarithm is a number


def shares(
    chances: Tensor,  # [..., h, w]
    size: int,  # cells a side
) -> Tensor:
    """Means over the area of each cell of a coarser (or finer) grid, [..., size, size]."""
    height, width = chances.shape[-2:]
    rows = _overlap(height, size, chances) @ chances.unflatten(-2, (math.gcd(height, size), -1))
    columns = rows.flatten(-3, -2).unflatten(-1, (math.gcd(width, size), -1))
    return (columns @ _overlap(width, size, chances).mT).flatten(-2)


def resized(
    logits: Tensor,  # [..., C, h, w]
    size: int,  # cells a side
) -> Tensor:
    """The same masks as logits on another grid, [..., C, size, size] float32.

    Finer: bilinear. Coarser: the logits of the mean probabilities, taken for and against the object
    apart, as 1 - p has lost all digits where p is nearly 1.
    """
    logits = logits.float()
    if logits.shape[-2:] == (size, size):
        return logits
    if max(logits.shape[-2:]) <= size:
        return F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
    chance, against = shares(logits.sigmoid(), size), shares((-logits).sigmoid(), size)
    return chance.clamp_min(_IMPOSSIBLE).log() - against.clamp_min(_IMPOSSIBLE).log()


def dice(
    p: Tensor,  # [..., N] in [0, 1]
    q: Tensor,  # [..., N] in [0, 1]
) -> Tensor:
    """1 - 2 pq / (p^2 + q^2) of sums over cells, [...] (Milletari et al. 2016, V-Net).

    With squares in the denominator it is 0 where p = q, soft or not. One cell is added above and
    below: two masks with nothing in them agree.
    """
    squares = p.square().sum(-1) + q.square().sum(-1)
    return 1 - (2 * (p * q).sum(-1) + 1) / (squares + 1)


def _overlap(fine: int, coarse: int, like: Tensor) -> Tensor:
    """The share that each of `fine` cells has in each of `coarse` ones, [coarse / g, fine / g].

    With g = gcd(fine, coarse) both grids have an edge at every g-th part of the side, the same
    within each: that part is all there is to know.
    """
    parts = math.gcd(fine, coarse)
    fine, coarse = fine // parts, coarse // parts
    # In units of 1 / (fine * coarse), edges are whole numbers.
    low = fine * torch.arange(coarse, device=like.device)[:, None]
    first = coarse * torch.arange(fine, device=like.device)
    common = torch.minimum(low + fine, first + coarse) - torch.maximum(low, first)
    return common.clamp_min(0).to(like.dtype) / fine
