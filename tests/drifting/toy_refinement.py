"""A tiny world of clips in two classes, for the tests of training and evaluating refiners."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from braid.drifting.loss.drift import DriftLoss
from braid.drifting.training.objectives import DriftObjective, PairedObjective, Refinement
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.features import vanilla
from braid.drifting.video.refiner import Refiner
from tests.drifting import configs

FRAMES = 5


def toy_clips(count: int = 40) -> tuple[Tensor, Tensor]:
    """Clips [n, 2, 5, 4, 4] whose middle frames bend up in class 0 and down in class 1."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    bend = torch.tensor([0.0, 1.0, 1.5, 1.0, 0.0])
    clips = 0.3 * torch.randn(count, 2, 1, 4, 4, generator=draw).expand(-1, -1, FRAMES, -1, -1)
    sign = (1.0 - 2 * labels)[:, None, None, None, None]
    noise = 0.1 * torch.randn(count, 2, FRAMES, 4, 4, generator=draw)
    return clips + sign * bend[:, None, None] + noise, labels


def toy_corruption() -> Corruption:
    return Corruption(FRAMES, configs.corruption(levels=1, min_keyframes=2))


def toy_refiner(clamp: bool = True) -> Refiner:
    torch.manual_seed(0)
    return Refiner(2, 2, 2, configs.refiner(clamp=clamp))


def toy_objective(
    kind: str, clamp: bool = True, attraction: float = 1.0, **batches: Any
) -> Refinement:
    clips, labels = toy_clips()
    base = (
        toy_refiner(clamp),
        toy_corruption(),
        lambda positions: clips[positions],
        labels,
        configs.batches(**batches),
    )
    if kind == "paired":
        return PairedObjective(*base)
    return DriftObjective(
        *base,
        branches={"vanilla": (1.0, vanilla(["tokens"]))},
        loss=DriftLoss(configs.loss(attraction=attraction)),
        log_every=10,
    )
