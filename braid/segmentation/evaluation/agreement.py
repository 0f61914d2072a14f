"""How far answers agree with a reference: the truth, or another model's answers.

The truth and every model are brought to one form, `Answers`: binary masks on one grid, boxes,
scores, which of them count as found. A comparison is then the same whatever the reference is:

    IoU of an instance = IoU of the found mask that Hungarian matching on IoU assigns to it, else 0
    matched IoU = sum of the IoUs / instances of the reference (what is missed counts 0)
    agreement IoU = 2 * sum / (instances of the reference + found masks)

Extra masks lower the agreement IoU as much as missed ones do. If every matched IoU were 1, it
would be the F1 score of detection; it is symmetric, and 1 for equal answers alone.

Figures are sums over prompts divided by sums over prompts, so a comparison is a table of sums, one
row a prompt, of which any rows can be taken. A figure without anything to divide by is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from braid.segmentation.data.prompted import Truth
from braid.segmentation.sam3.masks import boundary_iou, box_iou, paired_mask_iou, resized
from braid.segmentation.sam3.sam3 import Prediction

Table = Mapping[str, Tensor]  # a column by name, [B] each
Figures = dict[str, float | None]

SAME = 0.5  # IoU from which on two masks are of one thing


@dataclass(frozen=True)
class Answers:
    """What is said of B prompts, with Q masks each."""

    masks: Tensor  # [B, Q, g, g] bool
    boxes: Tensor  # [B, Q, 4] xyxy in [0, 1]
    scores: Tensor  # [B, Q] in [0, 1]
    found: Tensor  # [B, Q] bool, which of them count
    present: Tensor  # [B] bool: there is what is asked for
    semantic: Tensor  # [B, g, g] bool, all of it
    known: Tensor  # [B] bool: there is an answer at all; the truth may be unknown

    @cached_property
    def pixels(self) -> Tensor:
        """The masks as numbers to be multiplied, [B, Q, g * g] float32 of 0 and 1."""
        return self.masks.flatten(2).float()

    @cached_property
    def areas(self) -> Tensor:
        """Pixels of each mask, [B, Q] float32."""
        return self.pixels.sum(dim=2)

    @cached_property
    def union(self) -> Tensor:
        """What the found masks cover together, [B, g, g] bool."""
        covered = self.found.float()[:, None] @ self.pixels
        return (covered > 0).view(-1, *self.masks.shape[2:])

    def take(self, rows: Tensor) -> Answers:
        """The answers to some of the prompts."""
        return Answers(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})


def answers_of(
    prediction: Prediction,
    *,
    score: float,  # a query above it counts as found
    size: int,  # pixels a side of the masks
) -> Answers:
    """A model's answers; probabilities of 1/2 and more are mask."""
    scores = prediction.scores.float()
    return Answers(
        masks=resized(prediction.masks, size) > 0,
        boxes=prediction.boxes.float(),
        scores=scores,
        found=scores > score,
        present=prediction.presence[:, 0] > 0,
        semantic=resized(prediction.semantic, size)[:, 0] > 0,
        known=torch.ones_like(scores[:, 0], dtype=torch.bool),
    )


def true_answers(truth: Truth) -> Answers:
    """The truth as answers of score 1; pixels that are covered by half and more are mask."""
    places = torch.arange(truth.masks.shape[1], device=truth.count.device)
    found = places < truth.count[:, None]
    return Answers(
        masks=truth.masks >= 0.5,
        boxes=truth.boxes,
        scores=found.float(),
        found=found,
        present=truth.count > 0,
        semantic=truth.semantic[:, 0] >= 0.5,
        known=truth.count >= 0,
    )


def mask_iou(left: Answers, right: Answers) -> Tensor:
    """IoU of all masks of one with all of the other, [B, N, M]; 0 where both are empty."""
    common = left.pixels @ right.pixels.mT
    union = left.areas[:, :, None] + right.areas[:, None, :] - common
    return common / union.clamp_min(1)


class Pairs(NamedTuple):
    """P matched pairs of masks."""

    prompt: Tensor  # [P]
    left: Tensor  # [P] place among the prompt's answers
    right: Tensor  # [P] place among the prompt's references
    iou: Tensor  # [P] above 0


