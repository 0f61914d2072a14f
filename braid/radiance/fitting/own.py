"""A user's own Gaussians, verified against the scene before anything is distilled from them.

Files of real captures hold floaters, and one far away would stretch the box that all cells of
features and students share. The box is therefore that of what contributes to the training views.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from braid.radiance.config import OwnTeacherConfig
from braid.radiance.gaussians.field import contributions
from braid.radiance.gaussians.gaussians import Gaussians
from braid.radiance.gaussians.splat import render
from braid.radiance.scenes.blender import Views

VIEWS = 24  # of the training views, evenly spaced, that are looked at
SLACK = 2.0  # times the reach of nearly all contribution: what is thin and sticks out stays


def verified(gaussians: Gaussians, train: Views, config: OwnTeacherConfig) -> Gaussians:
    """The Gaussians without floaters, if they show what the views show.

    Raises:
        ValueError: they are further from the views than a silhouette in one color (with
            `mismatch: warn` that is a warning).
    """
    views = train[torch.linspace(0, len(train) - 1, min(VIEWS, len(train))).round().long()]
    error, trivial = rendering_error(gaussians, views), silhouette_error(views)
    if not error < trivial:  # NaN is worse, too
        line = (
            f"the teacher's mean squared error against {len(views)} training views is {error:.3g},"
            f" a silhouette's in one color {trivial:.3g}: expected Gaussians of this scene, in its"
            " frame and units, for these cameras (or radiance.own_teacher.mismatch: warn)"
        )
        if config.mismatch == "stop":
            raise ValueError(line)
        warnings.warn(line, stacklevel=2)
    if config.outside == 0:
        return gaussians
    return gaussians[
        main_part(gaussians.means, contributions(gaussians, views.cameras), config.outside)
    ]


def main_part(
    means: Tensor,  # [G, 3]
    contribution: Tensor,  # [G] >= 0, to the training views
    outside: float,  # fraction of it that says nothing about the extent
) -> Tensor:
    """Which Gaussians lie in the scene's box, [G] bool.

    Along each axis: within `SLACK` times the distance from the contribution's median that all but
    the fraction `outside` of it lies in.
    """
    kept = torch.ones(len(means), dtype=torch.bool, device=means.device)
    for axis in means.unbind(dim=1):
        distance = (axis - _quantile(axis, contribution, 0.5)).abs()
        kept &= distance <= SLACK * _quantile(distance, contribution, 1 - outside)
    return kept


def _quantile(values: Tensor, weight: Tensor, fraction: float) -> Tensor:
    """The least value that at least the fraction of the weight does not exceed."""
    ordered, order = values.sort()
    cumulative = weight[order].cpu().double().cumsum(0)
    place = torch.searchsorted(cumulative, fraction * cumulative[-1])
    return ordered[min(int(place), len(ordered) - 1)]


@torch.no_grad()
def rendering_error(gaussians: Gaussians, views: Views) -> float:
    """Mean squared error over white of what the Gaussians show."""
    errors = []
    for view, truth in enumerate(views.on_white()):
        rendered = render(gaussians, views.cameras, view)
        shown = (rendered.rgb + (1 - rendered.alpha[..., None])).clamp(0, 1)
        errors.append((shown - truth).square().mean())
    return float(torch.stack(errors).mean())


def silhouette_error(views: Views) -> float:
    """Mean squared error over white of the true silhouettes in the mean color."""
    alpha = views.alpha[..., None]
    color = views.rgba[..., :3].sum(dim=(0, 1, 2)) / alpha.sum().clamp_min(1e-8)
    return float((alpha * color + 1 - alpha - views.on_white()).square().mean())
