"""Objectives of the tiny student."""

from __future__ import annotations

import torch
from torch import nn

from braid.radiance.distillation.feature_loss import FeatureLoss, Projector
from braid.radiance.distillation.objectives import FeatureObjective, ResponseLoss, ResponseObjective
from braid.radiance.features.table import CellFeatures, FeatureSchema
from braid.radiance.features.vae import FeatureVae
from braid.radiance.scenes.cells import CellGrid
from braid.radiance.scenes.occupancy import FieldPoints
from tests.radiance.tiny_teacher import rendered, seeded, student

GROUPS = {"sh_dc": ("r", "g", "b"), "opacity": ("tau",)}
COLUMNS = {"sh_dc": slice(0, 3), "opacity": slice(3, 4)}


def response(
    rays: int = 128,
    hard: float = 0.0,
    views: int = 1,
    field_points: FieldPoints | None = None,
    field_steps: int = 0,
    loss: ResponseLoss | None = None,
) -> ResponseObjective:
    renders = rendered(views)
    return ResponseObjective(
        student(),
        renders,
        renders.sampler(hard=hard, tile=4),
        loss or ResponseLoss(),
        rays=rays,
        field_points=field_points,
        field_steps=field_steps,
    )


def feature_loss(vae: FeatureVae | None = None, cells: int = 125, **options) -> FeatureLoss:
    grid = CellGrid((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0), (5, 5, 5))
    values = torch.randn(125, 4, generator=seeded(8))[:cells]
    table = CellFeatures(
        FeatureSchema(grid, "mass", "hard", GROUPS),
        torch.arange(cells),
        values,
        torch.ones(cells),
        torch.ones(cells),
    )
    torch.manual_seed(0)
    projector = Projector(32, vae.latent if vae else 4, hidden=16)
    return FeatureLoss(table, values, projector, student().grid, vae=vae, **options)


def features(loss: FeatureLoss | None, **options) -> FeatureObjective:
    schedule = {"warmup": 4, "decay": 10, "floor": 0.1}
    return FeatureObjective(response(**options), loss, points=300, columns=COLUMNS, **schedule)


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

    def __call__(self, *arguments):
        self.seen = arguments
        return super().__call__(*arguments)
