"""Masks and boxes: masks at another resolution, and how well two masks or two boxes overlap.

A coarse cell of a mask holds the mean of the *probabilities* that it covers: the fraction of it
that belongs to the object. Means of logits would depend on how sure the inside is, and single
samples would miss thin things. The mean is exact for any two sizes: a cell of 252 px that lies
across two cells of 64 px counts for either by the area that it has there.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import and_

import torch
from torch import Tensor
from torch.nn import functional as F

BAND = 0.02  # of the image's diagonal: width of the band that boundary IoU compares
_LEAST = 1e-30  # least probability, so that its logarithm is a number
_POINT = 1e-12  # added to areas: two equal boxes without area agree


# ---- Masks -------------------------------------------------------------------------------------


def area_means(
    values: Tensor,  # [..., h, w]
    size: int,  # cells a side
) -> Tensor:
    """Means over the area of each cell of a coarser (or finer) grid, [..., size, size]."""
    height, width = values.shape[-2:]
    rows = _overlap(height, size, values) @ values.unflatten(-2, (math.gcd(height, size), -1))
    columns = rows.flatten(-3, -2).unflatten(-1, (math.gcd(width, size), -1))
    return (columns @ _overlap(width, size, values).mT).flatten(-2)


def _overlap(fine: int, coarse: int, like: Tensor) -> Tensor:
    """The fraction that each of `fine` cells has in each of `coarse` ones, [coarse / g, fine / g].

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
    inside, outside = area_means(logits.sigmoid(), size), area_means((-logits).sigmoid(), size)
    return inside.clamp_min(_LEAST).log() - outside.clamp_min(_LEAST).log()


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
    """IoU of the bands of each mask and its partner, [N].

    Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021,
    section 4: the pixels of a mask that are within d of its contour, d being 2 % of the image's
    diagonal. The distance is the chessboard's, and the border of the image is a contour.
    """
    width = band_width(*left.shape[-2:])
    return paired_mask_iou(inner_band(left, width), inner_band(right, width))


def band_width(height: int, width: int) -> int:
    """d in pixels, at least 1."""
    return max(round(BAND * float(height**2 + width**2) ** 0.5), 1)


def inner_band(
    masks: Tensor,  # [N, h, w] bool
    width: int,  # pixels
) -> Tensor:
    """The pixels of each mask that are within `width` of its outside, [N, h, w] bool."""
    deep = F.pad(masks, [width] * 4)  # what is left when the window has been inside
    for axis in (-2, -1):  # a square is down, then across
        size = masks.shape[axis]
        deep = reduce(and_, (deep.narrow(axis, start, size) for start in range(2 * width + 1)))
    return masks & ~deep


# ---- Boxes -------------------------------------------------------------------------------------


def xyxy(boxes: Tensor) -> Tensor:
    """Corners of boxes given by center and size, [..., 4]."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], -1)


def spread(count: int) -> Tensor:
    """Boxes all over the image, [count, 4] cxcywh: centers by the R2 sequence, sides of .3."""
    step = torch.tensor([0.7548776662466927, 0.5698402909980532])
    centers = 0.1 + 0.8 * ((0.5 + torch.arange(count)[:, None] * step) % 1)
    return torch.cat([centers, torch.full((count, 2), 0.3)], 1)


def giou(
    a: Tensor,  # [..., 4] xyxy
    b: Tensor,  # [..., 4] xyxy, broadcast against a: [B, N, 1, 4] and [B, 1, M, 4] are all pairs
) -> Tensor:
    """Generalized intersection over union, [...] in [-1, 1] (Rezatofighi et al. 2019)."""
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
