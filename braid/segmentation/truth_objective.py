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
from torch import Tensor
from torch.nn import functional as F

from braid.segmentation.boxes import giou
from braid.segmentation.masks import dice
from braid.segmentation.sam3 import Layer, Prediction
from braid.segmentation.truth_matching import MatchingWeights, Pairs, match_truth


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
