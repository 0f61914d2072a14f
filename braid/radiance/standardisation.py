"""Standardised features: location and scale per channel, and which cells may set them.

Cells next to each other share Gaussians, so a random split would let validation leak into
training; whole blocks of cells go to one side or the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from braid.radiance.cells import CellGrid

MIN_SCALE = 1e-6  # a channel that varies less is constant: it passes through, centred


@dataclass(frozen=True)
class Standardisation:
    """z = (x - mean) / scale, clipped to +-clip."""

    mean: Tensor  # [F]
    scale: Tensor  # [F], > 0
    clip: float  # standard deviations

    def transform(
        self,
        values: Tensor,  # [N, F]
    ) -> Tensor:
        """Standardised values, [N, F]."""
        z = (values - self.mean.to(values)) / self.scale.to(values)
        return z.clamp(-self.clip, self.clip)

    def select(
        self,
        columns: Tensor,  # [K] int64
    ) -> Standardisation:
        """The standardisation of some columns."""
        return Standardisation(self.mean[columns], self.scale[columns], self.clip)


def fit_standardisation(
    values: Tensor,  # [N, F], training rows only
    *,
    clip: float = 6.0,
    robust: bool = False,
) -> Standardisation:
    """Mean and standard deviation per channel, or median and 1.4826 MAD if `robust`.

    A channel that is constant for more than half of the rows has no MAD and takes its standard
    deviation; one without that either is only centred.

    Raises:
        ValueError: there are no rows.
    """
    if len(values) == 0:
        raise ValueError("standardisation: expected at least one training cell, got none")
    exact = values.double()
    mean, scale = exact.mean(dim=0), exact.std(dim=0, correction=0)
    if robust:
        mean = exact.median(dim=0).values
        deviation = 1.4826 * (exact - mean).abs().median(dim=0).values
        scale = torch.where(deviation < MIN_SCALE, scale, deviation)
    scale = torch.where(scale < MIN_SCALE, 1.0, scale)
    return Standardisation(mean.to(values), scale.to(values), clip)


def training_cells(
    grid: CellGrid,
    cells: Tensor,  # [C] int64
    *,
    block: int,  # cells along the side of a block
    validation: float,  # share of the occupied blocks that validate
) -> Tensor:
    """Which cells train, [C] bool, whole blocks at a time; at least one block on either side.

    Raises:
        ValueError: all cells lie in one block.
    """
    coordinates = grid.coordinates(cells) // block
    x, y, z = coordinates.unbind(-1)
    blocks, member = torch.unique((x << 40) + (y << 20) + z, return_inverse=True)
    if len(blocks) < 2:
        raise ValueError(
            f"all {len(cells)} cells lie in one block of {block}^3: lower features.block"
        )
    held_out = min(max(1, round(validation * len(blocks))), len(blocks) - 1)
    training = torch.ones(len(blocks), dtype=torch.bool, device=cells.device)
    training[torch.argsort(_scramble(blocks))[:held_out]] = False
    return training[member]


def _scramble(keys: Tensor) -> Tensor:
    """A fixed pseudo-random function of int64 keys (xor-shift and multiply, wrapping)."""
    for multiplier in (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15):
        keys = (keys ^ (keys >> 31)) * multiplier
    return keys ^ (keys >> 31)
