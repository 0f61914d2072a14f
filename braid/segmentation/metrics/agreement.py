"""How far detections agree with a reference: ground truth, or another model's detections.

Ground truth and every model are brought to one form, `Detections`: binary masks on one grid, boxes,
scores, which of them count. A comparison is then the same whatever the reference is:

    IoU of an instance = IoU of the mask that Hungarian matching on IoU assigns to it, else 0
    matched IoU = sum of the IoUs / instances of the reference (what is missed counts 0)
    agreement IoU = 2 * sum / (instances of the reference + detected masks)

Extra masks lower the agreement IoU as much as missed ones do. If every matched IoU were 1, it
would be the F1 score of detection; it is symmetric, and 1 for equal detections alone.

Metrics are sums over prompts divided by sums over prompts, so a comparison is a table of sums, one
row a prompt, of which any rows can be taken. A metric without anything to divide by is None.
cgF1, which sees false positives, is at the end of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from braid.segmentation.data.prompted import GroundTruth
from braid.segmentation.sam3.geometry import boundary_iou, box_iou, paired_mask_iou, resized
from braid.segmentation.sam3.sam3 import Prediction

Table = Mapping[str, Tensor]  # a column by name, [B] each
Metrics = dict[str, float | None]

SAME = 0.5  # IoU from which on two masks are of one object
BLIND = 0.55  # balanced accuracy of a presence that predicts nothing; a constant has 0.5


@dataclass(frozen=True)
class Detections:
    """The masks of B prompts, Q of each."""

    masks: Tensor  # [B, Q, g, g] bool
    boxes: Tensor  # [B, Q, 4] xyxy in [0, 1]
    scores: Tensor  # [B, Q] in [0, 1]
    detected: Tensor  # [B, Q] bool, which of them count
    present: Tensor  # [B] bool: the concept is in the image
    semantic: Tensor  # [B, g, g] bool, all of it
    known: Tensor  # [B] bool: False where ground truth is unknown

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
        """What the detected masks cover together, [B, g, g] bool."""
        covered = self.detected.float()[:, None] @ self.pixels
        return (covered > 0).view(-1, *self.masks.shape[2:])

    def take(self, rows: Tensor) -> Detections:
        """Those of some of the prompts."""
        return Detections(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def predicted_detections(
    prediction: Prediction,
    *,
    score: float,  # a query above it counts as detected
    size: int,  # pixels a side of the masks
) -> Detections:
    """Those of a model; probabilities of 1/2 and more are mask."""
    scores = prediction.scores.float()
    return Detections(
        masks=resized(prediction.masks, size) > 0,
        boxes=prediction.boxes.float(),
        scores=scores,
        detected=scores > score,
        present=prediction.presence[:, 0] > 0,
        semantic=resized(prediction.semantic, size)[:, 0] > 0,
        known=torch.ones_like(scores[:, 0], dtype=torch.bool),
    )


def true_detections(truth: GroundTruth) -> Detections:
    """Ground truth as detections of score 1; pixels that are covered by half and more are mask."""
    places = torch.arange(truth.masks.shape[1], device=truth.count.device)
    detected = places < truth.count[:, None]
    return Detections(
        masks=truth.masks >= 0.5,
        boxes=truth.boxes,
        scores=detected.float(),
        detected=detected,
        present=truth.present,
        semantic=truth.semantic[:, 0] >= 0.5,
        known=truth.known,
    )


def mask_iou(left: Detections, right: Detections) -> Tensor:
    """IoU of all masks of one with all of the other, [B, N, M]; 0 where both are empty."""
    common = left.pixels @ right.pixels.mT
    union = left.areas[:, :, None] + right.areas[:, None, :] - common
    return common / union.clamp_min(1)


class Pairs(NamedTuple):
    """P matched pairs of masks."""

    prompt: Tensor  # [P]
    left: Tensor  # [P] place among the prompt's detections
    right: Tensor  # [P] place among the prompt's references
    iou: Tensor  # [P] above 0


def assign(
    iou: Tensor,  # [B, N, M]
    left: Tensor,  # [B, N] bool, which take part
    right: Tensor,  # [B, M] bool
) -> Pairs:
    """One to one within a prompt, so that the sum of the IoUs is largest."""
    values = (iou * left[:, :, None] * right[:, None, :]).cpu().numpy()
    assigned = []
    for prompt in np.flatnonzero(values.any(axis=(1, 2))):
        rows, columns = linear_sum_assignment(values[prompt], maximize=True)
        assigned += [(prompt, row, column) for row, column in zip(rows, columns, strict=True)]
    indices = torch.tensor(assigned, dtype=torch.long).view(-1, 3)
    touching = torch.from_numpy(values)[tuple(indices.T)] > 0
    prompt, row, column = indices[touching].to(iou.device).T
    return Pairs(prompt, row, column, iou[prompt, row, column])


def compare(detections: Detections, reference: Detections) -> dict[str, Tensor]:
    """Sums over the matched masks of each prompt; zeros where one of the two is unknown.

    `iou`, `boundary` and `box` are sums of IoUs over pairs, `detections` and `references` are
    counts of detected masks, `semantic` is the IoU of the semantic maps, `positive` whether there
    is one in the reference. `gap`, `gap_signed` and `gap_pairs` are of the scores of all masks,
    detected or not, of one object with a detected mask of the reference: a score that is too low is
    no miss there.
    """
    known = detections.known & reference.known
    references = reference.detected & known[:, None]
    detected = detections.detected & known[:, None]
    iou = mask_iou(detections, reference)
    pairs = assign(iou, detected, references)
    masks = detections.masks[pairs.prompt, pairs.left], reference.masks[pairs.prompt, pairs.right]
    boxes = detections.boxes[pairs.prompt, pairs.left], reference.boxes[pairs.prompt, pairs.right]
    near = assign(iou * (iou >= SAME), torch.ones_like(detected), references)
    gap = detections.scores[near.prompt, near.left] - reference.scores[near.prompt, near.right]

    def total(prompt: Tensor, values: Tensor) -> Tensor:
        return torch.zeros(len(known), device=known.device).index_add_(0, prompt, values.float())

    positive = reference.semantic.flatten(1).any(dim=1) & known
    return {
        "iou": total(pairs.prompt, pairs.iou),
        "boundary": total(pairs.prompt, boundary_iou(*masks)),
        "box": total(pairs.prompt, box_iou(*boxes)),
        "detections": detected.sum(dim=1),
        "references": references.sum(dim=1),
        "semantic": paired_mask_iou(detections.semantic, reference.semantic) * positive,
        "positive": positive,
        "gap": total(near.prompt, gap.abs()),
        "gap_signed": total(near.prompt, gap),
        "gap_pairs": total(near.prompt, torch.ones_like(gap)),
        "present": detections.present,
        "reference_present": reference.present,
        "known": known,
    }


def joined(tables: Sequence[Table]) -> dict[str, Tensor]:
    """The rows of all tables, on the CPU."""
    return {name: torch.cat([table[name].cpu() for table in tables]) for name in tables[0]}


def rows_of(
    table: Table,
    rows: Tensor,  # [B] bool
) -> dict[str, Tensor]:
    """Some rows of a table."""
    return {name: column[rows] for name, column in table.items()}


def mask_metrics(table: Table) -> Metrics:
    """Of a comparison: the IoUs of instances, what extra masks cost, the semantic IoU."""
    sums = {name: float(column.cpu().double().sum()) for name, column in table.items()}
    both = sums["detections"] + sums["references"]
    return {
        "matched_iou": ratio(sums["iou"], sums["references"]),
        "extra_iou": ratio(sums["iou"], sums["detections"]),
        "agreement_iou": ratio(2 * sums["iou"], both),
        "boundary_iou": ratio(sums["boundary"], sums["references"]),
        "box_iou": ratio(sums["box"], sums["references"]),
        "semantic_iou": ratio(sums["semantic"], sums["positive"]),
        "score_gap": ratio(sums["gap"], sums["gap_pairs"]),
        "score_gap_signed": ratio(sums["gap_signed"], sums["gap_pairs"]),
    }


def presence_metrics(table: Table) -> Metrics:
    """How well presence is predicted; `presence_f1_always` is the F1 of always saying yes."""
    known = table["known"].bool()
    yes, truth = table["present"][known].bool(), table["reference_present"][known].bool()
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


# ---- SA-Co's classification-gated F1: masks and presence in one figure -----------------------
# Carion et al. 2025 (SAM 3: Segment Anything with Concepts, section on metrics), as their evaluator
# computes it: a mask counts from a score of 1/2 on; within a prompt masks and instances are
# assigned one to one so that the sum of IoUs is largest; a pair is a hit at each of ten IoU
# thresholds from .50 to .95 that it reaches. With hits TP, other masks FP, missed instances FN,
#
#     pmF1 = mean over thresholds of 2 TP / (2 TP + FP + FN), sums over prompts that have instances
#     IL-MCC = Matthews' correlation of «some mask counts» and «some instance is there», per prompt
#     cgF1 = pmF1 IL-MCC
#
# A model that finds everything everywhere has an IL-MCC of 0, so a cgF1 of 0, whatever its IoU with
# the truth. Their evaluator adds 1e-6 to 1e-4 to denominators; here a quotient without anything to
# divide by is None, and a correlation with a constant prediction 0.

CONFIDENT = 0.5  # the score from which on a mask counts
THRESHOLDS = torch.linspace(0.5, 0.95, 10)  # of the IoU


def concept_counts(detections: Detections, truth: Detections) -> Table:
    """Of each prompt: hits at every threshold [B, 10], masks and instances [B], whether known."""
    known = truth.known
    counted = (detections.scores >= CONFIDENT) & known[:, None]
    instances = truth.detected & known[:, None]
    pairs = assign(mask_iou(detections, truth), counted, instances)
    reached = pairs.iou[:, None].cpu() >= THRESHOLDS - 1e-6
    hits = torch.zeros(len(known), len(THRESHOLDS)).index_add_(
        0, pairs.prompt.cpu(), reached.float()
    )
    return {
        "hits": hits,
        "masks": counted.sum(1).cpu(),
        "instances": instances.sum(1).cpu(),
        "known": known.cpu(),
    }


def concept_metrics(table: Table) -> Metrics:
    """`cgf1`, `pmf1` and `il_mcc`; None without both prompts that have instances and others."""
    known = table["known"].bool()
    masks, instances = table["masks"][known], table["instances"][known]
    said, true = masks > 0, instances > 0
    hits = table["hits"][known].double().sum(0)
    wrong = masks[true].sum() - hits
    missed = instances.sum() - hits
    pmf1 = float((2 * hits / (2 * hits + wrong + missed)).mean()) if true.any() else None
    mcc = matthews(*(int((said == a).logical_and(true == b).sum()) for a, b in _CELLS))
    return {
        "cgf1": None if pmf1 is None or mcc is None else pmf1 * mcc,
        "pmf1": pmf1,
        "il_mcc": mcc,
    }


_CELLS = ((True, True), (False, False), (True, False), (False, True))


def matthews(tp: int, tn: int, fp: int, fn: int) -> float | None:
    """Correlation of two binary variables: 0 for a constant prediction, None for such a truth."""
    if not (tp + fn and tn + fp):
        return None
    spread = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return ratio(tp * tn - fp * fn, spread) or 0.0
