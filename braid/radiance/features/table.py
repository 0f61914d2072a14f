"""Per-cell teacher features in memory and on disk.

The `.npz` holds plain arrays and a JSON schema (grid, weighting, channels by group) with its hash,
so that a VAE or a student trained on one layout refuses another. The standardization fitted on the
training cells and the cells it was fitted on travel with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from braid.radiance.config import AggregationConfig
from braid.radiance.scenes.grids import CellGrid

# ---- Standardized features: a location per channel, a scale per group of channels ---------------
# One scale for all channels of a group keeps their sizes relative to each other: a harmonic of
# degree 3 that is mostly noise of .05 must not count as much as the color itself. For harmonics
# that is exact: over all directions, an error of radiance is the sum of the squared errors of its
# coefficients / 4 pi (Parseval).
#
# Cells next to each other share Gaussians, so a random split would let validation leak into
# training; whole blocks of cells go to one side or the other.

MIN_SCALE = 1e-6  # a channel or a group that varies less is constant
_ROWS = 2048  # in float64 at once: they stay in the cache


@dataclass(frozen=True)
class Standardization:
    """z = (x - mean) / scale, clipped to +-bound."""

    mean: Tensor  # [F]
    scale: Tensor  # [F], > 0, the same for all channels of a group
    bound: Tensor  # [F], > 0

    def transform(
        self,
        values: Tensor,  # [N, F]
    ) -> Tensor:
        """Standardized values, [N, F]."""
        z = (values - self.mean.to(values)) / self.scale.to(values)
        return z.clamp(-self.bound.to(values), self.bound.to(values))

    def invert(
        self,
        z: Tensor,  # [N, F]
    ) -> Tensor:
        """The values that have these standardized ones, [N, F]."""
        return z * self.scale.to(z) + self.mean.to(z)

    def select(
        self,
        columns: Tensor,  # [K] int64
    ) -> Standardization:
        """The standardization of some columns."""
        return Standardization(self.mean[columns], self.scale[columns], self.bound[columns])


def fit_standardization(
    values: Tensor,  # [N, F], training rows only
    columns: Mapping[str, slice],  # channel groups
    *,
    clip: float = 6.0,  # deviations of a channel
    robust: bool = False,
) -> Standardization:
    """Mean per channel and root mean square of the deviations per group.

    A deviation is the standard deviation, or 1.4826 MAD about the median if `robust`; a channel
    that is constant for more than half of the rows has no MAD and takes its standard deviation. A
    group that is constant is only centered.

    Raises:
        ValueError: there are no rows.
    """
    if len(values) == 0:
        raise ValueError("standardization: expected at least one training cell, got none")
    exact = values.cpu().double()  # float64 is not everywhere
    mean, deviation = exact.mean(dim=0), exact.std(dim=0, correction=0)
    if robust:
        mean = exact.median(dim=0).values
        absolute = 1.4826 * (exact - mean).abs().median(dim=0).values
        deviation = torch.where(absolute < MIN_SCALE, deviation, absolute)
    scale = torch.ones_like(mean)
    for channels in columns.values():
        size = deviation[channels].square().mean().sqrt()
        scale[channels] = size if size >= MIN_SCALE else 1.0
    bound = clip * torch.where(deviation < MIN_SCALE, 1.0, deviation / scale)
    return Standardization(mean.to(values), scale.to(values), bound.to(values))


def unexplained_variance(
    predicted: Tensor,  # [N, F]
    target: Tensor,  # [N, F]
    columns: Mapping[str, slice],  # channel groups
) -> dict[str, float]:
    """Squared error / variance about the mean per group; 1 for a group that does not vary."""
    target = target.cpu()
    mean = torch.stack([part.double().sum(dim=0) for part in target.split(_ROWS)]).sum(dim=0)
    mean, error, total = mean / len(target), torch.zeros_like(mean), torch.zeros_like(mean)
    for part, truth in zip(predicted.cpu().split(_ROWS), target.split(_ROWS), strict=True):
        exact = truth.double()
        error += (part.double() - exact).square_().sum(dim=0)
        total += exact.sub_(mean).square_().sum(dim=0)
    unexplained = {}
    for group, channels in columns.items():
        variance = float(total[channels].sum())
        unexplained[group] = float(error[channels].sum()) / variance if variance > 0 else 1.0
    return unexplained


def explained_variance(
    predicted: Tensor,  # [N, F]
    target: Tensor,  # [N, F]
    columns: Mapping[str, slice],  # channel groups
) -> dict[str, float]:
    """1 - the unexplained fraction of each group."""
    unexplained = unexplained_variance(predicted, target, columns)
    return {group: 1 - fraction for group, fraction in unexplained.items()}


def channel_balance(columns: Mapping[str, slice]) -> Tensor:
    """Weight per channel under which a weighted sum is the mean over groups of group means, [F]."""
    weights = [torch.full((c.stop - c.start,), 1 / (c.stop - c.start)) for c in columns.values()]
    return torch.cat(weights) / len(columns)


def training_cells(
    grid: CellGrid,
    cells: Tensor,  # [C] int64
    *,
    block: int,  # cells along the side of a block
    validation: float,  # fraction of the occupied blocks that validate
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
            f"all {len(cells)} cells lie in one block of {block}^3: lower radiance.features.block"
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


# ---- The table and its file --------------------------------------------------------------------

ALIASES = {"sh": ("sh_dc", "sh_rest")}  # names that stand for several groups
HARMONICS = 3  # highest degree
_VERSION = 2


@dataclass(frozen=True)
class FeatureSchema:
    """What the columns of a feature table mean."""

    grid: CellGrid
    aggregation: AggregationConfig
    groups: Mapping[str, tuple[str, ...]]  # group -> its channels, in column order

    @property
    def channels(self) -> int:
        """Number of columns."""
        return sum(len(names) for names in self.groups.values())

    @property
    def columns(self) -> dict[str, slice]:
        """The columns of each group that has a scale of its own: all harmonics are one, `sh`."""
        ends = np.cumsum([len(names) for names in self.groups.values()]).tolist()
        whole = {part: alias for alias, parts in ALIASES.items() for part in parts}
        columns: dict[str, slice] = {}
        for name, start, end in zip(self.groups, [0, *ends[:-1]], ends, strict=True):
            group = whole.get(name, name)
            columns[group] = slice(columns.get(group, slice(start, end)).start, end)
        return columns

    def select(self, names: Iterable[str], harmonics: int = HARMONICS) -> FeatureSchema:
        """The schema of some groups only, in this schema's order, harmonics up to a degree.

        Raises:
            ValueError: a group is unknown; the message lists the known ones.
        """
        wanted: set[str] = set()
        for name in names:
            groups = [group for group in ALIASES.get(name, (name,)) if group in self.groups]
            if not groups:
                known = sorted({*self.groups, *ALIASES})
                raise ValueError(f"unknown feature group {name!r}, expected one of {known}")
            wanted.update(groups)
        rest = 3 * ((harmonics + 1) ** 2 - 1)
        kept = {k: v[:rest] if k == "sh_rest" else v for k, v in self.groups.items()}
        return replace(self, groups={k: v for k, v in kept.items() if k in wanted and v})

    def index(self, part: FeatureSchema) -> Tensor:
        """The columns here of the channels of a part, [K] int64."""
        place = {n: i for i, n in enumerate(n for names in self.groups.values() for n in names)}
        return torch.tensor([place[n] for names in part.groups.values() for n in names])

    def to_json(self) -> str:
        """Canonical JSON: equal schemas give equal text."""
        content = {
            "version": _VERSION,
            "lower": self.grid.lower,
            "upper": self.grid.upper,
            "resolution": self.grid.resolution,
            **self.aggregation.model_dump(include=set(AggregationConfig.model_fields)),
            "groups": [[name, list(channels)] for name, channels in self.groups.items()],
        }
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    @property
    def hash(self) -> str:
        """SHA-256 of the JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True)
