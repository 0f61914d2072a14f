"""cgF1, pmF1 and IL-MCC against cases by hand and a slow reading of the definition."""

import itertools
import math

import pytest
import torch

from braid.segmentation.metrics.agreement import (
    concept_counts,
    concept_metrics,
    joined,
    matthews,
    rows_of,
)
from tests.segmentation.detections import A, B, C, detections, generator, random_detections

SURE, DOUBT, EDGE = 0.9, 0.4, 0.5
HALF = (0, 0, 8, 4)  # of A: IoU .5
MOST = (0, 0, 8, 7)  # IoU .875: a hit at 8 of 10 thresholds


def metrics(predicted, truth):
    return concept_metrics(concept_counts(detections(*predicted), detections(*truth)))


def test_a_perfect_model_has_one_in_all_three():
    truth = [[(A, SURE), (B, SURE)], [], [(C, SURE)]]
    assert metrics(truth, truth) == {"cgf1": 1.0, "pmf1": 1.0, "il_mcc": 1.0}


def test_a_model_that_finds_everything_everywhere_has_nothing():
    """Its IoU with the truth is 1, on what is there."""
    truth = [[(A, SURE)], [], []]
    figures = metrics([[(A, SURE)]] * 3, truth)
    assert figures == {"cgf1": 0.0, "pmf1": 1.0, "il_mcc": 0.0}


def test_masks_where_nothing_is_lower_the_correlation_and_not_the_f1():
    truth = [[(A, SURE)], [(B, SURE)], [], []]
    figures = metrics([[(A, SURE)], [(B, SURE)], [(C, SURE), (A, SURE)], []], truth)
    mcc = (2 * 1 - 1 * 0) / math.sqrt((2 + 1) * 2 * (1 + 1) * 1)  # tp 2, tn 1, fp 1, fn 0
    assert figures["pmf1"] == 1
    assert figures["il_mcc"] == pytest.approx(mcc)
    assert figures["cgf1"] == pytest.approx(mcc)


def test_extra_and_missed_masks_count_at_every_threshold():
    truth = [[(A, SURE), (B, SURE)], [(C, SURE)], []]
    figures = metrics([[(A, SURE), (C, SURE)], [], []], truth)
    # TP 1, FP 1 where instances are, FN 2
    assert figures["pmf1"] == pytest.approx(2 / (2 + 1 + 2))
    assert figures["il_mcc"] == pytest.approx((1 * 1 - 0 * 1) / math.sqrt(1 * 2 * 1 * 2))


@pytest.mark.parametrize(("mask", "share"), [(HALF, 1 / 10), (MOST, 8 / 10), (A, 1)])
def test_a_mask_hits_at_the_thresholds_that_it_reaches(mask, share):
    figures = metrics([[(mask, SURE)], []], [[(A, SURE)], []])
    assert figures["pmf1"] == pytest.approx(share)  # F1 is 1 or 0 at each


def test_a_score_of_one_half_counts_and_a_lower_one_does_not():
    truth = [[(A, SURE)], []]
    assert metrics([[(A, EDGE)], []], truth)["cgf1"] == 1
    assert metrics([[(A, DOUBT)], []], truth) == {"cgf1": 0.0, "pmf1": 0.0, "il_mcc": 0.0}


def test_the_assignment_takes_the_largest_sum_of_overlaps():
    """MOST would be the better partner of A, but B-less HALF has no other."""
    truth = [[(A, SURE)], []]
    figures = metrics([[(HALF, SURE), (MOST, SURE)], []], truth)
    assert figures["pmf1"] == pytest.approx(0.8 * 2 / 3)


def test_without_negatives_or_positives_there_is_no_figure():
    assert metrics([[(A, SURE)]], [[(A, SURE)]]) == {"cgf1": None, "pmf1": 1.0, "il_mcc": None}
    nothing = {"cgf1": None, "pmf1": None, "il_mcc": None}
    assert metrics([[(A, SURE)]], [[]]) == nothing


