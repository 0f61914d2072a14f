"""Scores, and the fraction of masks that are right."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from braid.segmentation.evaluation.evaluator import joined_scores, reliability, score_masks
from braid.segmentation.metrics.agreement import mask_iou
from tests.segmentation.detections import A, B, C, detections, generator, random_detections


def test_the_surest_mask_of_an_object_is_right_and_its_duplicates_are_wrong():
    rough = (0, 0, 8, 5)  # IoU 5/8 with A
    poor = (0, 0, 8, 3)  # IoU 3/8 with A
    predicted = detections([(A, 0.6), (rough, 0.9), (poor, 0.95), (B, 0.3)], [(C, 0.9)], [(A, 0.9)])
    real = detections([(A, 1.0), (B, 1.0)], [], [(B, 1.0)], known=[True, True, False])
    scored = score_masks(predicted, real)
    assert scored.right[:4].tolist() == [False, True, False, True]
    assert scored.detected[:4].tolist() == [True, True, True, False]
    assert not scored.right[4:].any()
    assert len(scored.scores) == 8  # 4 queries of the two prompts whose truth is known


def test_right_masks_are_those_of_a_greedy_loop_over_instances():
    predicted, real = random_detections(1, queries=6), random_detections(2, queries=3)
    predicted.masks[:, :3] = real.masks[:, [0, 0, 1]]  # two of one object, one of another
    predicted.masks[:, :3, :2] ^= torch.rand(6, 3, 2, 8, generator=generator(3)) > 0.7
    iou = mask_iou(predicted, real) * real.detected[:, None]
    expected = torch.zeros(6, 6, dtype=torch.bool)
    for b in range(6):
        for instance in range(3):
            hits = [
                q for q in range(6) if iou[b, q].argmax() == instance and iou[b, q, instance] >= 0.5
            ]
            if hits:
                expected[b, max(hits, key=lambda q: float(predicted.scores[b, q]))] = True
    right = score_masks(predicted, real).right.view(6, 6)
    assert expected.any()
    assert torch.equal(right, expected)


def test_ground_truth_without_any_instance_makes_every_mask_wrong():
    predicted, real = detections([(A, 0.9)], [(B, 0.8)]), detections([], [])
    real = replace(real, masks=real.masks[:, :0], detected=real.detected[:, :0])
    assert score_masks(predicted, real).right.tolist() == [False, False]


def test_the_error_is_that_of_the_formula():
    scores = torch.rand(500, generator=generator(4))
    right = torch.rand(500, generator=generator(5)) < scores**2
    values, hits, error = scores.numpy(), right.numpy(), 0.0
    for low in np.arange(7) / 7:
        inside = (values >= low) & (values < low + 1 / 7)
        error += inside.mean() * abs(values[inside].mean() - hits[inside].mean())
    predicted = reliability(scores, right, 7)
    assert predicted.error() == pytest.approx(error)
    rows = predicted.rows()
    assert [row["bin"] for row in rows] == list(range(7))
    assert sum(row["count"] for row in rows) == 500
    assert all(row["accuracy"] < row["confidence"] for row in rows[1:6])  # as made


def test_honest_scores_have_no_error_and_overconfident_ones_have_all_of_it():
    honest = torch.full((100,), 0.25)
    quarter = torch.arange(100) % 4 == 0
    assert reliability(honest, quarter, 10).error() == pytest.approx(0)
    assert reliability(torch.ones(100), quarter, 10).error() == pytest.approx(0.75)
    assert reliability(torch.ones(100), ~torch.zeros(100).bool(), 10).error() == 0


def test_empty_bins_have_no_fraction_and_no_masks_no_error():
    rows = reliability(torch.tensor([0.0, 0.05, 1.0]), torch.tensor([False, False, True]), 4).rows()
    assert [row["count"] for row in rows] == [2, 0, 0, 1]
    assert rows[1]["confidence"] is None
    assert rows[3] == {"bin": 3, "confidence": 1.0, "accuracy": 1.0, "count": 1}
    assert reliability(torch.zeros(0), torch.zeros(0).bool(), 4).error() is None


def test_parts_join_to_the_whole():
    predicted, real = random_detections(6), random_detections(7)
    whole = score_masks(predicted, real)
    rows = [torch.arange(2), torch.arange(2, 6)]
    parts = joined_scores([score_masks(predicted.take(some), real.take(some)) for some in rows])
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
