"""Masks at another resolution, and how well two of them overlap.

A coarse cell holds the mean of the *probabilities* that it covers: the share of it that belongs to
the object. Means of logits would depend on how sure the inside is, and single samples would miss
thin things. The mean is exact for any two sizes: a cell of 252 px that lies across two cells of
64 px counts for either by the area that it has there.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import and_

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn import functional as F

# ---- Where masks end: the bands that boundary IoU compares -------------------------------------
# Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021,
# section 4: the pixels of a mask that are within d of its contour, d being 2 % of the image's
# diagonal. The distance is the chessboard's, and the border of the image is a contour.

BAND = 0.02  # of the diagonal


def band_width(height: int, width: int) -> int:
    """d in pixels, at least 1."""
    return max(round(BAND * float(height**2 + width**2) ** 0.5), 1)


def inner_band(
    masks: Tensor,  # [N, h, w] bool
    width: int,  # pixels
) -> Tensor:
    """The pixels of each mask that are within `width` of its outside, [N, h, w] bool."""
    deep = functional.pad(masks, [width] * 4)  # what is left when the window has been inside
    for axis in (-2, -1):  # a square is down, then across
        size = masks.shape[axis]
        deep = reduce(and_, (deep.narrow(axis, start, size) for start in range(2 * width + 1)))
    return masks & ~deep


def paired_mask_iou(
    left: Tensor,  # [N, h, w] bool
    right: Tensor,  # [N, h, w] bool
) -> Tensor:
    """IoU of each mask with its partner, [N]; 0 where both are empty."""
    common = (left & right).sum(dim=(-2, -1))
    return common / (left | right).sum(dim=(-2, -1)).clamp_min(1)


def boundary_iou(
    left: Tensor,  # [N, h, w] bool
    right: Tensor,  # [N, h, w] bool
) -> Tensor:
    """IoU of the bands of each mask and its partner, [N]."""
    width = band_width(*left.shape[-2:])
    return paired_mask_iou(inner_band(left, width), inner_band(right, width))


# ---- How far boxes lie apart -------------------------------------------------------------------

_POINT = 1e-12  # added to areas: two equal boxes without area agree


def giou(
    a: Tensor,  # [..., 4] xyxy
    b: Tensor,  # [..., 4] xyxy, broadcast against a: [B, N, 1, 4] and [B, 1, M, 4] are all pairs
) -> Tensor:
    """Generalised intersection over union, [...] in [-1, 1] (Rezatofighi et al. 2019)."""
    common, union = _box_overlap(a, b)
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return (common + _POINT) / (union + _POINT) - (hull - union) / (hull + _POINT)


def box_iou(
    a: Tensor,  # [..., 4] xyxy
    b: Tensor,  # [..., 4] xyxy, broadcast against a
) -> Tensor:
    """Intersection over union, [...] in [0, 1]; 0 of boxes without area."""
    common, union = _box_overlap(a, b)
    return common / union.clamp_min(torch.finfo(union.dtype).tiny)


def _box_overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union."""
    common = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    return common, _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - common


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp_min(0).prod(-1)


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
