"""The matcher and the loss of the distillation at the weights of params.yaml."""

from typing import Any

from braid.segmentation.config import LossesConfig, MatchingConfig
from braid.segmentation.distillation.losses import DistillationLoss, Matcher

MATCHING = MatchingConfig(mask=5.0, box=5.0, giou=2.0, logit=2.0, size=64)
LOSSES = LossesConfig(
    mask=5.0,
    box=5.0,
    giou=2.0,
    logit=2.0,
    presence=1.0,
    semantic=2.0,
    fpn=1.0,
    encoder=1.0,
    text=10.0,
    presence_loss="bce",
    spare=1.0,
)


def some_matcher(**changes: Any) -> Matcher:
    return Matcher(MATCHING.model_copy(update=changes))


def some_loss(size: int = 64, **changes: Any) -> DistillationLoss:
    return DistillationLoss(some_matcher(size=size), LOSSES.model_copy(update=changes))
