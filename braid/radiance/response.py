"""The response loss: what a student's rays should look like, given the teacher's (Stage 1B)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Response(Protocol):
    """What is seen along R rays."""

    @property
    def rgb(self) -> Tensor:
        """Premultiplied colour, [R, 3]."""

    @property
    def alpha(self) -> Tensor:
        """Opacity, [R]."""

    @property
    def depth(self) -> Tensor:
        """Expected distance along the unit ray, [R]."""


class ResponseTerms(NamedTuple):
    """Weighted loss terms, and the error that decides where to look next."""

    terms: dict[str, Tensor]  # colour, opacity, depth; the loss is their sum
    error: Tensor  # [R], colour error of each ray, detached


class ResponseLoss:
    """Colour L2 over a random background + opacity L1 + depth smooth L1 where the teacher is solid.

    Every term is a mean over rays of weight * error, so that importance weights 1 / (N p) keep it
    unbiased. Depth errors are in units of `scale` and count where the teacher's alpha exceeds
    `solid`; its depth in front of nothing means nothing.
    """

    def __init__(
        self,
        *,
        colour: float = 1.0,
        opacity: float = 0.3,
        depth: float = 0.05,
        scale: float = 1.0,  # scene units
        solid: float = 0.6,
    ) -> None:
        self.colour, self.opacity, self.depth = colour, opacity, depth
        self.scale, self.solid = scale, solid

    def __call__(
        self,
        student: Response,
        teacher: Response,
        background: Tensor,  # [R, 3] in [0, 1], the same behind both
        weight: Tensor,  # [R], importance
    ) -> ResponseTerms:
        """The terms of a batch of rays."""
        alpha_gap = student.alpha - teacher.alpha
        colour_gap = student.rgb - teacher.rgb - alpha_gap[:, None] * background
        colour = colour_gap.square().mean(dim=-1)
        depth = torch.nn.functional.smooth_l1_loss(
            student.depth / self.scale, teacher.depth / self.scale, reduction="none"
        ) * (teacher.alpha > self.solid)
        terms = {
            "colour": self.colour * (weight * colour).mean(),
            "opacity": self.opacity * (weight * alpha_gap.abs()).mean(),
            "depth": self.depth * (weight * depth).mean(),
        }
        return ResponseTerms(terms, colour.detach())
