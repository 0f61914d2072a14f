"""How far boxes lie apart."""

from __future__ import annotations

import torch
from torch import Tensor

_POINT = 1e-12  # added to areas: two equal boxes without area agree


def giou(
    a: Tensor,  # [..., 4] xyxy
    b: Tensor,  # [..., 4] xyxy, broadcast against a: [B, N, 1, 4] and [B, 1, M, 4] are all pairs
) -> Tensor:
    """Generalised intersection over union, [...] in [-1, 1] (Rezatofighi et al. 2019)."""
    common, union = _overlap(a, b)
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return (common + _POINT) / (union + _POINT) - (hull - union) / (hull + _POINT)


def box_iou(
    a: Tensor,  # [..., 4] xyxy
    b: Tensor,  # [..., 4] xyxy, broadcast against a
) -> Tensor:
    """Intersection over union, [...] in [0, 1]; 0 of boxes without area."""
    common, union = _overlap(a, b)
    return common / union.clamp_min(torch.finfo(union.dtype).tiny)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union."""
    common = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    return common, _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - common


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp_min(0).prod(-1)
