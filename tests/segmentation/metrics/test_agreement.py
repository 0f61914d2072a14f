"""How detections are compared with ground truth and with another model's detections."""

import itertools

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion

from braid.segmentation.data.prompted import GroundTruth
from braid.segmentation.metrics.agreement import (
    Detections,
    assign,
    compare,
    joined,
    mask_iou,
    mask_metrics,
    predicted_detections,
    presence_metrics,
    true_detections,
)
from braid.segmentation.sam3.geometry import band_width, boundary_iou, box_iou, inner_band
from braid.segmentation.sam3.sam3 import Prediction
from tests.segmentation.detections import (
    SIDE,
    A,
    B,
    C,
    detections,
    generator,
    random_detections,
    rectangle,
)


def test_masks_overlap_as_sets_of_pixels():
    one, other = random_detections(1), random_detections(2)
    left, right, iou = one.masks, other.masks, mask_iou(one, other)
    for b, i, j in itertools.product(range(6), range(5), range(5)):
        common = (left[b, i] & right[b, j]).sum()
        assert iou[b, i, j] == pytest.approx(float(common / (left[b, i] | right[b, j]).sum()))
    assert mask_iou(detections([]), detections([])).sum() == 0
    assert torch.equal(one.union, (left & one.detected[..., None, None]).any(1))


def test_pairs_are_the_best_of_all_assignments():
    iou = torch.rand(4, 3, 5, generator=generator(3))
    left, right = torch.ones(4, 3).bool(), torch.ones(4, 5).bool()
    left[1, 2] = right[2, :3] = right[3, :] = False
    pairs = assign(iou, left, right)
    for b in range(4):
        allowed = iou[b] * left[b][:, None] * right[b]
        best = max(
            sum(float(allowed[i, j]) for i, j in enumerate(order))
            for order in itertools.permutations(range(5), 3)
        )
        assert float(pairs.iou[pairs.prompt == b].sum()) == pytest.approx(best)
    assert left[pairs.prompt, pairs.left].all()
    assert right[pairs.prompt, pairs.right].all()
    assert torch.equal(pairs.iou, iou[pairs.prompt, pairs.left, pairs.right])


def test_masks_that_do_not_touch_are_not_paired():
    table = compare(detections([(A, 1.0)]), detections([(B, 1.0)]))
    assert table["iou"] == 0
    assert table["box"] == 0
    assert (
        len(assign(torch.zeros(2, 3, 4), torch.ones(2, 3).bool(), torch.ones(2, 4).bool()).iou) == 0
    )


def test_missed_and_extra_masks_count_zero():
    half = (0, 0, 8, 4)  # of A
    predicted = detections([(half, 0.9), (C, 0.9)], [(A, 0.9)], [(A, 0.4)])
    real = detections([(A, 1.0), (B, 1.0)], [(A, 1.0)], [(A, 1.0)])
    table = compare(predicted, real)
    assert table["iou"].tolist() == [0.5, 1.0, 0.0]
    assert table["box"].tolist() == pytest.approx([0.5, 1.0, 0.0])
    metrics = mask_metrics(table)
    assert metrics["matched_iou"] == pytest.approx(1.5 / 4)
    assert metrics["extra_iou"] == pytest.approx(1.5 / 3)
    assert metrics["agreement_iou"] == pytest.approx(3.0 / 7)
    union = 2 * 64 + 60 - 32  # A or B or C, as half is in A
    assert table["semantic"].tolist() == pytest.approx([32 / (union - 60 + 60 + 32), 1.0, 0.0])


def test_agreement_is_symmetric_and_perfect_with_itself_alone():
    one, other = random_detections(4), random_detections(5)
    here, there = mask_metrics(compare(one, other)), mask_metrics(compare(other, one))
    assert here["agreement_iou"] == pytest.approx(there["agreement_iou"])
    assert here["matched_iou"] == pytest.approx(there["extra_iou"])
    assert 0 < here["agreement_iou"] < 1
    itself = mask_metrics(compare(one, one))
    for name in ("matched_iou", "extra_iou", "agreement_iou", "boundary_iou", "box_iou"):
        assert itself[name] == pytest.approx(1), name
    assert itself["score_gap"] == itself["score_gap_signed"] == 0


def test_the_order_of_queries_and_of_prompts_does_not_matter():
    one, other = random_detections(6), random_detections(7)
    order = torch.randperm(5, generator=generator(8))
    shuffled = Detections(
        one.masks[:, order],
        one.boxes[:, order],
        one.scores[:, order],
        one.detected[:, order],
        one.present,
        one.semantic,
        one.known,
    )
    expected = mask_metrics(compare(one, other))
    assert mask_metrics(compare(shuffled, other)) == pytest.approx(expected)
    rows = torch.randperm(6, generator=generator(9))
    parts = [compare(one.take(some), other.take(some)) for some in rows.split(4)]
    assert mask_metrics(joined(parts)) == pytest.approx(expected)


def test_prompts_whose_ground_truth_is_unknown_do_not_count():
    predicted = detections([(A, 0.9)], [(A, 0.9)])
    real = detections([(A, 1.0)], [(B, 1.0)], known=[True, False])
    table = compare(predicted, real)
    assert mask_metrics(table)["agreement_iou"] == 1
    assert table["detections"].tolist() == [1, 0]
    assert table["positive"].tolist() == [True, False]
    assert presence_metrics(table)["presence_precision"] == 1


