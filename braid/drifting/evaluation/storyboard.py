"""From a storyboard, a few given latent frames and a text, to a full clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.video.corruption import Corrupted, Corruption
from braid.drifting.video.refiner import AnyRefiner, refine


def given_frames(keyframes: Sequence[int], frames: int) -> Tensor:
    """The mask [1, T] of a storyboard's keyframes.

    Raises:
        ValueError: fewer than two keyframes, or one that the clip does not have.
    """
    if len(set(keyframes)) < 2 or not all(0 <= frame < frames for frame in keyframes):
        raise ValueError(
            f"keyframes are {list(keyframes)}, expected two or more of 0 to {frames - 1}"
        )
    mask = torch.zeros(1, frames, dtype=torch.bool)
    mask[0, list(keyframes)] = True
    return mask


def impute_given(
    latents: Tensor,  # [1, C, T, H, W]
    mask: Tensor,  # [1, T]
    corruption: Corruption,
    generator: torch.Generator,
) -> Corrupted:
    """The refiner's start; frames that are not given are not read.

    Raises:
        ValueError: a given frame is not finite, or the clip has another number of frames.
    """
    if not latents.movedim(2, 1)[mask].isfinite().all():
        raise ValueError("a given latent frame holds NaN or infinite values")
    return corruption.impute(latents, mask, torch.zeros(1, dtype=torch.long), generator)


@torch.no_grad()
def complete_storyboard(
    latents: Tensor,  # [1, C, T, H, W]
    text: Tensor | None,  # [1, L, D]
    keyframes: Sequence[int],  # the given latent frames
    corruption: Corruption,
    assign: Callable[[Tensor | None, Tensor], Tensor],  # text and latents to classes [1]
    refiner: AnyRefiner,
    alpha: float,  # guidance; 1: none
    seed: int,
) -> tuple[dict[str, Tensor], Tensor, int]:
    """`interpolated` and `refined` latents [C, T, H, W], the mask of given ones [T], the class.

    Raises:
        ValueError: keyframes that the clip does not have, or a given frame that is not finite.
    """
    given = given_frames(keyframes, latents.shape[2])
    start = impute_given(latents, given, corruption, generator(seed, "storyboard"))
    classes = assign(text, start.latents)
    level = level_of(len(set(keyframes)), corruption.counts)
    (full,) = refine(refiner, start, classes, level, alpha, clamp=True, texts=text)
    shown = {"interpolated": start.latents[0], "refined": full.contiguous()}
    return shown, given[0], int(classes)


def level_of(keyframes: int, counts: Sequence[int]) -> int:
    """The training level whose number of keyframes is nearest; the coarser of two."""
    levels = range(1, len(counts))
    return min(levels, key=lambda level: (abs(counts[level] - keyframes), -level))