def test_prompts_of_unknown_truth_have_no_part():
    truth = detections([(A, SURE)], [], [(B, SURE)], known=[True, True, False])
    predicted = detections([(A, SURE)], [], [(C, SURE)])
    assert concept_metrics(concept_counts(predicted, truth))["cgf1"] == 1


def slow(predicted, truth):
    """Prompt after prompt, threshold after threshold, over all one-to-one assignments."""
    f1, cells = [], dict.fromkeys(itertools.product((True, False), repeat=2), 0)
    rows = []
    for n in range(len(truth.known)):
        masks = [m for m, s in zip(predicted.masks[n], predicted.scores[n]) if s >= 0.5]  # noqa: B905
        things = [m for m, d in zip(truth.masks[n], truth.detected[n]) if d]  # noqa: B905
        iou = [[float((a & b).sum() / (a | b).sum()) for b in things] for a in masks]
        size = min(len(masks), len(things))
        best = max(
            (
                [iou[a][b] for a, b in zip(left, right, strict=True)]
                for left in itertools.permutations(range(len(masks)), size)
                for right in itertools.combinations(range(len(things)), size)
            ),
            key=sum,
        )
        rows.append((best, len(masks), len(things)))
        cells[bool(masks), bool(things)] += 1
    for threshold in [0.5 + 0.05 * k for k in range(10)]:
        tp = fp = fn = 0
        for best, masks, things in rows:
            hits = sum(value >= threshold - 1e-6 for value in best)
            tp, fn = tp + hits, fn + things - hits
            fp += masks - hits if things else 0
        f1.append(2 * tp / (2 * tp + fp + fn))
    pairs = ((True, True), (False, False), (True, False), (False, True))
    mcc = matthews(*(cells[pair] for pair in pairs))
    return sum(f1) / len(f1), mcc


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_those_of_the_definition(seed):
    predicted, truth = random_detections(seed, prompts=9), random_detections(seed + 7, prompts=9)
    near = predicted.masks.clone()
    near[:, ::2] = truth.masks[:, ::2] & (
        torch.rand(near[:, ::2].shape, generator=generator(seed)) > 0.2
    )
    some = {"masks": near, "scores": predicted.scores * (torch.arange(9) % 4 > 0)[:, None]}
    predicted = type(predicted)(**{**vars_of(predicted), **some})
    away = truth.detected & (torch.arange(9) % 3 > 0)[:, None]
    truth = type(truth)(**{**vars_of(truth), "detected": away})
    pmf1, mcc = slow(predicted, truth)
    figures = concept_metrics(concept_counts(predicted, truth))
    assert figures["pmf1"] == pytest.approx(pmf1)
    assert figures["il_mcc"] == pytest.approx(mcc)
    assert figures["cgf1"] == pytest.approx(pmf1 * mcc)


def vars_of(detections):
    names = ("masks", "boxes", "scores", "detected", "present", "semantic", "known")
    return {name: getattr(detections, name) for name in names}


def test_tables_of_batches_are_joined_and_split():
    truth = [[(A, SURE), (B, SURE)], [], [(C, SURE)], []]
    predicted = [[(MOST, SURE)], [(B, SURE)], [(C, SURE)], []]
    whole = concept_counts(detections(*predicted), detections(*truth))
    parts = [
        concept_counts(detections(*predicted[k : k + 2]), detections(*truth[k : k + 2]))
        for k in (0, 2)
    ]
    assert concept_metrics(joined(parts)) == concept_metrics(whole)
    last = rows_of(whole, torch.tensor([False, False, True, True]))
    assert concept_metrics(last)["cgf1"] == 1


def test_matthews_is_the_correlation_of_two_variables():
    said = torch.tensor([1.0] * 5 + [0] * 4 + [1] * 2 + [0] * 3)
    true = torch.tensor([1.0] * 5 + [0] * 4 + [0] * 2 + [1] * 3)
    expected = torch.corrcoef(torch.stack([said, true]))[0, 1].item()
    assert matthews(5, 4, 2, 3) == pytest.approx(expected, abs=1e-6)
