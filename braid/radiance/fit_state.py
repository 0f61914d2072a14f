"""The state of a fit: leaf tensors, Adam's moments, step number, history."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from braid.radiance.gaussians import Gaussians
from braid.radiance.harmonics import coefficients


class FitState:
    """All that a step of a fit changes."""

    def __init__(self, gaussians: Gaussians, rates: dict[str, float]) -> None:
        self.rates = rates
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.pressure = torch.zeros_like(gaussians.opacity_logits)
        self.set_gaussians(gaussians)

    def set_gaussians(self, gaussians: Gaussians) -> None:
        """Make leaf tensors of the Gaussians, and an optimiser with fresh moments."""
        parts = {
            "means": gaussians.means,
            "log_scales": gaussians.log_scales,
            "quaternions": gaussians.quaternions,
            "opacity_logits": gaussians.opacity_logits,
            "colour": gaussians.sh[:, :1],
            "harmonics": gaussians.sh[:, 1:],
        }
        self.parts = {k: v.detach().clone().requires_grad_() for k, v in parts.items()}
        groups = [{"params": [self.parts[k]], "lr": rate} for k, rate in self.rates.items()]
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)

    def gaussians(self, degree: int) -> Gaussians:
        """The Gaussians with harmonics up to a degree."""
        parts = self.parts
        higher = parts["harmonics"][:, : coefficients(degree) - 1]
        return Gaussians(
            parts["means"],
            parts["log_scales"],
            parts["quaternions"],
            parts["opacity_logits"],
            torch.cat([parts["colour"], higher], dim=1),
        )

    def replace(self, gaussians: Gaussians, source: Tensor, fresh: Tensor) -> None:
        """Take other Gaussians; Adam's moments follow the rows, those of fresh rows are zero."""
        old = [self.optimizer.state[part] for part in self.parts.values()]
        self.set_gaussians(gaussians)
        for part, moments in zip(self.parts.values(), old, strict=True):
            stale = fresh.view(-1, *[1] * (part.dim() - 1))
            self.optimizer.state[part] = {
                name: value[source].masked_fill(stale, 0.0) if value.dim() else value
                for name, value in moments.items()
            }
        self.pressure = torch.zeros_like(gaussians.opacity_logits)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers, for a checkpoint."""
        return {
            "step": self.step,
            "history": self.history,
            "pressure": self.pressure,
            "parts": {name: part.detach() for name, part in self.parts.items()},
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where a checkpoint was made."""
        parts = state["parts"]
        sh = torch.cat([parts.pop("colour"), parts.pop("harmonics")], dim=1)
        device = self.pressure.device
        self.set_gaussians(Gaussians(**parts, sh=sh).to(device))
        self.optimizer.load_state_dict(state["optimizer"])
        self.pressure = state["pressure"].to(device)
        self.step, self.history = state["step"], state["history"]

    def gradient(self, name: str) -> Tensor:
        """The gradient of one part, as the last backward pass left it."""
        gradient = self.parts[name].grad
        assert gradient is not None, name
        return gradient