class CellFeatures:
    """One row of teacher features per occupied cell."""

    schema: FeatureSchema
    cells: Tensor  # [C] int64, flat cell numbers, ascending
    values: Tensor  # [C, F] float32, in the units that `aggregation` gives
    count: Tensor  # [C] float32, Gaussians in the cell (fractions if split)
    weight: Tensor  # [C] float32, total aggregation weight


class StoredFeatures(NamedTuple):
    """The content of a feature file."""

    features: CellFeatures
    standardization: Standardization  # of all columns, fitted on the training cells
    training: Tensor  # [C] bool: cells of the training blocks; the others validate

    def select(self, names: Iterable[str], harmonics: int = HARMONICS) -> StoredFeatures:
        """The same cells with the columns of some groups only (ValueError: unknown group)."""
        schema = self.features.schema.select(names, harmonics)
        columns = self.features.schema.index(schema)
        features = replace(self.features, schema=schema, values=self.features.values[:, columns])
        return StoredFeatures(features, self.standardization.select(columns), self.training)

    @property
    def standardized(self) -> Tensor:
        """All rows, standardized and clipped, [C, F]."""
        return self.standardization.transform(self.features.values)


def find_rows(
    cells: Tensor,  # [C] int64, ascending cell numbers
    index: Tensor,  # [P] int64, cell numbers, -1 for none
) -> Tensor:
    """Where each cell number stands in `cells`, [P] int64; -1 if it is not there."""
    row = torch.searchsorted(cells, index).clamp_max(len(cells) - 1)
    return torch.where(cells[row] == index, row, -1)


def save_features(path: Path, stored: StoredFeatures) -> None:
    """Write the `.npz`; equal content gives equal bytes."""
    features, standardization, training = stored
    arrays = {
        "cells": features.cells,
        "values": features.values,
        "count": features.count,
        "weight": features.weight,
        "mean": standardization.mean,
        "scale": standardization.scale,
        "bound": standardization.bound,
        "training": training,
    }
    content: dict[str, Any] = {name: array.detach().cpu().numpy() for name, array in arrays.items()}
    content["schema"] = np.array(features.schema.to_json())
    content["hash"] = np.array(features.schema.hash)
    with path.open("wb") as file:
        np.savez(file, **content)