def test_scores_are_compared_on_masks_of_one_object_detected_or_not():
    low = detections([(A, 0.2), (B, 0.9)], [(C, 0.1)])
    high = detections([(A, 0.8), (B, 0.8)], [(B, 0.9)])
    table = compare(low, high)
    assert table["gap_pairs"].tolist() == [2, 0]
    assert mask_metrics(table)["score_gap"] == pytest.approx((0.6 + 0.1) / 2)
    assert mask_metrics(table)["score_gap_signed"] == pytest.approx((-0.6 + 0.1) / 2)


def test_boxes_overlap_as_rectangles():
    left = torch.tensor(
        [[0.0, 0.0, 0.5, 0.5], [0, 0, 1, 1], [0, 0, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]]
    )
    right = torch.tensor([[0.25, 0.0, 0.75, 0.5], [0, 0, 1, 1], [0.5, 0.5, 1, 1], [0, 0, 1, 1]])
    assert box_iou(left, right).tolist() == pytest.approx([1 / 3, 1, 0, 0])


def test_the_band_is_what_repeated_erosion_takes_away():
    masks = torch.rand(5, 40, 30, generator=generator(10)) > 0.03
    for width in (1, 2, 4):
        band = inner_band(masks, width)
        for mask, pixels in zip(masks.numpy(), band.numpy(), strict=True):
            inside = binary_erosion(mask, np.ones((3, 3)), iterations=width, border_value=0)
            assert np.array_equal(pixels, mask & ~inside)
    assert band_width(480, 640) == 16
    assert band_width(4, 4) == 1


def test_boundary_iou_falls_with_a_shifted_edge_that_mask_iou_hardly_does():
    disc = rectangle(10, 10, 90, 90, side=100)
    shifted = rectangle(12, 10, 92, 90, side=100)
    mask = float((disc & shifted).sum() / (disc | shifted).sum())
    edge = float(boundary_iou(disc[None], shifted[None]))
    outline = 80**2 - 74**2  # d is 3
    common = 2 * 3 * 78 + 2 * 1 * 74  # top and bottom, and of the 3 columns at each side 1
    assert edge == pytest.approx(common / (2 * outline - common))
    assert mask > 0.95
    assert edge < 0.75


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ([True, True, False, False], (0.5, 0.5, 0.5)),
        ([True, True, True, True], (0.5, 1.0, 0.5)),
        ([True, False, True, False], (1.0, 1.0, 1.0)),
        ([False, False, False, False], (None, 0.0, 0.5)),
    ],
)
def test_presence_is_evaluated_with_negatives(present, expected):
    predicted = detections([], [], [], [], present=present)
    real = detections([(A, 1.0)], [], [(B, 1.0)], [])
    metrics = presence_metrics(compare(predicted, real))
    names = ("presence_precision", "presence_recall", "presence_balanced_accuracy")
    assert tuple(metrics[name] for name in names) == expected
    assert metrics["presence_f1_always"] == pytest.approx(2 / 3)
    if all(present):
        assert metrics["presence_f1"] == metrics["presence_f1_always"]


def test_without_anything_to_divide_by_a_metric_is_none():
    nothing = compare(detections([], []), detections([], []))
    assert set(mask_metrics(nothing).values()) == {None}
    assert presence_metrics(nothing)["presence_balanced_accuracy"] is None


def test_a_prediction_is_brought_to_the_grid_of_ground_truth():
    logits = torch.full((1, 2, 6, 6), -3.0)
    logits[0, 0, :3], logits[0, 1, :, :3] = 3.0, 3.0
    given = Prediction(
        masks=logits,
        boxes=torch.rand(1, 2, 4, generator=generator()),
        logits=torch.tensor([[4.0, 0.0]]),
        presence=torch.tensor([[2.0]]),
        semantic=logits[:, :1],
    )
    predicted = predicted_detections(given, score=0.5, size=SIDE)
    assert torch.equal(predicted.masks[0, 0], rectangle(0, 0, SIDE, SIDE // 2))
    assert torch.equal(predicted.union[0], predicted.masks[0, 0])
    assert predicted.detected.tolist() == [[True, False]]
    assert predicted_detections(given, score=0.3, size=SIDE).detected.all()
    assert predicted.present.tolist() == [True]
    assert torch.equal(predicted.semantic[0], predicted.masks[0, 0])


def test_ground_truth_has_its_negatives_and_unknowns():
    masks = torch.zeros(3, 2, 4, 4)
    masks[0, 0, 0], masks[0, 0, 1], masks[0, 1, 3] = 1.0, 0.4, 0.5
    truth = GroundTruth(
        masks, torch.zeros(3, 2, 4), torch.tensor([2, 0, -1]), masks.amax(1, keepdim=True)
    )
    real = true_detections(truth)
    assert real.detected.tolist() == [[True, True], [False, False], [False, False]]
    assert real.masks[0].sum(dim=(1, 2)).tolist() == [4, 4]
    assert real.union[0].sum() == 8
    assert real.present.tolist() == [True, False, False]
    assert real.known.tolist() == [True, True, False]
