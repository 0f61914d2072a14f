"""Density control: clone, split and prune Gaussians during a fit.

After Kerbl et al. 2023, with a budget in place of a gradient threshold: at each round the given
share of the Gaussians with the largest accumulated position gradient is doubled, so that the count
is known beforehand. Every change is a choice of rows, which parameters and Adam moments follow
alike, and edits of the new rows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from braid.radiance.gaussians import Gaussians, concatenate, rotation_matrices

_SHRINK = 1.6  # a split Gaussian's children are smaller by this factor


class Round(NamedTuple):
    """The Gaussians after one round of density control."""

    gaussians: Gaussians  # M rows
    source: Tensor  # [M], the row that each came from
    fresh: Tensor  # [M], True for the children of clones and splits


@torch.no_grad()
def control_density(
    gaussians: Gaussians,
    pressure: Tensor,  # [G], accumulated gradient norm of the means
    *,
    grow: float,
    capacity: int,
    prune_opacity: float,
    split_scale: float,
    generator: torch.Generator,
) -> Round:
    """Prune the faint, then double the `grow` share of the others that is under most pressure.

    Args:
        gaussians: All Gaussians.
        pressure: How hard the loss pulls at each mean.
        grow: Share of the Gaussians to double, 0 to 1.
        capacity: Count that is not exceeded by growing.
        prune_opacity: Gaussians fainter than this are removed.
        split_scale: The largest standard deviation (scene units) above which a Gaussian is split
            into two smaller ones within it; the others are cloned in place.
        generator: Where the children of a split lie.
    """
    kept = (gaussians.opacities >= prune_opacity).nonzero()[:, 0]
    count = min(int(grow * len(kept)), max(0, capacity - len(kept)))
    doubled = kept[torch.argsort(pressure[kept], descending=True, stable=True)[:count]]
    stays = torch.ones(len(gaussians), dtype=torch.bool, device=kept.device)
    stays[doubled] = False
    source = torch.cat([kept[stays[kept]], doubled, doubled])
    fresh = torch.arange(len(source), device=kept.device) >= len(kept) - count
    pairs = _children(gaussians[doubled], split_scale, generator)
    chosen = gaussians[kept[stays[kept]]]
    return Round(concatenate(chosen, pairs), source, fresh)


def _children(parents: Gaussians, split_scale: float, generator: torch.Generator) -> Gaussians:
    """First children, then second children of each parent.

    A clone's opacity is such that two of them cover as much as their parent did.
    """
    count = len(parents)
    large = (parents.log_scales.amax(dim=1) > math.log(split_scale))[:, None]
    draw = torch.randn(count, 3, generator=generator).to(parents.means)
    local = draw * parents.log_scales.exp()
    offset = (rotation_matrices(parents.quaternions) @ local[:, :, None])[:, :, 0] * large
    smaller = parents.log_scales - math.log(_SHRINK) * large
    half = 1 - (1 - parents.opacities).sqrt()
    logits = torch.where(large[:, 0], parents.opacity_logits, torch.logit(half, eps=1e-6))
    first = Gaussians(parents.means + offset, smaller, parents.quaternions, logits, parents.sh)
    second = Gaussians(parents.means - offset, smaller, parents.quaternions, logits, parents.sh)
    return concatenate(first, second)
