"""How much of the teacher's features a student's features hold, the same probe for every student.

A linear head per network (`braid.radiance.features.table`) is fitted at points that the train views
show and measured at points of the test views: the explained variance, mean over groups. A student
that never saw a feature has a figure too, and the networks' mean targets alone, which need no
feature, explain some of it: both are what a transferring student must be compared with.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from braid.common.rng import generator
from braid.radiance.features.table import (
    StoredFeatures,
    apply_heads,
    explained_variance,
    find_rows,
    fit_heads,
)
from braid.radiance.scenes.renders import Renders
from braid.radiance.student.marching import draw_points, march
from braid.radiance.student.student import Student

BATCHES, RAYS, POINTS = 16, 4096, 8192  # of a set of views; rays and points of a batch


class _Points(NamedTuple):
    features: Tensor  # [P, H]
    target: Tensor  # [P, F], standardized
    network: Tensor  # [P] int64


def feature_agreement(
    student: Student,
    train: Renders,  # whose cameras are used
    test: Renders,
    stored: StoredFeatures,
    seed: int,
) -> dict[str, float | None]:
    """`feature_explained_variance`, that `_by_network`, and each group's; null without points."""
    networks, columns = len(student.field.weights), stored.features.schema.columns
    fit, held_out = (_visible(student, views, stored, seed) for views in (train, test))
    if not len(fit.network) or not len(held_out.network):
        return {"feature_explained_variance": None}
    heads = fit_heads(fit.features, fit.target, fit.network, networks)
    alone = fit_heads(fit.features[:, :0], fit.target, fit.network, networks)
    predicted = apply_heads(heads, held_out.features, held_out.network)
    explained = explained_variance(predicted, held_out.target, columns)
    baseline = explained_variance(alone[held_out.network, -1], held_out.target, columns)
    return {
        "feature_explained_variance": _mean(explained),
        "feature_explained_variance_by_network": _mean(baseline),
        **{f"explained_variance_{group}": value for group, value in explained.items()},
    }


@torch.no_grad()
def _visible(student: Student, views: Renders, stored: StoredFeatures, seed: int) -> _Points:
    """Points drawn by compositing weight on solid rays, where the teacher has a row."""
    device = student.field.weights.device
    target, grid = stored.standardized.to(device), stored.features.schema.grid
    cells, cameras, parts = stored.features.cells.to(device), views.cameras.to(device), []
    for batch in range(BATCHES):
        draws = generator(seed, "agreement", batch)
        ray = torch.randint(len(views), (RAYS,), generator=draws).to(device)
        rays = cameras.rays(ray // cameras.pixels, ray % cameras.pixels)
        marched = march(student.field, student.occupancy, rays, student.step)
        points, row = marched.samples.points, find_rows(cells, grid.index(marched.samples.points))
        weights = marched.weights * (row >= 0)
        chosen = draw_points(weights, marched.samples.ray, marched.alpha, POINTS, draws)
        network = student.field.network_of_cell.view(-1)[student.grid.index(points[chosen])]
        parts.append(_Points(marched.field.features[chosen], target[row[chosen]], network))
    return _Points(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _mean(by_group: dict[str, float]) -> float:
    return sum(by_group.values()) / len(by_group)
