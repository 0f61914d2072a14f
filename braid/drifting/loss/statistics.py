"""Statistics of the drift: the loss says nothing, since lambda keeps it constant.

Of the kernel at each temperature <tau>, over the rows (generated vectors) of all groups:

    kernel_mass_positive_<tau>, .._negative_<tau>  sum of a row's affinities, mean over rows
    kernel_mass_ratio_<tau>                        positive mass over negative
    kernel_neighbors_positive_<tau>_p10, _p50, _p90, and .._negative_..
                                                   (sum A)^2 / sum A^2 of a row: over how many
                                                   columns it is spread; percentiles over rows
    kernel_distance_<tau>                          mean distance weighted by affinity, in S

and of the field, for each family of groups, which is what stands before the slash in their names,

    field_scale_<family>                           S, the mean distance, in features
    field_sq_<family>_<tau>                        raw mean V^2 of a dimension, in units of phi; at
                                                   equilibrium what finite samples leave of it

`DriftLoss(...)(groups, w, statistics=True).statistics` has all of them, for features of any origin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from braid.drifting.loss.samples import Layout

PERCENTILES = (10, 50, 90)


class Rows(NamedTuple):
    """R rows of a kernel at each of T temperatures."""

    positive_mass: Tensor  # [T, R]
    negative_mass: Tensor
    positive_neighbors: Tensor
    negative_neighbors: Tensor
    moment: Tensor  # sum of affinity times distance


class DriftStatistics:
    """Collects the figures of one step."""

    def __init__(self, temperatures: Sequence[float]) -> None:
        self.temperatures = temperatures
        self.rows: list[Rows] = []
        self.families: dict[str, list[Tensor]] = {}  # [1 + T] of each group: S, squares

    def add_rows(
        self,
        distance: Tensor,  # [L, C, N, M] in S
        affinity: Tensor,  # [L, C, T, N, M]
        group: Layout,
    ) -> None:
        """Take the kernels of some locations of a group."""
        rows = kernel_rows(distance, affinity, group.positives)
        if group.exist is not None:
            exist = group.exist[:, group.generated].expand(distance.shape[:-1])
            rows = Rows(*(values[:, exist.flatten()] for values in rows))
        self.rows.append(rows)

    def add_group(
        self,
        name: str,
        scale: Tensor,  # []
        squares: Tensor,  # [T]
    ) -> None:
        """Take the scales of a group."""
        family = name.partition("/")[0]
        self.families.setdefault(family, []).append(torch.cat([scale[None], squares]))

    def result(self) -> dict[str, Tensor]:
        """The figures by name, [] each."""
        figures: dict[str, Tensor] = {}
        rows = Rows(*(torch.cat(parts, 1) for parts in zip(*self.rows, strict=True)))
        for index, tau in enumerate(self.temperatures):
            figures |= _summary(f"{tau:g}", Rows(*(values[index] for values in rows)))
        for family, groups in self.families.items():
            scale, *squares = torch.stack(groups).mean(0)
            figures[f"field_scale_{family}"] = scale
            for tau, square in zip(self.temperatures, squares, strict=True):
                figures[f"field_sq_{family}_{tau:g}"] = square
        return figures


def kernel_rows(
    distance: Tensor,  # [..., N, M]
    affinity: Tensor,  # [..., T, N, M] negatives first
    positives: int,  # P: the last columns
) -> Rows:
    """Masses, effective neighbors and the distances at which a kernel acts, row by row."""
    split = affinity.shape[-1] - positives
    negative, positive = affinity[..., :split], affinity[..., split:]
    figures = (
        positive.sum(-1),
        negative.sum(-1),
        effective_number(positive),
        effective_number(negative),
        (affinity * distance.unsqueeze(-3)).sum(-1),
    )
    return Rows(*(values.movedim(-2, 0).flatten(1) for values in figures))


def effective_number(
    weights: Tensor,  # [..., n]
) -> Tensor:
    """(sum w)^2 / sum w^2: n for equal weights, 1 for a single one, 0 for none; [...]."""
    tiny = torch.finfo(weights.dtype).tiny
    fractions = weights / weights.sum(-1, keepdim=True).clamp(min=tiny)
    squares = fractions.square().sum(-1)
    return torch.where(squares > 0, 1 / squares.clamp(min=tiny), 0)


def _summary(tau: str, rows: Rows) -> dict[str, Tensor]:
    """Of rows at one temperature, [R] each."""
    positive, negative = rows.positive_mass.mean(), rows.negative_mass.mean()
    figures = {
        f"kernel_mass_positive_{tau}": positive,
        f"kernel_mass_negative_{tau}": negative,
        f"kernel_mass_ratio_{tau}": positive / negative,
        f"kernel_distance_{tau}": rows.moment.mean() / (positive + negative),
    }
    sides = {"positive": rows.positive_neighbors, "negative": rows.negative_neighbors}
    for side, neighbors in sides.items():
        # By rank: torch.quantile refuses more than 16 million values.
        ranked = neighbors.sort().values
        for percent in PERCENTILES:
            rank = round(percent / 100 * (len(ranked) - 1))
            figures[f"kernel_neighbors_{side}_{tau}_p{percent}"] = ranked[rank]
    return figures
