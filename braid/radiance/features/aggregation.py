"""From Gaussians to one feature row per grid cell.

With w_i the weight of Gaussian i, u_ic the fraction of it that cell c gets (sum_c u_ic = 1) and
W_c = sum_i u_ic w_i, a row holds, by group:

- position: weighted mean of the centers, from the cell's center, in cell edges;
- sh_dc, sh_rest: weighted mean of the harmonics, exact for linear radiance;
- opacity: optical depth tau_c = sum_i u_ic * -ln(1 - o_i), which adds up (a mean logit does not);
- scale: weighted mean of ln(s / edge), the geometric mean;
- covariance: matrix logarithm of the covariance of the mixture in the cell,
  sum_i u_ic w_i (S_i + m_i m_i^T) / W_c - m_c m_c^T, in cell edges (no rotation: quaternions have
  two signs and 24 axis orders for one shape);
- count: ln(1 + sum_i u_ic);
- std: weighted standard deviation within the cell of each of the above but the count, where
  opacity means tau_i and covariance the Gaussians' own log-covariances.

All sums run on the CPU in float64 over Gaussians in an order that their content alone decides: the
rows are the same to the last bit for any input order, any sign of the quaternions and any device.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from braid.radiance.config import AggregationConfig, FeaturesConfig
from braid.radiance.features.table import (
    CellFeatures,
    FeatureSchema,
    StoredFeatures,
    fit_standardization,
    training_cells,
)
from braid.radiance.gaussians.gaussians import Gaussians
from braid.radiance.scenes.grids import CellGrid, points_grid

Array = NDArray[np.float64]

MAX_OPACITY = 0.99  # what rasterizers cap a splat at; keeps optical depth finite
MIN_SIZE = 1e-4  # cell edges; a flatter Gaussian counts as that thick, so that logs stay finite
_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))  # upper triangle of a 3x3
_ROUNDING = 1e-12  # relative; a smaller variance is a difference of equal numbers


class _Splats(NamedTuple):
    """Gaussians inside the grid, in canonical order, in units of cell edges."""

    means: Tensor  # [G, 3] float64, scene units
    place: Array  # [G, 3], cells from the grid's lower corner
    sh: Array  # [G, K * 3], coefficient-major
    depth: Array  # [G], optical depth
    log_sizes: Array  # [G, 3]
    covariance: Array  # [G, 3, 3]
    log_covariance: Array  # [G, 6]
    weight: Array  # [G]


def extract_features(
    gaussians: Gaussians,
    config: FeaturesConfig,
    contribution: Tensor | None = None,  # [G], as for `aggregate`
) -> StoredFeatures:
    """The table of a teacher: cells around all of it, aggregates, standardization, training cells.

    Raises:
        ValueError: as `aggregate` and `training_cells`.
    """
    features = aggregate(
        gaussians,
        points_grid(gaussians.means, config.cells),
        config,
        contribution,
    )
    training = training_cells(
        features.schema.grid, features.cells, block=config.block, validation=config.val_fraction
    )
    standardization = fit_standardization(
        features.values[training], features.schema.columns, robust=config.robust
    )
    return StoredFeatures(features, standardization, training)


def aggregate(
    gaussians: Gaussians,
    grid: CellGrid,
    config: AggregationConfig,
    contribution: Tensor | None = None,  # [G], >= 0, each Gaussian's part in the training renders
) -> CellFeatures:
    """Aggregate all groups; Gaussians outside the grid, or of weight 0, do not count.

    Raises:
        ValueError: contributions missing or negative, or no Gaussian left inside the grid.
    """
    if config.weighting == "contribution":
        _check(gaussians, contribution)
    splats = _prepare(gaussians, grid, config.weighting, contribution)
    cells, fraction = _fractions(splats, grid, config.split)
    weight = fraction @ splats.weight
    to_mean = sparse.diags(1 / weight) @ fraction @ sparse.diags(splats.weight)
    groups = _groups(splats, grid, cells, fraction, to_mean)
    rows = np.concatenate(list(groups.values()), axis=1)
    names = _channel_names(gaussians.sh.shape[1])
    return CellFeatures(
        FeatureSchema(grid, _plain(config), {group: names[group] for group in groups}),
        cells,
        torch.from_numpy(rows).float(),
        torch.from_numpy(fraction @ np.ones(len(splats.weight))).float(),
        torch.from_numpy(weight).float(),
    )


def _plain(config: AggregationConfig) -> AggregationConfig:
    """Without the settings of a subclass: what a schema keeps."""
    return AggregationConfig(weighting=config.weighting, split=config.split)


def _check(gaussians: Gaussians, contribution: Tensor | None) -> None:
    if contribution is None or contribution.shape != (len(gaussians),):
        shape = None if contribution is None else tuple(contribution.shape)
        raise ValueError(f"contribution: expected shape ({len(gaussians)},), got {shape}")
    if not (contribution >= 0).all() or not torch.isfinite(contribution).all():
        raise ValueError("contribution: expected finite values >= 0")


def _prepare(
    gaussians: Gaussians, grid: CellGrid, weighting: str, contribution: Tensor | None
) -> _Splats:
    limit = math.log(MAX_OPACITY / (1 - MAX_OPACITY))
    exact = Gaussians(
        gaussians.means.detach().cpu().double(),
        gaussians.log_scales.detach().cpu().double(),
        gaussians.quaternions.detach().cpu().double(),
        gaussians.opacity_logits.detach().cpu().double().clamp(max=limit),
        gaussians.sh.detach().cpu().double(),
    )
    weight = _weights(exact, grid, weighting, contribution)
    chosen = (grid.contains(exact.means) & (weight > 0)).nonzero()[:, 0]
    if len(chosen) == 0:
        raise ValueError(
            f"features: none of {len(exact)} Gaussians has weight inside the grid"
            f" {grid.lower} .. {grid.upper}, so no cell is occupied"
        )
    chosen = chosen[_canonical_order(exact[chosen])]
    return _in_cell_edges(exact[chosen], grid, weight[chosen])


def _weights(
    gaussians: Gaussians, grid: CellGrid, weighting: str, contribution: Tensor | None
) -> Tensor:
    if contribution is not None and weighting == "contribution":
        return contribution.detach().cpu().double()
    if weighting == "opacity":
        return gaussians.opacities
    volume = (gaussians.log_scales - math.log(grid.edge)).sum(dim=-1).exp()
    return math.pow(2 * math.pi, 1.5) * volume * gaussians.opacities


def _canonical_order(gaussians: Gaussians) -> Tensor:
    """An order by content; only Gaussians alike in place, size and opacity could swap."""
    keys = torch.cat(
        [gaussians.log_scales, gaussians.opacity_logits[:, None], gaussians.means], dim=1
    )
    return torch.from_numpy(np.lexsort(keys.numpy().T))


def _in_cell_edges(gaussians: Gaussians, grid: CellGrid, weight: Tensor) -> _Splats:
    log_sizes = (gaussians.log_scales - math.log(grid.edge)).clamp_min(math.log(MIN_SIZE))
    rotation = gaussians.rotations()
    spectrum = torch.stack([(2 * log_sizes).exp(), 2 * log_sizes])  # covariance, its logarithm
    covariance, logarithm = (rotation * spectrum[:, :, None, :]) @ rotation.transpose(1, 2)
    return _Splats(
        means=gaussians.means,
        place=grid.local(gaussians.means).numpy(),
        sh=gaussians.sh.flatten(1).numpy(),
        depth=torch.nn.functional.softplus(gaussians.opacity_logits).numpy(),  # -ln(1 - o)
        log_sizes=log_sizes.numpy(),
        covariance=covariance.numpy(),
        log_covariance=_upper(logarithm.numpy()),
        weight=weight.numpy(),
    )


def _fractions(splats: _Splats, grid: CellGrid, split: str) -> tuple[Tensor, Any]:
    """Occupied cells, ascending, and the sparse matrix u, [C, G]."""
    count = len(splats.weight)
    if split == "hard":
        cell, part = grid.index(splats.means)[:, None], torch.ones(count, 1, dtype=torch.float64)
    else:
        cell, part = grid.corners(splats.means)
        cell = torch.where(part > 0, cell, cell.gather(1, part.argmax(dim=1, keepdim=True)))
    cells, row = torch.unique(cell, return_inverse=True)
    column = torch.arange(count)[:, None].expand_as(row)
    entries = (part.flatten().numpy(), (row.flatten().numpy(), column.flatten().numpy()))
    matrix = sparse.csr_matrix(entries, shape=(len(cells), count))
    matrix.sum_duplicates()  # and sorts: every row adds up in canonical order
    return cells, matrix


def _groups(
    splats: _Splats, grid: CellGrid, cells: Tensor, fraction: Any, to_mean: Any
) -> dict[str, Array]:
    """All groups, [C, channels] each."""
    shape = np.array(grid.edges) / grid.edge  # 1 for cubic cells
    place = to_mean @ splats.place
    center = grid.coordinates(cells).numpy() + 0.5
    spread = splats.place * shape
    outer = splats.covariance + spread[:, :, None] * spread[:, None, :]
    mean = place * shape
    covariance = to_mean @ _upper(outer) - _upper(mean[:, :, None] * mean[:, None, :])
    sh = to_mean @ splats.sh
    within = [splats.place, splats.sh, splats.depth[:, None], splats.log_sizes]
    return {
        "position": place - center,
        "sh_dc": sh[:, :3],
        **({"sh_rest": sh[:, 3:]} if sh.shape[1] > 3 else {}),
        "opacity": fraction @ splats.depth[:, None],
        "scale": to_mean @ splats.log_sizes,
        "covariance": _log_matrix(covariance),
        "count": np.log1p(fraction @ np.ones((len(splats.weight), 1))),
        "std": np.concatenate(
            [_deviation(to_mean, values) for values in (*within, splats.log_covariance)], axis=1
        ),
    }


def _deviation(to_mean: Any, values: Array) -> Array:
    """Weighted standard deviation within each cell."""
    second, mean = to_mean @ values**2, to_mean @ values
    variance = second - mean**2
    return np.sqrt(np.where(variance > _ROUNDING * second, variance, 0.0))


def _upper(matrices: Array) -> Array:
    """The six upper entries of symmetric matrices, [N, 6]."""
    return np.stack([matrices[:, i, j] for i, j in _PAIRS], axis=1)


def _log_matrix(upper: Array) -> Array:
    """Matrix logarithms of positive definite matrices given by upper entries, [N, 6]."""
    full = np.empty((len(upper), 3, 3))
    for column, (i, j) in enumerate(_PAIRS):
        full[:, i, j] = full[:, j, i] = upper[:, column]
    values, vectors = np.linalg.eigh(full)
    logs = np.log(np.maximum(values, MIN_SIZE**2))
    return _upper((vectors * logs[:, None, :]) @ vectors.transpose(0, 2, 1))


def _channel_names(coefficients: int) -> dict[str, tuple[str, ...]]:
    axes, pairs = "xyz", ["xx", "yy", "zz", "xy", "xz", "yz"]
    sh = [f"sh_{k}_{color}" for k in range(coefficients) for color in "rgb"]
    names = {
        "position": tuple(f"offset_{axis}" for axis in axes),
        "sh_dc": tuple(sh[:3]),
        "sh_rest": tuple(sh[3:]),
        "opacity": ("optical_depth",),
        "scale": tuple(f"log_scale_{axis}" for axis in range(3)),
        "covariance": tuple(f"log_covariance_{pair}" for pair in pairs),
    }
    within = [name for group in names.values() for name in group]
    return {**names, "count": ("log1p_count",), "std": tuple(f"std_{name}" for name in within)}
