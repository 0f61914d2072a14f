"""Where masks end: the bands that boundary IoU compares.

Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation", CVPR 2021,
section 4: the pixels of a mask that are within d of its contour, d being 2 % of the image's
diagonal. The distance is the chessboard's, and the border of the image is a contour.
"""

from __future__ import annotations

from functools import reduce
from operator import and_

from torch import Tensor
from torch.nn import functional

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
