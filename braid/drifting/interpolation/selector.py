"""Which frames to keep as keyframes: those that linear interpolation errs most without.

    greedy    from both ends on, one frame after another, always the one that lies farthest from
              its interpolation by the frames kept so far; the order makes nested levels
    optimal   for one number of keyframes the least sum of squared errors, by dynamic programming:
              e_k(j) = min_i e_{k-1}(i) + c(i, j), c being the error of the frames between i and j

Errors are Euclidean over all numbers of a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from braid.drifting.interpolation.keyframes import neighbors

CHUNK = 64  # clips at once


def greedy_ranks(
    latents: Tensor,  # [B, C, T, ...]
    count: int,  # ranks below it are selected, the others are in the order of time
) -> Tensor:
    """The order in which frames are kept, both ends first, [B, T] int64."""
    frames = _frames(latents)
    batch, length, _ = frames.shape
    ranks = torch.arange(length, device=frames.device).repeat(batch, 1) + length
    ranks[:, 0], ranks[:, -1] = 0, 1
    rows = torch.arange(batch, device=frames.device)
    for rank in range(2, count):
        mask = ranks < length
        around = neighbors(mask)
        left, right = (frames.gather(1, index[..., None].expand_as(frames)) for index in around[:2])
        filled = torch.lerp(left, right, around.fraction[..., None].to(left))
        error = (filled - frames).square().sum(2).masked_fill(mask, -1)
        ranks[rows, error.argmax(1)] = rank
    return ranks.argsort(dim=1).argsort(dim=1)


def optimal_mask(
    latents: Tensor,  # [B, C, T, ...]
    count: int,  # keyframes
) -> Tensor:
    """The keyframes with the least squared error of linear interpolation, [B, T] bool."""
    return torch.cat([_optimal(frames, count) for frames in _frames(latents).split(CHUNK)])


def _optimal(frames: Tensor, count: int) -> Tensor:
    batch, length, _ = frames.shape
    cost = segment_errors(frames)
    best = cost[:, 0].clone()  # [B, T]: the error up to frame j with one segment
    before = []
    for _ in range(count - 2):
        total = best[:, :, None] + cost
        best, origin = total.min(dim=1)
        before.append(origin)
    mask = torch.zeros(batch, length, dtype=torch.bool, device=frames.device)
    place = torch.full((batch, 1), length - 1, device=frames.device)
    mask.scatter_(1, place, True)
    for origin in reversed(before):
        place = origin.gather(1, place)
        mask.scatter_(1, place, True)
    mask[:, 0] = True
    return mask


def segment_errors(
    frames: Tensor,  # [B, T, D]
) -> Tensor:
    """c(i, j), the squared error of the frames between i and j > i; infinite else, [B, T, T]."""
    batch, length, _ = frames.shape
    cost = frames.new_full((batch, length, length), torch.inf)
    for gap in range(1, length):
        start = torch.arange(length - gap, device=frames.device)
        ends = frames[:, start], frames[:, start + gap]
        fractions = torch.arange(1, gap, device=frames.device) / gap
        between = torch.lerp(ends[0][:, :, None], ends[1][:, :, None], fractions[:, None])
        inner = frames.unfold(1, gap + 1, 1)[..., 1:-1].transpose(2, 3)  # [B, T - gap, gap - 1, D]
        cost[:, start, start + gap] = (between - inner).square().sum((2, 3))
    return cost


def _frames(latents: Tensor) -> Tensor:
    """Frames as vectors, [B, T, D]."""
    return latents.movedim(2, 1).flatten(2)
