"""A small group of samples for the tests of the drift."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from braid.drifting.loss.drift import DriftLoss, Samples
from tests.drifting import configs

TAUS = (0.02, 0.05, 0.2)
WEIGHT = torch.tensor([0.0, 0.7, 2.0], dtype=torch.float64)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drift_loss(**changes: Any) -> DriftLoss:
    """The loss with its usual settings but for the changed ones."""
    return DriftLoss(configs.loss(**changes))


def example(seed: int = 0, locations: int = 4, dims: int = 16, **changes: Tensor | None) -> Samples:
    """Three classes with every kind of column."""
    samples = Samples(
        normal(seed, 3, 5, locations, dims) + 1,
        normal(seed + 1, 3, 7, locations, dims),
        normal(seed + 2, 3, 2, locations, dims) + 1,
        normal(seed + 3, 6, locations, dims),
    )
    return replace(samples, **changes)


def differentiate(loss: DriftLoss, samples: Samples, weight: Tensor = WEIGHT) -> tuple[Tensor, ...]:
    """Loss and gradient of one group."""
    leaf = samples.generated.detach().clone().requires_grad_()
    result = loss({"group": replace(samples, generated=leaf)}, weight.to(leaf.dtype)).loss
    return result.detach(), *torch.autograd.grad(result, leaf)


def moved(samples: Samples, change) -> Samples:
    """The same change to all vectors."""
    names = ("generated", "positives", "negatives", "unconditional")
    return replace(samples, **{name: change(getattr(samples, name)) for name in names})
