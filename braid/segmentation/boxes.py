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
    common = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - common
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return (common + _POINT) / (union + _POINT) - (hull - union) / (hull + _POINT)


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp_min(0).prod(-1)
