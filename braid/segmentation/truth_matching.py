"""Which query answers for which object of the truth.

The bipartite matching of DETR (Carion et al. 2020, End-to-End Object Detection with Transformers,
section 3.1) with the mask costs of Mask2Former (Cheng et al. 2022, section 4.1 and appendix):
for each prompt the assignment of objects to queries with the least sum of

    score -sigmoid(logit), box |a - b|_1, giou -GIoU, dice 1 - Dice, bce mean BCE of the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from braid.segmentation.boxes import giou

IMPOSSIBLE = 1e6  # the cost of a pair without a number


@dataclass(frozen=True)
class Pairs:
    """Matched queries of a batch of prompts; each object has its own query."""

    prompt: Tensor  # [K] long
    query: Tensor  # [K] long
    object: Tensor  # [K] long

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True, kw_only=True)
class MatchingWeights:
    """What each disagreement costs."""

    score: float = 4.0  # high enough that one of several good queries stays the one
    box: float = 5.0
    giou: float = 2.0
    dice: float = 2.0
    bce: float = 2.0


@torch.no_grad()
def match_truth(
    masks: Tensor | None,  # [B, Q, h, w] logits; None: boxes and scores alone
    boxes: Tensor,  # [B, Q, 4] xyxy
    logits: Tensor,  # [B, Q]
    true_masks: Tensor,  # [B, M, h, w] covered shares
    true_boxes: Tensor,  # [B, M, 4] xyxy
    count: Tensor,  # [B] objects of a prompt, the first of M; below 1: nothing to match
    weights: MatchingWeights,
) -> Pairs:
    """The cheapest assignment of every prompt; with more objects than queries some are left out."""
    boxes, true_boxes = boxes.float(), true_boxes.float()
    cost = -weights.score * logits.float().sigmoid()[:, :, None]
    cost = cost + weights.box * torch.cdist(boxes, true_boxes, p=1)
    cost = cost - weights.giou * giou(boxes[:, :, None], true_boxes[:, None])
    if masks is not None:
        given, true = masks.float().flatten(2), true_masks.float().flatten(2)
        cost = cost + weights.dice * _dice(given, true) + weights.bce * _bce(given, true)
    cost = cost.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE).cpu()
    found: list[tuple[int, int, int]] = []
    for prompt, objects in enumerate(count.tolist()):
        if objects > 0:
            rows, columns = linear_sum_assignment(cost[prompt, :, :objects].numpy())
            found += [(prompt, int(q), int(m)) for q, m in zip(rows, columns, strict=True)]
    table = torch.tensor(found, dtype=torch.long).reshape(-1, 3).to(logits.device)
    return Pairs(*table.unbind(1))


def _dice(masks: Tensor, truth: Tensor) -> Tensor:
    """1 - Dice of each pair, [B, Q, M]."""
    chance = masks.sigmoid()
    both = chance @ truth.mT
    return 1 - (2 * both + 1) / (chance.sum(2)[:, :, None] + truth.sum(2)[:, None] + 1)


def _bce(masks: Tensor, truth: Tensor) -> Tensor:
    """Mean binary cross-entropy of each pair, [B, Q, M]: softplus(x) - x t summed by a product."""
    return (F.softplus(masks).sum(2)[:, :, None] - masks @ truth.mT) / masks.shape[2]
