"""Which checkpoint of a refiner to keep: the best on the validation split.

The drifting loss cannot tell: it is normalised and does not fall. Nor is the Frechet distance
monotone in time, so a look at validation clips every so often decides, on averaged weights, in a
feature space that the loss does not know.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from braid.drifting.interpolation.keyframes import nested_masks
from braid.drifting.training.objectives import Refinement
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.sampling import refine
from braid.metrics.distances import frechet_distance
from braid.metrics.spaces import RandomConvolutions
from braid.training.ema import Ema


class BestOnValidation:
    """A hook of the step loop that scores validation clips and keeps the best weights."""

    def __init__(
        self,
        truth: Tensor,  # [n, C, T, H, W] validation clips
        classes: Tensor,  # [n]
        corruption: Corruption,
        generator: torch.Generator,  # of the corruption's noise
        *,
        every: int,  # steps
        score: Literal["frechet", "mse_missing"],  # the figure that decides
        device: torch.device,
    ) -> None:
        self.truth, self.classes, self.level = truth, classes, corruption.levels
        mask = nested_masks(len(truth), truth.shape[2], corruption.counts, None)[-1]
        self.corrupted = corruption.impute(truth, mask, torch.arange(len(truth)), generator)
        self.every, self.decisive = every, f"val_{score}"
        self.space = RandomConvolutions(truth.shape[1]).to(device)
        self.real = self.space.points(truth)
        self.interpolated = self.figures(self.corrupted.latents)
        self.score: float | None = None
        self.step = 0
        self.weights: dict[str, Tensor] = {}

    def __call__(self, done: int, objective: nn.Module, ema: Ema | None) -> dict[str, float] | None:
        """Figures of the validation clips, when they are due."""
        if done % self.every or not isinstance(objective, Refinement):
            return None
        if ema is None:
            return self.judge(done, objective)
        with ema.applied(objective):
            return self.judge(done, objective)

    def judge(self, done: int, objective: Refinement) -> dict[str, float]:
        """Score the weights as they are; keep them if they are the best so far."""
        refined = refine(objective.refiner, self.corrupted, self.classes, self.level, alpha=1.0)
        figures = self.figures(refined)
        score = figures[self.decisive]
        if self.score is None or score < self.score:
            self.score, self.step = score, done
            state = objective.refiner.state_dict()
            self.weights = {name: each.detach().cpu().clone() for name, each in state.items()}
        return figures

    def figures(self, clips: Tensor) -> dict[str, float]:
        """What is looked at, for refined or for interpolated clips [n, C, T, H, W]."""
        error = (clips - self.truth).square().mean(dim=(1, 3, 4))
        return {
            "val_frechet": frechet_distance(self.real, self.space.points(clips)),
            "val_mse_missing": float(error[~self.corrupted.mask].mean()),
        }

    def report(self) -> dict[str, float | int | None]:
        """The step and the score of the best, and interpolation's figures beside them."""
        plain = {f"{name}_interpolated": value for name, value in self.interpolated.items()}
        return {"best_step": self.step, self.decisive: self.score, **plain}

    def status(self) -> tuple[str, str]:
        """`passed` if the best beats plain interpolation, and a line with the figures behind it."""
        plain, name = self.interpolated[self.decisive], self.decisive.removeprefix("val_")
        if self.score is None:
            return "not_evaluated", f"no evaluation in fewer than {self.every} steps"
        passed = self.score < plain
        relation = "below" if passed else "not below"
        return "passed" if passed else "no_better_than_interpolation", (
            f"validation {name} {self.score:.4g} at step {self.step} is {relation} "
            f"interpolation's {plain:.4g}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"score": self.score, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the best so far."""
        self.score, self.step, self.weights = state["score"], state["step"], state["weights"]
