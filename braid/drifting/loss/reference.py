"""The drift loss as plain loops over classes, locations and temperatures: the oracle of `drift`.

One formula after another, in the precision of what comes in, the gradient by autograd. Without
padding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from braid.drifting.config import DriftLossConfig
from braid.drifting.loss.samples import Samples

MIN_DISTANCE = 1e-4
MIN_LAMBDA = 1e-4
ITERATIONS = 30  # of the Sinkhorn scaling


def compute_v(
    distance: Tensor,  # [N, M] in mean distances; the first N columns are the rows themselves
    weight: Tensor,  # [M] of the columns
    columns: Tensor,  # [M, D]
    positives: int,  # the last columns
    tau: float,
    config: DriftLossConfig,
) -> Tensor:
    """V of the first N columns, [N, D] (Algorithm 2)."""
    count = len(distance)
    logits = -(distance + config.self_mask * torch.eye(*distance.shape).to(distance)) / tau
    if config.weighting == "logit":
        kept = weight > 0
        logits, columns, weight = (logits + weight.log())[:, kept], columns[kept], weight[kept]
    sides = [slice(-positives), slice(-positives, None)]
    couple = {"softmax": _softmaxes, "sinkhorn": _scaled}[config.coupling]
    if config.normalization == "joint":
        affinity = couple(logits, weight, config)
        negative, positive = (affinity[:, side] for side in sides)
    else:
        negative, positive = (couple(logits[:, side], weight[side], config) for side in sides)
    attract = config.attraction * positive * negative.sum(1, keepdim=True)
    repel = negative * positive.sum(1, keepdim=True)
    excess = (attract.sum(1) - repel.sum(1))[:, None]  # 0 at attraction 1
    return attract @ columns[-positives:] - repel @ columns[:-positives] - excess * columns[:count]


def _softmaxes(logits: Tensor, weight: Tensor, config: DriftLossConfig) -> Tensor:
    affinity = (logits.softmax(1) * logits.softmax(0)).clamp(min=config.floor).sqrt()
    return affinity * weight if config.weighting == "affinity" else affinity


def _scaled(logits: Tensor, weight: Tensor, _: DriftLossConfig) -> Tensor:
    """The kernel itself, its columns and rows divided by their sums in turn."""
    plan = logits.exp() * (weight > 0)
    for _turn in range(ITERATIONS):
        for j in weight.nonzero().flatten():
            goal = len(plan) * weight[j] / weight.sum()
            plan[:, j] = plan[:, j] * goal / plan[:, j].sum()
        for i in range(len(plan)):
            plan[i] = plan[i] / plan[i].sum()
    return plan


def drift_loss(
    samples: Samples,
    unconditional_weight: Tensor,  # [C]
    config: DriftLossConfig,
) -> Tensor:
    """The loss of one group, []; differentiable with respect to what was generated.

    S and lambda of a scope carry no gradient: phi moves towards where its drift ends.
    """
    classes, _, locations, dims = samples.generated.shape
    vectors = samples.generated.transpose(1, 2).flatten(0, 1).unbind()  # C L of [N, D]
    columns, weights = _columns(samples, unconditional_weight)
    every = range(classes * locations)
    scopes = (
        [every]
        if config.scale_scope == "batch"
        else [every[first : first + locations] for first in every[::locations]]
    )
    loss = samples.generated.new_zeros(())
    for scope in scopes:
        distances = {k: torch.cdist(vectors[k].detach(), columns[k]) for k in scope}
        distances = {k: d.clamp(min=MIN_DISTANCE) for k, d in distances.items()}
        total = torch.stack([(d * weights[k]).mean() for k, d in distances.items()]).sum()
        scale = total / torch.stack([weights[k].mean() for k in scope]).sum()
        unit = scale / math.sqrt(dims)
        drifts = {k: torch.zeros_like(vectors[k]) for k in scope}
        for tau in config.temperatures:
            fields = {
                k: compute_v(
                    distances[k] / scale,
                    weights[k],
                    columns[k] / unit,
                    samples.positives.shape[1],
                    tau,
                    config,
                )
                for k in scope
            }
            square = torch.stack([field.square().mean() for field in fields.values()]).mean()
            for k, field in fields.items():
                drifts[k] = drifts[k] + field / square.sqrt().clamp(min=MIN_LAMBDA)
        for k in scope:
            phi = vectors[k] / unit
            loss = loss + (phi - (phi + drifts[k]).detach()).square().mean()
    return loss / (len(every) if config.reduction == "mean" else classes)


def _columns(samples: Samples, weight: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Columns [M, D] and their weights [M] of each class and, within it, location."""
    columns, weights = [], []
    classes, _, locations, _ = samples.generated.shape
    for c in range(classes):
        blocks = [samples.generated[c].detach(), samples.positives[c]]
        if samples.unconditional is not None:
            blocks.insert(1, samples.unconditional)
        if samples.negatives is not None:
            blocks.insert(1, samples.negatives[c])
        ones = [weight.new_ones(len(block)) for block in blocks]
        if samples.unconditional is not None:
            ones[-2] = ones[-2] * weight[c]
        for location in range(locations):
            columns.append(torch.cat([block[:, location] for block in blocks]))
            weights.append(torch.cat(ones))
    return columns, weights