def load_features(path: Path) -> StoredFeatures:
    """Read the `.npz`.

    Raises:
        ValueError: the file is missing or not such a file, has no rows, or its schema and arrays
            disagree; the message names it.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            content = {name: archive[name] for name in archive.files}
        schema = _schema(json.loads(str(content["schema"])))
        tensors = {name: torch.from_numpy(content[name]) for name in _ARRAYS}
    except (OSError, EOFError, BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a feature .npz ({error})") from None
    if schema.hash != str(content["hash"]):
        raise ValueError(f"{path}: the feature schema does not match its hash")
    cells, values = tensors["cells"], tensors["values"]
    if len(cells) == 0:
        raise ValueError(f"{path}: expected at least one occupied cell, got none")
    if values.shape != (len(cells), schema.channels):
        expected = (len(cells), schema.channels)
        raise ValueError(f"{path}: expected values of shape {expected}, got {tuple(values.shape)}")
    return StoredFeatures(
        CellFeatures(schema, cells, values, tensors["count"], tensors["weight"]),
        Standardization(tensors["mean"], tensors["scale"], tensors["bound"]),
        tensors["training"],
    )


_ARRAYS = ("cells", "values", "count", "weight", "mean", "scale", "bound", "training")


def _schema(content: dict[str, Any]) -> FeatureSchema:
    if content["version"] != _VERSION:
        raise ValueError(f"schema version {content['version']}, expected {_VERSION}")
    lower, upper, resolution = (tuple(content[key]) for key in ("lower", "upper", "resolution"))
    groups = {name: tuple(channels) for name, channels in content["groups"]}
    grid = CellGrid(lower, upper, resolution)
    fields = AggregationConfig.model_fields
    return FeatureSchema(grid, AggregationConfig(**{k: content[k] for k in fields}), groups)


# ---- A linear head per network of a KiloNeRF, from its penultimate features to teacher features --
# The networks of a grid share no basis, so one projector would have to decode hundreds of unrelated
# ones. A head is the ridge regression of its network's points,
#
#     W = (X'X + ridge tr(X'X) / H I)^-1 X'Y,    b = mean(Y) - mean(X) W,
#
# with X and Y centered. What the heads predict on other points, beside what the networks' mean
# targets alone predict, says how much of the teacher's features a student's features hold.

RIDGE = 0.03  # of the mean variance of a feature; held-out points choose it
TILE = 16  # points that share one gathered head


def fit_heads(
    features: Tensor,  # [P, H]
    target: Tensor,  # [P, C]
    network: Tensor,  # [P] int64, of each point
    networks: int,
) -> Tensor:
    """The heads, [networks, H + 1, C], the bias last; those without points predict the mean."""
    exact_x, exact_y = features.cpu().double(), target.cpu().double()
    heads = exact_y.new_zeros(networks, features.shape[1] + 1, target.shape[1])
    heads[:, -1] = exact_y.mean(dim=0)
    order = torch.argsort(network.cpu(), stable=True)
    counts = torch.bincount(network.cpu(), minlength=networks).tolist()
    for index, rows in enumerate(torch.split(order, counts)):
        if len(rows):
            heads[index] = _ridge(exact_x[rows], exact_y[rows])
    return heads.to(features)


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """One head, [H + 1, C]."""
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    x, y = x - mean_x, y - mean_y
    gram = x.T @ x
    size = float(gram.diagonal().mean()) if len(gram) else 0.0
    if size == 0:  # features that do not vary here
        return torch.cat([torch.zeros(x.shape[1], y.shape[1]).to(x), mean_y[None]])
    gram = gram + RIDGE * size * torch.eye(len(gram)).to(gram)
    weight = torch.linalg.solve(gram, x.T @ y)
    return torch.cat([weight, (mean_y - mean_x @ weight)[None]])


def apply_heads(
    heads: Tensor,  # [networks, H + 1, C]
    features: Tensor,  # [P, H]
    network: Tensor,  # [P] int64
) -> Tensor:
    """What each point's own head predicts, [P, C].

    Points are laid into tiles of one network each, so that a head is gathered once per tile.
    """
    counts = torch.bincount(network, minlength=len(heads))
    tiles = -(-counts // TILE)
    order = torch.argsort(network, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    rank = rank - (counts.cumsum(0) - counts)[network]  # among the points of its network
    place = (tiles.cumsum(0) - tiles)[network] * TILE + rank
    owner = torch.repeat_interleave(torch.arange(len(heads), device=tiles.device), tiles)
    ones = torch.nn.functional.pad(features, (0, 1), value=1.0)
    rows = ones.new_zeros(len(owner) * TILE, ones.shape[1]).index_copy(0, place, ones)
    tiled = rows.view(len(owner), TILE, ones.shape[1])
    predicted = torch.bmm(tiled, heads.index_select(0, owner)).flatten(0, 1)
    return predicted.index_select(0, place)
