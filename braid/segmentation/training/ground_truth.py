"""The loss against ground truth: the tiny teacher's, and that of a student without a teacher.

A detection loss over sets (Carion et al. 2020, section 3.1) with the terms of SAM3 (Carion et al.
2025, appendix on training): matched queries learn box and mask, every query learns whether it is
matched, provided that the object is there at all; that is for the presence logit to predict. Masks
have Dice and binary cross-entropy; the ground truth of a mask is the fraction of each cell that is
covered, so that edges are learned as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from braid.segmentation.data.prompted import GroundTruth
from braid.segmentation.sam3.geometry import dice, giou
from braid.segmentation.sam3.sam3 import Layer, Prediction

# ---- Matching of queries and ground-truth objects ----------------------------------------------
# The bipartite matching of DETR (Carion et al. 2020, End-to-End Object Detection with Transformers,
# section 3.1) with the mask costs of Mask2Former (Cheng et al. 2022, section 4.1 and appendix):
# for each prompt the assignment of objects to queries with the least sum of
#
#     score -sigmoid(logit), box |a - b|_1, giou -GIoU, dice 1 - Dice, bce mean BCE of the mask.

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
def match_targets(
    masks: Tensor | None,  # [B, Q, h, w] logits; None: boxes and scores alone
    boxes: Tensor,  # [B, Q, 4] xyxy
    logits: Tensor,  # [B, Q]
    true_masks: Tensor,  # [B, M, h, w] covered fractions
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
        cost = cost + weights.dice * _dice(given, true) + weights.bce * _pairwise_bce(given, true)
    cost = cost.nan_to_num(IMPOSSIBLE, IMPOSSIBLE, IMPOSSIBLE).cpu()
    matched: list[tuple[int, int, int]] = []
    for prompt, objects in enumerate(count.tolist()):
        if objects > 0:
            rows, columns = linear_sum_assignment(cost[prompt, :, :objects].numpy())
            matched += [(prompt, int(q), int(m)) for q, m in zip(rows, columns, strict=True)]
    table = torch.tensor(matched, dtype=torch.long).reshape(-1, 3).to(logits.device)
    return Pairs(*table.unbind(1))


def _dice(masks: Tensor, truth: Tensor) -> Tensor:
    """1 - Dice of each pair, [B, Q, M]."""
    p = masks.sigmoid()
    both = p @ truth.mT
    return 1 - (2 * both + 1) / (p.sum(2)[:, :, None] + truth.sum(2)[:, None] + 1)


def _pairwise_bce(masks: Tensor, truth: Tensor) -> Tensor:
    """Mean binary cross-entropy of each pair, [B, Q, M]: softplus(x) - x t summed by a product."""
    return (F.softplus(masks).sum(2)[:, :, None] - masks @ truth.mT) / masks.shape[2]


# ---- The loss ----------------------------------------------------------------------------------


MATCHING = MatchingWeights()


@dataclass(frozen=True, kw_only=True)
class GroundTruthLoss:
    """Weights of the terms; calling it gives them.

    Most queries are spare; their scores count less, as DETR's no-object class does, or those of
    the others would hardly rise. Earlier decoder layers, where the prediction has them, learn
    boxes, scores and presence as the last one does, with a matching of their own (deep
    supervision); a term is the sum over layers.
    """

    box: float = 5.0
    giou: float = 2.0
    score: float = 2.0
    spare: float = 0.3  # of an unmatched query's score, beside 1 of a matched one
    dice: float = 8.0
    bce: float = 8.0
    presence: float = 3.0
    semantic: float = 4.0
    matching: MatchingWeights = MATCHING

    def __call__(self, prediction: Prediction, truth: GroundTruth) -> dict[str, Tensor]:
        """Weighted scalar terms in float32; prompts of unknown ground truth have no part in them.

        Raises:
            ValueError: masks of the ground truth and the prediction differ in size.
        """
        sizes = [tuple(masks.shape[-2:]) for masks in (truth.masks, prediction.masks)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                "the ground truth has masks of {}, the prediction of {}".format(*sizes)
            )
        last = Layer(prediction.boxes, prediction.logits, prediction.presence)
        pairs = self._match(last, prediction.masks, truth)
        terms = self._layer(last, pairs, truth)
        for layer in prediction.earlier:
            for name, term in self._layer(layer, self._match(layer, None, truth), truth).items():
                terms[name] = terms[name] + term
        logits = prediction.masks[pairs.prompt, pairs.query].float().flatten(1)
        covered = truth.masks[pairs.prompt, pairs.object].float().flatten(1)
        known = truth.known
        all_logits = prediction.semantic[known].float().flatten(1)
        all_covered = truth.semantic[known].float().flatten(1)
        semantic = dice(all_logits.sigmoid(), all_covered) + _bce(all_logits, all_covered)
        return {
            **terms,
            "dice": self.dice * _mean(dice(logits.sigmoid(), covered)),
            "bce": self.bce * _mean(_bce(logits, covered)),
            "semantic": self.semantic * _mean(semantic),
        }

    def _match(self, layer: Layer, masks: Tensor | None, truth: GroundTruth) -> Pairs:
        targets = (truth.masks, truth.boxes, truth.count)
        return match_targets(masks, layer.boxes, layer.logits, *targets, self.matching)

    def _layer(self, layer: Layer, pairs: Pairs, truth: GroundTruth) -> dict[str, Tensor]:
        """Box, score and presence terms of one decoder layer."""
        boxes = layer.boxes[pairs.prompt, pairs.query].float()
        true = truth.boxes[pairs.prompt, pairs.object].float()
        matched = torch.zeros_like(layer.logits, dtype=torch.float32)
        matched[pairs.prompt, pairs.query] = 1.0
        logits, known, present = layer.logits.float(), truth.known, truth.present
        scores = F.binary_cross_entropy_with_logits(logits, matched, reduction="none")[present]
        weights = self.spare + (1 - self.spare) * matched[present]
        presence = F.binary_cross_entropy_with_logits(
            layer.presence[known, 0].float(), present[known].float(), reduction="none"
        )
        return {
            "box": self.box * _mean((boxes - true).abs().sum(1)),
            "giou": self.giou * _mean(1 - giou(boxes, true)),
            "score": self.score * (weights * scores).sum() / weights.sum().clamp_min(1),
            "presence": self.presence * _mean(presence),
        }


def _bce(logits: Tensor, truth: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 of nothing, with a gradient of zero."""
    return values.sum() / max(1, values.numel())
