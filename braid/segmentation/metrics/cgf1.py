"""SA-Co's classification-gated F1: masks and presence in one figure, false positives among them.

Carion et al. 2025 (SAM 3: Segment Anything with Concepts, section on metrics), as their evaluator
computes it: a mask counts from a score of 1/2 on; within a prompt masks and instances are assigned
one to one so that the sum of IoUs is largest; a pair is a hit at each of ten IoU thresholds from
.50 to .95 that it reaches. With hits TP, other masks FP, instances that are missed FN,

    pmF1 = mean over thresholds of  2 TP / (2 TP + FP + FN),   sums over prompts that have instances
    IL-MCC = Matthews' correlation of «some mask counts» and «some instance is there», per prompt
    cgF1 = pmF1 IL-MCC

A model that finds everything everywhere has an IL-MCC of 0, so a cgF1 of 0, whatever its IoU with
the truth. Their evaluator adds 1e-6 to 1e-4 to denominators; here a quotient without anything to
divide by is None, and a correlation with a constant prediction 0.
"""

from __future__ import annotations

import math

import torch

from braid.segmentation.metrics.agreement import Detections, Metrics, Table, assign, mask_iou, ratio

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
