"""The drift field and its loss (arXiv 2602.04770, Algorithm 2 and A.6), all classes at once.

For a generated x_i, a column y_j of [unconditional | generated | banked | positives] and each tau:

    d_ij = |x_i - y_j|,   S = mean w_j d_ij / mean w_j,   L_ij = -(d_ij / S + m [y_j is x_i]) / tau
    A_ij = w_j sqrt(max(softmax_j(L) softmax_i(L), floor)),   w_j = 1 but for unconditional ones
    V_i  = sum_neg(A_i) sum_pos(A_ij y_j) - sum_pos(A_i) sum_neg(A_ij y_j)
    loss = mean |phi - sg(phi + sum_tau V_tau / lambda_tau)|^2,   lambda^2 = mean V^2

in units where phi = x sqrt(D) / S. S and lambda carry no gradient and are shared by the locations
of a group, over the classes and samples of the batch and over processes. So the gradient is known
after the forward pass: -2 sum_tau (V / lambda) / (count S / sqrt(D)). With one temperature the
loss of a group is 1 whatever the samples are: watch the statistics, not the loss.

Switches of the same field, all off by default. `coupling: sinkhorn` (arXiv 2603.12366) replaces A
by u_i exp(L_ij) v_j, scaled until each row sums to 1 and column j to N w_j / sum w. With
`normalization: separate` rows are normalized over the negatives and over the positives apart, as
in the paper's definition V = V+ - V-; with a Sinkhorn coupling V is then the difference of two
barycenters. `annealing` (arXiv 2603.09936) multiplies tau by a^(1 - step / annealing_steps).

`reference.py` has the same as plain loops.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from braid.drifting.config import DriftLossConfig
from braid.drifting.loss.samples import Layout, Samples, lay_out
from braid.training import distributed

__all__ = ["DriftLoss", "DriftResult", "Samples"]

MIN_SCALE = 1e-3  # of S, and of the unit of phi
MIN_SQUARE = 1e-8  # of lambda^2
ITERATIONS = 30  # of the Sinkhorn scaling


@dataclass(frozen=True)
class DriftResult:
    """What a step minimizes and what it may log."""

    loss: Tensor  # [] the sum over groups
    per_group: dict[str, Tensor]  # [] each, differentiable too
    statistics: dict[str, Tensor]  # [] each, see `DriftStatistics`; empty unless requested


class DriftLoss:
    """The drifting loss; in float32 (float64 where samples are that), never under autocast.

    Raises:
        ValueError: called with no samples or shapes that do not fit.
    """

    def __init__(self, config: DriftLossConfig) -> None:
        self.config = config

    def __call__(
        self,
        groups: Mapping[str, Samples],
        unconditional_weight: Tensor,  # [C] w of each unconditional negative
        *,
        step: float = math.inf,  # of the training, which annealing goes by
        statistics: bool = False,
    ) -> DriftResult:
        """The loss; under several processes each calls it with groups of the same names."""
        if not groups:
            raise ValueError("drift: expected one group of samples or more, got none")
        for name, samples in groups.items():
            samples.check(name, len(unconditional_weight))
        log = DriftStatistics(self.config.temperatures) if statistics else None
        taus, per_group = self.temperatures(step), {}
        for name, samples in groups.items():
            with torch.no_grad(), torch.autocast(samples.generated.device.type, enabled=False):
                parts = lay_out(samples, unconditional_weight)
                drift, unit, count = self._drift(name, parts, taus, log)
            per_group[name] = _Loss.apply(samples.generated, drift, unit, count)
        loss = torch.stack(list(per_group.values())).sum()
        return DriftResult(loss, per_group, log.result() if log else {})

    def temperatures(self, step: float) -> list[float]:
        """Tau at a step of the training."""
        left = max(0.0, 1 - step / max(self.config.annealing_steps, 1))
        return [tau * self.config.annealing**left for tau in self.config.temperatures]

    def _drift(
        self,
        name: str,
        parts: Iterable[Layout],
        taus: Sequence[float],
        log: DriftStatistics | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """sum_tau V / lambda [L, C, N, D], the unit of phi [1 or C], the size of the mean []."""
        # A part's distances at once, while its columns are still in the cache.
        groups, distances = zip(*((part, part.distances()) for part in parts), strict=True)
        distance, group = torch.cat(distances), groups[0]
        locations, dims = len(distance), group.columns.shape[-1]
        total = (distance.sum((0, 2)) * group.weight).sum(1)
        vectors = locations * group.counts
        sums = torch.stack([total, vectors * group.weight.sum(1), vectors])  # [3, C]
        joint = distributed.mean(sums.sum(1, keepdim=True))
        shared = joint if self.config.scale_scope == "batch" else sums
        scale = _ratio(shared[0], shared[1]).clamp(min=MIN_SCALE)
        unit = (scale / math.sqrt(dims)).clamp(min=MIN_SCALE)

        force, squares = self._forces(groups, distance.div_(scale[:, None, None]), taus, log)
        squares = squares / unit.square()  # [T, C]
        if self.config.scale_scope == "batch":
            squares = distributed.mean(squares.sum(1, keepdim=True))
        squares = _ratio(squares, dims * shared[2])
        rates = (squares.clamp(min=MIN_SQUARE).rsqrt() / unit)[..., None, None]
        drift = force[:, :, 0] * rates[0]
        for field, rate in zip(force.unbind(2)[1:], rates[1:], strict=True):
            drift.addcmul_(field, rate)
        if log:
            log.add_group(name, scale.mean(), squares.mean(1))
        count = (dims * joint[2, 0]).clamp(min=1)
        return drift, unit, count if self.config.reduction == "mean" else count / locations

    def _forces(
        self,
        parts: Sequence[Layout],
        distance: Tensor,  # [L, C, N, M] in S
        taus: Sequence[float],
        log: DriftStatistics | None,
    ) -> tuple[Tensor, Tensor]:
        """V in features, [L, C, T, N, D], and its sum of squares by class, [T, C]."""
        locations, classes, rows, _ = distance.shape
        shape = locations, classes, len(self.config.temperatures), rows
        force = distance.new_empty(*shape, parts[0].columns.shape[-1])
        norms = distance.new_empty(shape)
        sizes = [len(part.columns) for part in parts]
        pieces = (values.split(sizes) for values in (distance, force, norms))
        for part, near, moved, size in zip(parts, *pieces, strict=True):
            affinity = self.affinity(part, near, taus)
            if log:
                log.add_rows(near, affinity, part)
            part.combine(self.coefficients(part, affinity), out=moved)
            torch.linalg.vector_norm(moved, dim=-1, out=size)
        return force, norms.square().sum((0, 3)).mT

    def affinity(
        self,
        group: Layout,
        distance: Tensor,  # [L, C, N, M] in S
        taus: Sequence[float],
    ) -> Tensor:
        """A at each temperature, [L, C, T, N, M]; 0 for padding."""
        rate = -1 / distance.new_tensor(taus)[:, None, None]
        logits = distance[:, :, None] * rate
        group.diagonal(logits).add_(self.config.self_mask * rate[..., 0])
        weight, pairs = group.weight[:, None, None], group.pairs
        if self.config.weighting == "logit":
            logits.add_(weight.log())
            heavy = weight[:, 0] > 0
            pairs = heavy.expand(-1, distance.shape[2], -1) if pairs is None else pairs & heavy
        if pairs is not None:
            logits.masked_fill_(~pairs[:, None], -math.inf)
        every, positives = logits.shape[-1], group.positives
        separate = self.config.normalization == "separate"
        sides = [every - positives, positives] if separate else [every]
        couple = {"softmax": self._softmaxes, "sinkhorn": self._scaled}[self.config.coupling]
        counts = group.counts[:, None, None, None]
        blocks = zip(logits.split(sides, -1), weight.split(sides, -1), strict=True)
        coupled = [couple(block, column_weight, counts) for block, column_weight in blocks]
        affinity = torch.cat(coupled, -1) if separate else coupled[0]
        return affinity if pairs is None else affinity.masked_fill_(~pairs[:, None], 0)

    def _softmaxes(
        self,
        logits: Tensor,  # [L, C, T, N, M]
        weight: Tensor,  # [C, 1, 1, M]
        _: Tensor,
    ) -> Tensor:
        """The geometric mean of both softmaxes."""
        affinity = logits.softmax(-1).mul_(logits.softmax(-2)).clamp_(min=self.config.floor).sqrt_()
        return affinity.mul_(weight) if self.config.weighting == "affinity" else affinity

    def _scaled(
        self,
        logits: Tensor,  # [L, C, T, N, M]
        weight: Tensor,  # [C, 1, 1, M]
        rows: Tensor,  # [C, 1, 1, 1] how many exist
    ) -> Tensor:
        """The Sinkhorn coupling: rows sum to 1, columns, but for what is left, by their weights."""
        small = torch.finfo(logits.dtype).min  # in place of -inf, of padding, whose inverse is inf
        goal = (rows * weight / weight.sum(-1, keepdim=True)).log()
        potential = torch.zeros_like(logits[..., :1])
        for _ in range(ITERATIONS):
            column = goal - (logits + potential).logsumexp(-2, keepdim=True).clamp(min=small)
            potential = -(logits + column).logsumexp(-1, keepdim=True).clamp(min=small)
        return (logits + column + potential).exp_()

    def coefficients(
        self,
        group: Layout,
        affinity: Tensor,  # [L, C, T, N, M], overwritten
    ) -> Tensor:
        """What each column counts in V, [L, C, T, N, M]; a row adds to 0, so the origin is free."""
        split = affinity.shape[-1] - group.positives
        negative, positive = affinity[..., :split], affinity[..., split:]
        attraction, repulsion = negative.sum(-1), positive.sum(-1)
        negative.mul_(-repulsion[..., None])
        positive.mul_(self.config.attraction * attraction[..., None])
        if self.config.attraction != 1:  # V = a (positives' mean - x) - (negatives' mean - x)
            excess = (self.config.attraction - 1) * attraction * repulsion
            group.diagonal(affinity).sub_(excess)
        return affinity


class _Loss(torch.autograd.Function):
    """Mean square of the drift, whose gradient moves each sample along its drift."""

    @staticmethod
    def forward(
        context: Any,
        generated: Tensor,  # [C, N, L, D]
        drift: Tensor,  # [L, C, N, D] in units of phi
        unit: Tensor,  # [1 or C] of phi, in features
        count: Tensor,  # [] numbers in the batch, a process
    ) -> Tensor:
        context.save_for_backward(drift, -2 / (unit * count))
        context.dtype = generated.dtype
        return torch.linalg.vector_norm(drift).square() / count

    @staticmethod
    @once_differentiable
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        drift, rate = context.saved_tensors
        gradient = (upstream * rate)[:, None, None, None] * drift.permute(1, 2, 0, 3)
        return gradient.to(context.dtype), None, None, None


def _ratio(sums: Tensor, sizes: Tensor) -> Tensor:
    """A mean; 0 of nothing."""
    return sums / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)


# ---- Statistics of the drift: the loss says nothing, since lambda keeps it constant ------------
# Of the kernel at each temperature <tau>, over the rows (generated vectors) of all groups:
#
#     kernel_mass_positive_<tau>, .._negative_<tau>  sum of a row's affinities, mean over rows
#     kernel_mass_ratio_<tau>                        positive mass over negative
#     kernel_neighbors_positive_<tau>_p10, _p50, _p90, and .._negative_..
#                                                    (sum A)^2 / sum A^2 of a row: over how many
#                                                    columns it is spread; percentiles over rows
#     kernel_distance_<tau>                          mean distance weighted by affinity, in S
#
# and of the field, for each family of groups, which is what stands before the slash in their names,
#
#     field_scale_<family>                           S, the mean distance, in features
#     field_sq_<family>_<tau>                        raw mean V^2 of a dimension, in units of phi;
#                                                    at equilibrium what finite samples leave of it
#
# `DriftLoss(...)(groups, w, statistics=True).statistics` has them all, for features of any origin.

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
