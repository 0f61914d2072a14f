"""Fill a clip's missing frames in from its keyframes, by any of five methods.

    linear             the straight line between the two keyframes around a frame
    cubic              Hermite's cubic through them, with Catmull and Rom's tangents
    inverse_distance   the mean of all keyframes weighted by 1 / (distance in time)^2
    harmonic           the edge-aware Laplace equation on the space-time grid (harmonic.py)
    sinkhorn           tokens moved along an optimal transport plan (sinkhorn.py)

Keyframes come out bit for bit, and nothing of a missing frame is read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from braid.drifting.harmonic import harmonic as solve_harmonic
from braid.drifting.harmonic import inverse_distance as mean_by_distance
from braid.drifting.keyframes import frames_at, neighbours
from braid.drifting.sinkhorn import warp


def interpolate(
    latents: Tensor,  # [B, C, T, H, W]; missing frames are not read
    mask: Tensor,  # [B, T] bool, True: keyframe
    method: str,
    **settings: float,  # those of the method's function
) -> Tensor:
    """Clips whose missing frames are made from their keyframes, [B, C, T, H, W].

    Raises:
        ValueError: no such method, a mask of another shape, or a clip without keyframes.
    """
    if method not in METHODS:
        expected = ", ".join(METHODS)
        raise ValueError(f"corruption.interpolator is {method!r}, expected one of {expected}")
    if latents.ndim != 5 or mask.shape != (latents.shape[0], latents.shape[2]):
        raise ValueError(
            f"interpolation: expected latents [B, C, T, H, W] and a mask [B, T], got "
            f"{list(latents.shape)} and {list(mask.shape)}"
        )
    filled = METHODS[method](latents, mask, **settings)
    return torch.where(mask[:, None, :, None, None], latents, filled)


def linear(
    latents: Tensor,  # [B, C, T, H, W]
    mask: Tensor,  # [B, T] bool
) -> Tensor:
    """The straight line between the neighbouring keyframes, [B, C, T, H, W]."""
    around = neighbours(mask)
    left, right = frames_at(latents, around.left), frames_at(latents, around.right)
    return torch.lerp(left, right, around.fraction[:, None, :, None, None].to(left))


def cubic(
    latents: Tensor,  # [B, C, T, H, W]
    mask: Tensor,  # [B, T] bool
) -> Tensor:
    """Hermite's cubic through the keyframes, [B, C, T, H, W]; with two keyframes the line.

    The tangent at a keyframe is that of the parabola through it and its two neighbours; at the
    first and the last one it is the slope towards the only neighbour.
    """
    around = neighbours(mask)
    left, right = frames_at(latents, around.left), frames_at(latents, around.right)
    out = _tangents(latents, mask, around.left)
    into = _tangents(latents, mask, around.right)
    a, gap = (each[:, None, :, None, None].to(left) for each in (around.fraction, around.gap))
    bend = (1 - a) * (out * gap - (right - left)) - a * (into * gap - (right - left))
    return torch.lerp(left, right, a) + a * (1 - a) * bend


def _tangents(latents: Tensor, mask: Tensor, key: Tensor) -> Tensor:
    """The change per frame at keyframes `key` [B, T], [B, C, T, H, W]."""
    last = mask.shape[1] - 1
    around = neighbours(mask)
    before = around.left.gather(1, (key - 1).clamp_min(0))
    after = around.right.gather(1, (key + 1).clamp_max(last))
    now = frames_at(latents, key)
    past, future = (
        (each - key)[:, None, :, None, None].to(latents) for each in (before, after)
    )  # signed frames; 0 where there is no such keyframe
    slope_past = (now - frames_at(latents, before)) / (-past).clamp_min(1)
    slope_future = (frames_at(latents, after) - now) / future.clamp_min(1)
    mean = (slope_past * future - slope_future * past) / (future - past).clamp_min(1)
    return torch.where(past == 0, slope_future, torch.where(future == 0, slope_past, mean))


def inverse_distance(
    latents: Tensor,  # [B, C, T, H, W]
    mask: Tensor,  # [B, T] bool
) -> Tensor:
    """The mean of all keyframes weighted by 1 / (distance in time)^2, [B, C, T, H, W]."""
    series = latents.movedim(2, -1)  # [B, C, H, W, T]
    return mean_by_distance(series.flatten(1, 3), mask).view(series.shape).movedim(-1, 2)


def harmonic(
    latents: Tensor,  # [B, C, T, H, W]
    mask: Tensor,  # [B, T] bool
    *,
    sigma_feature: float,
    sigma_space: float,
    lambda_reg: float,
) -> Tensor:
    """Laplace's equation on the space-time grid, started from the line, [B, C, T, H, W]."""
    known = mask[:, :, None, None].expand(-1, -1, *latents.shape[3:])
    return solve_harmonic(
        latents,
        known,
        linear(latents, mask),
        sigma_feature=sigma_feature,
        sigma_space=sigma_space,
        lambda_reg=lambda_reg,
    )


def sinkhorn(
    latents: Tensor,  # [B, C, T, H, W]
    mask: Tensor,  # [B, T] bool
    *,
    temperature: float,
    dustbin: float,
    reach: float,
) -> Tensor:
    """The line, with what moves moved along, [B, C, T, H, W]."""
    straight = linear(latents, mask)
    return warp(latents, mask, straight, temperature=temperature, dustbin=dustbin, reach=reach)


METHODS: dict[str, Callable[..., Tensor]] = {
    "linear": linear,
    "cubic": cubic,
    "inverse_distance": inverse_distance,
    "harmonic": harmonic,
    "sinkhorn": sinkhorn,
}
