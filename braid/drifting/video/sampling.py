"""From given keyframes to a full clip: in one step, or by cold diffusion in many.

Cold diffusion (Bansal et al. 2022, algorithm 2) undoes a known corruption D level by level:
x_{s-1} = x_s - D(x_hat, s) + D(x_hat, s - 1) with x_hat = R(x_s, s). Here D interpolates between
the keyframes of level s, so each step reveals the refiner's own idea of a few more keyframes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from braid.drifting.video.corruption import Corrupted, Corruption
from braid.drifting.video.refiner import Refiner

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
        columns = [values[rows].to(device) for values in (*corrupted, classes)]
        levels = torch.full((len(rows),), level, device=device)
        guidance = torch.full((len(rows),), alpha, device=device)
        parts.append(refiner(*columns, levels, guidance, clamp).float().cpu())
    return torch.cat(parts)


def cold_sample(
    refiner: Refiner,
    corruption: Corruption,
    keyframes: Tensor,  # [B, C, T, H, W]; only the coarsest level's keyframes are read
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
