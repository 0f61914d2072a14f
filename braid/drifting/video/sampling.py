"""From given keyframes to a full clip: in one step, or by cold diffusion in many.

Cold diffusion (Bansal et al. 2022, algorithm 2) undoes a known corruption D level by level:
x_{s-1} = x_s - D(x_hat, s) + D(x_hat, s - 1) with x_hat = R(x_s, s). Here D interpolates between
the keyframes of level s, so each step reveals the refiner's own idea of a few more keyframes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from braid.drifting.video.corruption import Corrupted, Corruption
from braid.drifting.video.refiner import Refiner

# ---- From a storyboard, a few given latent frames, to a full clip ------------------------------
# A storyboard file is a `.safetensors` with `latents` [C, T, H, W], of which only the given frames
# are read, and `embedding` [L, D], the prompt's text embedding with zero rows as padding.


def load_storyboard(path: Path) -> tuple[Tensor, Tensor]:
    """Latents [1, C, T, H, W] and text embedding [1, L, D] of a storyboard file.

    Raises:
        ValueError: the file is missing or broken, or a tensor is missing or of another shape.
    """
    try:
        stored = load(path.read_bytes())
        latents, embedding = stored["latents"].float(), stored["embedding"].float()
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path}: expected safetensors latents and embedding ({error})") from None
    if latents.ndim != 4 or embedding.ndim != 2:
        raise ValueError(
            f"{path}: expected latents [C, T, H, W] and embedding [L, D], "
            f"got {list(latents.shape)} and {list(embedding.shape)}"
        )
    return latents[None], embedding[None]


def given_frames(keyframes: Sequence[int], frames: int) -> Tensor:
    """The mask [1, T] of a storyboard's keyframes.

    Raises:
        ValueError: fewer than two keyframes, or one that the clip does not have.
    """
    if len(set(keyframes)) < 2 or not all(0 <= each < frames for each in keyframes):
        raise ValueError(
            f"keyframes are {list(keyframes)}, expected two or more of 0 to {frames - 1}"
        )
    mask = torch.zeros(1, frames, dtype=torch.bool)
    mask[0, list(keyframes)] = True
    return mask


def interpolated(
    latents: Tensor,  # [1, C, T, H, W]
    mask: Tensor,  # [1, T]
    corruption: Corruption,
    generator: torch.Generator,
) -> Corrupted:
    """The refiner's start; frames that are not given are not looked at.

    Raises:
        ValueError: a given frame is not finite, or the clip has another number of frames.
    """
    if not latents.movedim(2, 1)[mask].isfinite().all():
        raise ValueError("a given latent frame holds NaN or infinite values")
    return corruption.impute(latents, mask, torch.zeros(1, dtype=torch.long), generator)


def level_of(keyframes: int, counts: Sequence[int]) -> int:
    """The training level whose number of keyframes is nearest; the coarser of two."""
    levels = range(1, len(counts))
    return min(levels, key=lambda level: (abs(counts[level] - keyframes), -level))


CHUNK = 64  # clips at once


@torch.no_grad()
def refine(
    refiner: nn.Module,  # called as `Refiner` is
    corrupted: Corrupted,  # of B clips
    classes: Tensor,  # [B]
    level: int,
    alpha: float,  # guidance, 1: none
    clamp: bool | None = None,  # keep what is given bit for bit; None: as the refiner is configured
) -> Tensor:
    """One step from corrupted clips to refined ones, [B, C, T, H, W], on the CPU."""
    device = next(refiner.parameters()).device
    parts = []
    for rows in torch.arange(len(classes)).split(CHUNK):
        columns = [each[rows].to(device) for each in (*corrupted, classes)]
        levels = torch.full((len(rows),), level, device=device)
        guidance = torch.full((len(rows),), alpha, device=device)
        parts.append(refiner(*columns, levels, guidance, clamp).float().cpu())
    return torch.cat(parts)


def cold_sample(
    refiner: Refiner,
    corruption: Corruption,
    keyframes: Tensor,  # [B, C, T, H, W]; only the coarsest level's keyframes are looked at
    masks: Tensor,  # [S + 1, B, T] nested, finest level first
    classes: Tensor,  # [B]
    alpha: float,
    generator: torch.Generator,  # of the corruption's noise
) -> Tensor:
    """Refine from the coarsest level to the finest, one network call a level: [B, C, T, H, W].

    Keyframes that are given stay bit for bit.
    """
    ids = torch.arange(len(keyframes))

    def degraded(clips: Tensor, level: int) -> Corrupted:
        return corruption.impute(clips, masks[level], ids, generator)

    coarsest = len(masks) - 1
    current = degraded(keyframes, coarsest)
    for level in range(coarsest, 0, -1):
        estimate = refine(refiner, current, classes, level, alpha, clamp=True)
        coarse, fine = degraded(estimate, level), degraded(estimate, level - 1)
        current = fine._replace(latents=current.latents - coarse.latents + fine.latents)
    return current.latents
