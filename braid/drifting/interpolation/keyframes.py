"""Which frames of a clip are given: nested keyframe levels, and each frame's neighbors among them.

Level 0 keeps every frame, level S the fewest; the frames kept at level s are among those kept at
level s - 1, and the first and the last frame are always kept. A frame's *rank* says all of it:
level s keeps the frames of rank below K_s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.drifting.config import KeyframesConfig


def level_counts(frames: int, config: KeyframesConfig) -> list[int]:
    """How many frames each level keeps: K_0 = frames > K_1 > ... > K_S, S = levels.

    From the coarsest level up, with T frames, and `min_keyframes` for K_S:

        doubling    K_{s-1} = 2 K_s
        linear      K_s = round(K_S + (S - s) / S (T - K_S))
        geometric   K_s = round(K_S (T / K_S)^((S - s) / S)),

    held apart where rounding or the end of the clip would make two levels equal.

    Raises:
        ValueError: the clip is too short; names the param.
    """
    fewest, levels = config.min_keyframes, config.levels
    if fewest > frames:
        raise ValueError(
            f"{config.section}.min_keyframes is {fewest}, expected 2 to {frames}, the frames of a "
            "clip"
        )
    if levels > frames - fewest:
        raise ValueError(
            f"{config.section}.levels is {levels}, expected 1 to {frames - fewest}: between "
            f"{fewest} and {frames} keyframes no more levels differ"
        )
    counts = [fewest]
    for finer in range(1, levels):
        fraction = finer / levels
        count = {
            "doubling": 2 * counts[-1],
            "linear": round(fewest + fraction * (frames - fewest)),
            "geometric": round(fewest * (frames / fewest) ** fraction),
        }[config.schedule]
        counts.append(min(max(count, counts[-1] + 1), frames - levels + finer))
    return [frames, *reversed(counts)]


def nested_masks(
    batch: int,
    frames: int,
    counts: Sequence[int],  # keyframes at each level, descending, as of `level_counts`
) -> Tensor:
    """Which frames are given at each level, evenly spread, [levels, batch, frames] bool.

    Raises:
        ValueError: the counts do not descend from at most `frames` to at least 2.
    """
    return masks_of(even_ranks(frames, counts).expand(batch, -1), counts)


def masks_of(
    ranks: Tensor,  # [B, T]
    counts: Sequence[int],
) -> Tensor:
    """The frames that each level keeps, [levels, B, T] bool.

    Raises:
        ValueError: the counts do not descend from at most T to at least 2.
    """
    _check(ranks.shape[1], counts)
    return ranks < torch.tensor(counts, device=ranks.device)[:, None, None]


def random_ranks(
    scores: Tensor,  # [B, T - 2], any random numbers
) -> Tensor:
    """Both ends first, then a random order of the frames between, [B, T] int64."""
    interior = scores.argsort(dim=1, stable=True) + 2
    first = torch.zeros_like(interior[:, :1])
    return torch.cat([first, interior, first + 1], 1)


def even_ranks(frames: int, counts: Sequence[int]) -> Tensor:
    """Ranks that spread the frames of every level as evenly as its coarser levels allow, [T].

    The coarsest level is the rounded `linspace`; each finer one adds its frames where the gaps
    are widest, evenly inside a gap.

    Raises:
        ValueError: the counts do not descend from at most `frames` to at least 2.
    """
    _check(frames, counts)
    ranks = np.full(frames, frames)
    kept = np.array([0, frames - 1])
    ranks[kept] = [0, 1]
    for count in reversed(counts):
        added = _between(kept, count - len(kept))
        ranks[added] = len(kept) + np.arange(len(added))
        kept = np.sort(np.concatenate([kept, added]))
    return torch.from_numpy(ranks)


def _between(kept: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` further frames between the ascending kept ones, ascending.

    The n-th frame put into a gap of g frames finds intervals of g / n there: the largest first.
    """
    gaps = np.diff(kept)
    gap = np.repeat(np.arange(len(gaps)), gaps - 1)  # of each frame not kept
    chosen = np.argsort(-gaps[gap] / _number_within(gap), kind="stable")[:count]
    gap = np.sort(gap[chosen])
    parts = np.bincount(gap, minlength=len(gaps)) + 1
    n = _number_within(gap)
    return kept[gap] + (2 * n * gaps[gap] + parts[gap]) // (2 * parts[gap])


def _number_within(group: NDArray[np.int64]) -> NDArray[np.int64]:
    """1, 2, ... inside each run of equal numbers of an ascending array."""
    return np.arange(1, len(group) + 1) - np.searchsorted(group, group)


def _check(frames: int, counts: Sequence[int]) -> None:
    if list(counts) != sorted(counts, reverse=True) or not 2 <= counts[-1] <= counts[0] <= frames:
        raise ValueError(
            f"keyframe counts {list(counts)}: expected to descend from at most {frames} "
            "frames to at least 2"
        )


class Neighbors(NamedTuple):
    """The keyframes around each frame; a keyframe is its own neighbor on both sides.

    Before the first keyframe and after the last one both neighbors are that keyframe.
    """

    left: Tensor  # [B, T] int64
    right: Tensor  # [B, T] int64
    fraction: Tensor  # [B, T] float32, of the way from left to right

    @property
    def gap(self) -> Tensor:
        """Frames from the left to the right keyframe, [B, T] int64."""
        return self.right - self.left


def neighbors(
    mask: Tensor,  # [B, T] bool, True: keyframe
) -> Neighbors:
    """Find the nearest keyframes on both sides of every frame.

    Raises:
        ValueError: a clip without keyframes.
    """
    if not bool(mask.any(1).all()):
        raise ValueError("keyframe mask: expected at least one keyframe in every clip")
    frames = mask.shape[1]
    time = torch.arange(frames, device=mask.device).expand_as(mask)
    left = torch.where(mask, time, -1).cummax(1).values
    right = torch.where(mask, time, frames).flip(1).cummin(1).values.flip(1)
    left, right = torch.where(left < 0, right, left), torch.where(right == frames, left, right)
    fraction = torch.where(left < right, (time - left) / (right - left), 0)
    return Neighbors(left, right, fraction)


def frames_at(
    latents: Tensor,  # [B, C, T, H, W]
    index: Tensor,  # [B, N] int64, frame numbers
) -> Tensor:
    """The frames of each clip at its own frame numbers, [B, C, N, H, W]."""
    index = index[:, None, :, None, None].expand(-1, latents.shape[1], -1, *latents.shape[3:])
    return latents.gather(2, index)


# ---- Selected keyframes: those frames that linear interpolation errs most without ----------------
#     greedy    from both ends on, one frame after another, always the one that lies farthest from
#               its interpolation by the frames kept so far; the order makes nested levels
#     optimal   for one number of keyframes the least sum of squared errors, by dynamic programming:
#               e_k(j) = min_i e_{k-1}(i) + c(i, j), c being the error of the frames between i and j
# Errors are Euclidean over all numbers of a frame.

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