def assign(
    iou: Tensor,  # [B, N, M]
    left: Tensor,  # [B, N] bool, who takes part
    right: Tensor,  # [B, M] bool
) -> Pairs:
    """One to one within a prompt, so that the sum of the IoUs is largest."""
    values = (iou * left[:, :, None] * right[:, None, :]).cpu().numpy()
    found = []
    for prompt in np.flatnonzero(values.any(axis=(1, 2))):
        rows, columns = linear_sum_assignment(values[prompt], maximize=True)
        found += [(prompt, row, column) for row, column in zip(rows, columns, strict=True)]
    indices = torch.tensor(found, dtype=torch.long).view(-1, 3)
    kept = torch.from_numpy(values)[tuple(indices.T)] > 0
    prompt, row, column = indices[kept].to(iou.device).T
    return Pairs(prompt, row, column, iou[prompt, row, column])


def compare(answers: Answers, reference: Answers) -> dict[str, Tensor]:
    """Sums over the matched masks of each prompt; zeros where one of the two is unknown.

    `iou`, `boundary` and `box` are sums of IoUs over pairs, `answers` and `references` are counts
    of found masks, `semantic` is the IoU of the semantic maps, `positive` whether there is one in
    the reference. `gap`, `gap_signed` and `gap_pairs` are of the scores of all masks, found or
    not, of one thing with a found mask of the reference: a score that is too low is no miss there.
    """
    known = answers.known & reference.known
    references = reference.found & known[:, None]
    found = answers.found & known[:, None]
    iou = mask_iou(answers, reference)
    pairs = assign(iou, found, references)
    left, right = answers.masks[pairs.prompt, pairs.left], reference.masks[pairs[0], pairs[2]]
    boxes = answers.boxes[pairs.prompt, pairs.left], reference.boxes[pairs[0], pairs[2]]
    near = assign(iou * (iou >= SAME), torch.ones_like(found), references)
    gap = answers.scores[near.prompt, near.left] - reference.scores[near.prompt, near.right]

    def total(prompt: Tensor, values: Tensor) -> Tensor:
        return torch.zeros(len(known), device=known.device).index_add_(0, prompt, values.float())

    positive = reference.semantic.flatten(1).any(dim=1) & known
    return {
        "iou": total(pairs.prompt, pairs.iou),
        "boundary": total(pairs.prompt, boundary_iou(left, right)),
        "box": total(pairs.prompt, box_iou(*boxes)),
        "answers": found.sum(dim=1),
        "references": references.sum(dim=1),
        "semantic": paired_mask_iou(answers.semantic, reference.semantic) * positive,
        "positive": positive,
        "gap": total(near.prompt, gap.abs()),
        "gap_signed": total(near.prompt, gap),
        "gap_pairs": total(near.prompt, torch.ones_like(gap)),
        "yes": answers.present,
        "true_yes": reference.present,
        "known": known,
    }


def joined(tables: Sequence[Table]) -> dict[str, Tensor]:
    """The rows of all tables, on the CPU."""
    return {name: torch.cat([each[name].cpu() for each in tables]) for name in tables[0]}


def mask_figures(table: Table) -> Figures:
    """Of a comparison: the IoUs of instances, what extra masks cost, the semantic IoU."""
    sums = {name: float(each.cpu().double().sum()) for name, each in table.items()}
    both = sums["answers"] + sums["references"]
    return {
        "matched_iou": ratio(sums["iou"], sums["references"]),
        "extra_iou": ratio(sums["iou"], sums["answers"]),
        "agreement_iou": ratio(2 * sums["iou"], both),
        "boundary_iou": ratio(sums["boundary"], sums["references"]),
        "box_iou": ratio(sums["box"], sums["references"]),
        "semantic_iou": ratio(sums["semantic"], sums["positive"]),
        "score_gap": ratio(sums["gap"], sums["gap_pairs"]),
        "score_gap_signed": ratio(sums["gap_signed"], sums["gap_pairs"]),
    }


