"""Objectives of the tiny student."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from braid.radiance.config import DistillConfig
from braid.radiance.distillation.features import FeatureLoss, FeatureObjective
from braid.radiance.distillation.response import ResponseLoss, ResponseObjective
from braid.radiance.features.table import (
    CellFeatures,
    FeatureSchema,
    Standardization,
    StoredFeatures,
)
from braid.radiance.features.vae import FeatureVae
from braid.radiance.scenes.grids import CellGrid, FieldPoints
from tests.radiance.settings import aggregation_config, distill_config, loss_config, rays_config
from tests.radiance.tiny_teacher import rendered, seeded, student

GROUPS = {"sh_dc": ("r", "g", "b"), "opacity": ("tau",)}


def response(
    rays: int = 128,
    hard: float = 0.0,
    views: int = 1,
    field_points: FieldPoints | None = None,
    field_steps: int = 0,
    loss: ResponseLoss | None = None,
) -> ResponseObjective:
    objective = ResponseObjective(
        student(),
        rendered(views),
        rays_config(count=rays, hard=hard, tile=4),
        loss_config(),
        field_points=field_points,
        field_steps=field_steps,
    )
    objective.loss = loss or ResponseLoss(loss_config())
    return objective


def stored_features(grid: CellGrid, cells: torch.Tensor, values: torch.Tensor) -> StoredFeatures:
    """Features that are standardized as they are."""
    channels, ones = values.shape[1], torch.ones(len(cells))
    table = CellFeatures(
        FeatureSchema(grid, aggregation_config(), GROUPS), cells, values, ones, ones
    )
    bound = torch.full((channels,), float("inf"))
    identity = Standardization(torch.zeros(channels), torch.ones(channels), bound)
    return StoredFeatures(table, identity, ones.bool())


def feature_loss(vae: FeatureVae | None = None, cells: int = 125, **settings: Any) -> FeatureLoss:
    grid = CellGrid((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), (5, 5, 5))
    values = torch.randn(125, 4, generator=seeded(8))[:cells]
    stored = stored_features(grid, torch.arange(cells), values)
    heads = len(student().field.weights), student().width
    return FeatureLoss(stored, heads, distill_config(**settings), vae)


def features(
    loss: FeatureLoss | None, config: DistillConfig | None = None, **options: Any
) -> FeatureObjective:
    default = loss.config if loss else distill_config()
    objective = FeatureObjective(response(**options), loss, config or default)
    objective.fit_heads(seed=0)
    return objective


def fit(objective: nn.Module, steps: int, lr: float = 2e-2) -> None:
    optimizer = torch.optim.Adam(objective.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        sum(objective(step, seeded(step)).values()).backward()
        optimizer.step()
        decay.step()


class Spy(ResponseLoss):
    """Keeps what the loss was called with."""

    def __init__(self):
        super().__init__(loss_config())

    def __call__(self, *arguments):
        self.seen = arguments
        return super().__call__(*arguments)
