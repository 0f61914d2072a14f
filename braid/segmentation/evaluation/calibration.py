"""Whether a score of 0.8 means that 8 of 10 such masks are right.

A mask is right if it is the surest among those that overlap a true instance by an IoU of at least
1/2, as in the greedy matching of COCO's average precision; a duplicate is wrong. The expected
calibration error of Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 5, is
the mean distance of score and fraction of right masks over bins of equal width, weighted by their
counts. Most queries of a DETR detect nothing and say so, which makes it small; the same error of
the detected masks alone stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from braid.segmentation.metrics.agreement import SAME, Detections, mask_iou, ratio


class Scored(NamedTuple):
    """N masks of prompts whose ground truth is known."""

    scores: Tensor  # [N] in [0, 1]
    right: Tensor  # [N] bool
    detected: Tensor  # [N] bool


def score_masks(detections: Detections, truth: Detections) -> Scored:
    """Which of all masks, detected or not, are right."""
    iou = mask_iou(detections, truth) * truth.detected[:, None, :]
    best, instance = _best(iou)
    hits = best >= SAME
    rivals = torch.where(hits, detections.scores, -1.0)
    same = instance[:, :, None] == instance[:, None, :]  # [B, Q, Q] overlap one instance most
    surest = rivals[:, None, :].masked_fill(~same, -1.0).argmax(dim=2)
    right = hits & (surest == torch.arange(hits.shape[1], device=hits.device))
    columns = (detections.scores, right, detections.detected)
    return Scored(*(column[truth.known].flatten().cpu() for column in columns))


def _best(iou: Tensor) -> tuple[Tensor, Tensor]:
    """The IoU of each mask with the instance that it overlaps most, and that instance, [B, Q]."""
    if iou.shape[2] == 0:
        return iou.new_zeros(iou.shape[:2]), iou.new_zeros(iou.shape[:2], dtype=torch.long)
    best, instance = iou.max(dim=2)
    return best, instance


def joined_scores(parts: Sequence[Scored]) -> Scored:
    """All masks of all parts."""
    return Scored(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Reliability:
    """Sums over the masks of each bin, [bins] float64."""

    count: Tensor
    score: Tensor
    right: Tensor

    def error(self) -> float | None:
        """The expected calibration error; None without any mask."""
        return ratio(float((self.score - self.right).abs().sum()), float(self.count.sum()))

    def rows(self) -> list[dict[str, float | None]]:
        """Each bin's number, mean score, fraction of right masks and count, as a curve's points."""
        sums = torch.stack([self.count, self.score, self.right], dim=1).tolist()
        return [
            {
                "bin": number,
                "confidence": ratio(score, count),
                "accuracy": ratio(right, count),
                "count": int(count),
            }
            for number, (count, score, right) in enumerate(sums)
        ]


def reliability(
    scores: Tensor,  # [N] in [0, 1]
    right: Tensor,  # [N] bool
    bins: int,
) -> Reliability:
    """Bins of equal width; a score on an edge belongs to the bin above it, 1 to the last one."""
    place = (scores.double() * bins).long().clamp(0, bins - 1)
    columns = (torch.ones_like(scores), scores, right)
    return Reliability(
        *(torch.bincount(place, values.double(), minlength=bins) for values in columns)
    )
