"""RoIAlign as two small matrix products (He et al. 2017, Mask R-CNN, section 3).

SAM3's geometry encoder pools the features below a box by `torchvision.ops.roi_align`. Where that
has no native kernel, or none that is deterministic, it compiles itself: 20 s at the first call,
and on some machines never. But bilinear samples on an axis-aligned grid are separable: with the
mean weights of a box's rows and columns, the same numbers are rows @ features @ columns^T.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def roi_align(
    features: Tensor,  # [I, C, h, w]
    boxes: Sequence[Tensor],  # I of [N, 4] xyxy in cells
    size: int,  # bins a side
) -> Tensor:
    """What `torchvision.ops.roi_align(features, boxes, size)` gives, [sum N, C, size, size]."""
    owner = [image for image, held in enumerate(boxes) for _ in range(len(held))]
    x_low, y_low, x_high, y_high = torch.cat([each.float() for each in boxes]).unbind(1)
    rows = _weights(y_low, y_high, size, features.shape[2]).to(features)
    columns = _weights(x_low, x_high, size, features.shape[3]).to(features)
    return rows[:, None] @ features[owner] @ columns[:, None].mT


def _weights(low: Tensor, high: Tensor, bins: int, cells: int) -> Tensor:
    """How much each cell counts in each bin, [K, bins, cells]; samples far outside count as 0."""
    extent = (high - low).clamp_min(1.0)
    samples = (extent / bins).ceil()  # of a bin
    most = int(samples.max()) if len(samples) else 1
    index = torch.arange(most, device=low.device)
    within = (index + 0.5) / samples[:, None]  # [K, most] in bins
    place = torch.arange(bins, device=low.device)[:, None] + within[:, None]  # [K, bins, most]
    place = low[:, None, None] + place * (extent / bins)[:, None, None]
    counts = (index < samples[:, None])[:, None] & (place >= -1) & (place <= cells)
    cell = torch.arange(cells, device=low.device)
    distance = place.clamp(0, cells - 1)[..., None] - cell
    hat = (1 - distance.abs()).clamp_min(0) * counts[..., None]
    return hat.sum(2) / samples[:, None, None]


@contextmanager
def separable_roi_align() -> Iterator[None]:
    """Within, `torchvision.ops.roi_align` is the one above."""
    import torchvision  # not before the model that needs it

    ops: Any = torchvision.ops
    original = ops.roi_align
    ops.roi_align = roi_align
    try:
        yield
    finally:
        ops.roi_align = original
