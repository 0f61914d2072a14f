"""The loss of answers against the truth: the teacher's own, and that of a student without teacher.

A detection loss over sets (Carion et al. 2020, section 3.1) with the terms of SAM3 (Carion et al.
2025, appendix on training): matched queries learn box and mask, every query learns whether it is
matched, provided that the object is there at all; that is for the presence logit to say. Masks
have Dice and binary cross-entropy; the truth of a mask is the share of
each cell that is covered, so that edges are learnt as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from braid.segmentation.sam3.masks import dice, giou
from braid.segmentation.sam3.sam3 import Layer, Prediction

# ---- Which query answers for which object of the truth -----------------------------------------
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
        cost = cost + weights.dice * _dice(given, true) + weights.bce * _pairwise_bce(given, true)
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


def _pairwise_bce(masks: Tensor, truth: Tensor) -> Tensor:
    """Mean binary cross-entropy of each pair, [B, Q, M]: softplus(x) - x t summed by a product."""
    return (F.softplus(masks).sum(2)[:, :, None] - masks @ truth.mT) / masks.shape[2]


class Known(Protocol):
    """The truth of B prompts, such as `prompted.Truth`."""

    @property
    def masks(self) -> Tensor:
        """[B, M, h, w] covered share of each cell, zero beyond `count`."""

    @property
    def boxes(self) -> Tensor:
        """[B, M, 4] xyxy."""

    @property
    def count(self) -> Tensor:
        """[B] long: objects of a prompt; 0 for what is not in the image, -1 where unknown."""

    @property
    def semantic(self) -> Tensor:
        """[B, 1, h, w] all objects of a prompt together."""


MATCHING = MatchingWeights()


@dataclass(frozen=True, kw_only=True)
class TruthLoss:
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

    def __call__(self, prediction: Prediction, truth: Known) -> dict[str, Tensor]:
        """Weighted scalar terms in float32; prompts whose truth is unknown have no part in them.

        Raises:
            ValueError: masks of the truth and the prediction differ in size.
        """
        if truth.masks.shape[-2:] != prediction.masks.shape[-2:]:
            sizes = [tuple(each.masks.shape[-2:]) for each in (truth, prediction)]
            raise ValueError("the truth has masks of {}, the prediction of {}".format(*sizes))
        last = Layer(prediction.boxes, prediction.logits, prediction.presence)
        pairs = self._match(last, prediction.masks, truth)
        terms = self._layer(last, pairs, truth)
        for layer in prediction.earlier:
            for name, term in self._layer(layer, self._match(layer, None, truth), truth).items():
                terms[name] = terms[name] + term
        given = prediction.masks[pairs.prompt, pairs.query].float().flatten(1)
        true = truth.masks[pairs.prompt, pairs.object].float().flatten(1)
        known = truth.count >= 0
        area = prediction.semantic[known].float().flatten(1)
        covered = truth.semantic[known].float().flatten(1)
        return {
            **terms,
            "dice": self.dice * _mean(dice(given.sigmoid(), true)),
            "bce": self.bce * _mean(_bce(given, true)),
            "semantic": self.semantic * _mean(dice(area.sigmoid(), covered) + _bce(area, covered)),
        }

    def _match(self, layer: Layer, masks: Tensor | None, truth: Known) -> Pairs:
        given, true = (layer.boxes, layer.logits), (truth.masks, truth.boxes, truth.count)
        return match_truth(masks, *given, *true, self.matching)

    def _layer(self, layer: Layer, pairs: Pairs, truth: Known) -> dict[str, Tensor]:
        """Box, score and presence terms of one decoder layer."""
        boxes = layer.boxes[pairs.prompt, pairs.query].float()
        true = truth.boxes[pairs.prompt, pairs.object].float()
        matched = torch.zeros_like(layer.logits, dtype=torch.float32)
        matched[pairs.prompt, pairs.query] = 1.0
        logits, there = layer.logits.float(), truth.count > 0
        scores = F.binary_cross_entropy_with_logits(logits, matched, reduction="none")[there]
        weights = self.spare + (1 - self.spare) * matched[there]
        known = truth.count >= 0
        presence = layer.presence[known, 0].float()
        asked = F.binary_cross_entropy_with_logits(presence, there[known].float(), reduction="none")
        return {
            "box": self.box * _mean((boxes - true).abs().sum(1)),
            "giou": self.giou * _mean(1 - giou(boxes, true)),
            "score": self.score * (weights * scores).sum() / weights.sum().clamp_min(1),
            "presence": self.presence * _mean(asked),
        }


def _bce(logits: Tensor, truth: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)


def _mean(values: Tensor) -> Tensor:
    """The mean; 0 of nothing, with a gradient of zero."""
    return values.sum() / max(1, values.numel())