def presence_figures(table: Table) -> Figures:
    """How well presence is told; `presence_f1_always` is the F1 of always saying yes."""
    known = table["known"].bool()
    yes, truth = table["yes"][known].bool(), table["true_yes"][known].bool()
    hits, positives, negatives = int((yes & truth).sum()), int(truth.sum()), int((~truth).sum())
    recall = ratio(hits, positives)
    rejected = ratio(int((~yes & ~truth).sum()), negatives)
    balanced = None if recall is None or rejected is None else (recall + rejected) / 2
    return {
        "presence_precision": ratio(hits, int(yes.sum())),
        "presence_recall": recall,
        "presence_f1": ratio(2 * hits, int(yes.sum()) + positives),
        "presence_f1_always": ratio(2 * positives, 2 * positives + negatives),
        "presence_balanced_accuracy": balanced,
    }


def ratio(part: float | None, whole: float | None) -> float | None:
    """`part / whole`, or None where one is missing or there is nothing to divide by."""
    return None if part is None or not whole else part / whole


# ---- Whether a score of 0.8 means that 8 of 10 such masks are right ----------------------------
# A mask is right if it is the surest among those that overlap an instance of the truth by an IoU of
# at least 1/2, as in the greedy matching of COCO's average precision; a duplicate is wrong. The
# expected calibration error of Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
# eq. 5, is the mean distance of score and share of right masks over bins of equal width, weighted
# by their counts. Most queries of a DETR find nothing and say so, which makes it small; the same
# error of the found masks alone stands beside it.


class Scored(NamedTuple):
    """N masks of prompts whose truth is known."""

    scores: Tensor  # [N] in [0, 1]
    right: Tensor  # [N] bool
    found: Tensor  # [N] bool


def score_masks(answers: Answers, truth: Answers) -> Scored:
    """Which of all masks, found or not, are right."""
    iou = mask_iou(answers, truth) * truth.found[:, None, :]
    best, instance = _best(iou)
    hits = best >= SAME
    rivals = torch.where(hits, answers.scores, -1.0)
    same = instance[:, :, None] == instance[:, None, :]  # [B, Q, Q] overlap one instance most
    surest = rivals[:, None, :].masked_fill(~same, -1.0).argmax(dim=2)
    right = hits & (surest == torch.arange(hits.shape[1], device=hits.device))
    known = truth.known
    return Scored(*(each[known].flatten().cpu() for each in (answers.scores, right, answers.found)))


def _best(iou: Tensor) -> tuple[Tensor, Tensor]:
    """The IoU of each mask with the instance that it overlaps most, and that instance, [B, Q]."""
    if iou.shape[2] == 0:
        return iou.new_zeros(iou.shape[:2]), iou.new_zeros(iou.shape[:2], dtype=torch.long)
    best, instance = iou.max(dim=2)
    return best, instance


def joined_scores(parts: Sequence[Scored]) -> Scored:
    """All masks of all parts."""
    return Scored(*(torch.cat(each) for each in zip(*parts, strict=True)))


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
        """Each bin's number, mean score, share of right masks and count, as a curve's points."""
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


# ---- Whether a model listens: do different prompts give different masks on one image -----------
# A model that ignores its prompt can score well wherever most prompts ask for the same thing. So
# for every two prompts of an image whose truths differ, the Jaccard distance of what is found for
# them,
#
#     1 - |A and B| / |A or B|      (0 if both are empty),
#
# is taken: 0 for a model that always answers alike. The truth's own distances say how much of it
# there should be.


def prompt_sensitivity(
    answers: Answers,
    truth: Answers,
    owner: Tensor,  # [B] image of each prompt
) -> Tensor:
    """The mean distance over its pairs of prompts for each image that has such a pair, [images].

    Prompts whose truth is unknown are left out.
    """
    made, real, means = answers.union.flatten(1), truth.union.flatten(1), []
    for image in owner.unique():
        rows = ((owner == image) & truth.known).nonzero()[:, 0]
        differ = jaccard_distances(real[rows]).triu() > 0
        if differ.any():
            means.append(jaccard_distances(made[rows])[differ].mean())
    return torch.stack(means) if means else made.new_zeros(0, dtype=torch.float32)


def jaccard_distances(
    masks: Tensor,  # [N, P] bool
) -> Tensor:
    """Of every mask to every one, [N, N] in [0, 1]."""
    values = masks.float()
    area, common = values.sum(dim=1), values @ values.mT
    union = area[:, None] + area - common
    return (union - common) / union.clamp_min(1)
