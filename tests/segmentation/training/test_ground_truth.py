"""The matching with ground truth and its loss, against slow references."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from braid.segmentation.data.prompted import GroundTruth
from braid.segmentation.sam3.geometry import dice, giou
from braid.segmentation.sam3.sam3 import Layer, Prediction
from braid.segmentation.training.ground_truth import (
    MATCHING,
    GroundTruthLoss,
    MatchingWeights,
    match_targets,
)

B, Q, M, G = 4, 5, 3, 6
COUNTS = (2, 3, 0, -1)


def random_boxes(generator, *shape):
    corners = torch.rand(*shape, 2, 2, generator=generator).sort(-2).values
    return corners.flatten(-2)


def some_truth(seed=0, counts=COUNTS):
    generator = torch.Generator().manual_seed(seed)
    count = torch.tensor(counts)
    real = torch.arange(M) < count[:, None]
    masks = torch.rand(len(counts), M, G, G, generator=generator) * real[:, :, None, None]
    boxes = random_boxes(generator, len(counts), M) * real[:, :, None]
    return GroundTruth(masks, boxes, count, masks.amax(1, keepdim=True))


def some_prediction(seed=1, prompts=B, layers=0):
    generator = torch.Generator().manual_seed(seed)

    def layer():
        logits = torch.randn(prompts, Q, generator=generator)
        presence = torch.randn(prompts, 1, generator=generator)
        return Layer(random_boxes(generator, prompts, Q), logits, presence)

    last, earlier = layer(), tuple(layer() for _ in range(layers))
    return Prediction(
        masks=3 * torch.randn(prompts, Q, G, G, generator=generator),
        boxes=last.boxes,
        logits=last.logits,
        presence=last.presence,
        semantic=torch.randn(prompts, 1, G, G, generator=generator),
        earlier=earlier,
    )


def perfect(truth, sure=30.0):
    """A prediction whose first queries are the truth, in reverse."""
    binary = (truth.masks > 0.5).float()
    truth = replace(truth, masks=binary, semantic=binary.amax(1, keepdim=True))
    real = (torch.arange(M) < truth.count[:, None]).flip(1)
    spare = Q - M
    masks = F.pad((truth.masks.flip(1) - 0.5) * 2 * sure, (0, 0, 0, 0, 0, spare))
    boxes = F.pad(truth.boxes.flip(1), (0, 0, 0, spare))
    logits = F.pad((real.float() - 0.5) * 2 * sure, (0, spare), value=-sure)
    presence = ((truth.count > 0).float()[:, None] - 0.5) * 2 * sure
    semantic = (truth.semantic - 0.5) * 2 * sure
    return truth, Prediction(masks, boxes, logits, presence, semantic)


def pair_cost(prediction, truth, b, q, m, weights):
    """One entry of the matching cost, spelled out."""
    mask, true = prediction.masks[b, q], truth.masks[b, m]
    p = mask.sigmoid()
    overlap = (2 * (p * true).sum() + 1) / (p.sum() + true.sum() + 1)
    return (
        -weights.score * prediction.logits[b, q].sigmoid()
        + weights.box * (prediction.boxes[b, q] - truth.boxes[b, m]).abs().sum()
        - weights.giou * giou(prediction.boxes[b, q], truth.boxes[b, m])
        + weights.dice * (1 - overlap)
        + weights.bce * F.binary_cross_entropy_with_logits(mask, true)
    ).item()


def matched(prediction, truth, weights=MATCHING):
    given = (prediction.masks, prediction.boxes, prediction.logits)
    pairs = match_targets(*given, truth.masks, truth.boxes, truth.count, weights)
    triples = zip(pairs.prompt, pairs.query, pairs.object, strict=True)
    return [tuple(map(int, triple)) for triple in triples]


WEIGHTS = MatchingWeights(score=1.3, box=2.0, giou=0.7, dice=3.0, bce=1.1)


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_is_the_cheapest_of_all(seed):
    truth, prediction = some_truth(seed), some_prediction(seed + 10)
    triples = matched(prediction, truth, WEIGHTS)
    for b, objects in enumerate(COUNTS):
        if objects < 1:
            assert all(prompt != b for prompt, _, _ in triples)
            continue

        def total(queries, b=b):
            pairs = enumerate(queries)
            return sum(pair_cost(prediction, truth, b, q, m, WEIGHTS) for m, q in pairs)

        best = min(itertools.permutations(range(Q), objects), key=total)
        assert {(q, m) for prompt, q, m in triples if prompt == b} == {
            (q, m) for m, q in enumerate(best)
        }


@pytest.mark.parametrize("name", ["score", "box", "giou", "dice", "bce"])
def test_each_cost_alone_finds_the_query_that_is_right_by_it(name):
    truth, prediction = some_truth(counts=(1,)), some_prediction(prompts=1)
    masks, boxes, logits = prediction.masks.clone(), prediction.boxes.clone(), prediction.logits
    masks[0, 3] = 20 * (truth.masks[0, 0] - 0.5)
    boxes[0, 3] = truth.boxes[0, 0]
    logits = torch.tensor([[0.0, 0.0, 0.0, 9.0, 0.0]])
    nothing = dict.fromkeys(("score", "box", "giou", "dice", "bce"), 0.0)
    weights = MatchingWeights(**{**nothing, name: 1.0})
    prediction = replace(prediction, masks=masks, boxes=boxes, logits=logits)
    assert matched(prediction, truth, weights) == [(0, 3, 0)]


def test_more_objects_than_queries_leave_some_out():
    truth, prediction = some_truth(counts=(3,)), some_prediction(prompts=1)
    few = replace(
        prediction,
        masks=prediction.masks[:, :2],
        boxes=prediction.boxes[:, :2],
        logits=prediction.logits[:, :2],
    )
    triples = matched(few, truth)
    assert len(triples) == 2
    assert {query for _, query, _ in triples} == {0, 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_query_without_numbers_is_no_match(value):
    truth, prediction = some_truth(), some_prediction()
    prediction.masks[:, 1] = value
    prediction.boxes[:, 2] = value
    assert all(query not in (1, 2) for _, query, _ in matched(prediction, truth) if _ < 2)
    assert len(matched(prediction, truth)) == 5


def test_terms_are_what_they_are_by_hand():
    truth, prediction = some_truth(), some_prediction()
    weights = {"box": 2.0, "giou": 3.0, "score": 4.0, "dice": 5.0}
    loss = GroundTruthLoss(**weights, bce=6.0, presence=7.0, semantic=8.0, spare=0.25)
    triples = matched(prediction, truth)
    b, q, m = (torch.tensor(column) for column in zip(*triples, strict=True))
    masks, true = prediction.masks[b, q], truth.masks[b, m]
    boxes, right = prediction.boxes[b, q], truth.boxes[b, m]
    target = torch.zeros(B, Q)
    target[b, q] = 1
    bce = F.binary_cross_entropy_with_logits
    scores = bce(prediction.logits[:2], target[:2], reduction="none")
    weight = torch.where(target[:2] > 0, 1.0, 0.25)
    area, covered = prediction.semantic[:3, 0], truth.semantic[:3, 0]
    whole = dice(area.sigmoid().flatten(1), covered.flatten(1)).mean()
    expected = {
        "box": 2 * F.l1_loss(boxes, right, reduction="none").sum(1).mean(),
        "giou": 3 * (1 - giou(boxes, right)).mean(),
        "score": 4 * (weight * scores).sum() / weight.sum(),
        "presence": 7 * bce(prediction.presence[:3, 0], torch.tensor([1.0, 1.0, 0.0])),
        "dice": 5 * dice(masks.sigmoid().flatten(1), true.flatten(1)).mean(),
        "bce": 6 * bce(masks, true),
        "semantic": 8 * (whole + bce(area, covered)),
    }
    terms = loss(prediction, truth)
    assert set(terms) == set(expected)
    for name, value in expected.items():
        assert_close(terms[name], value, msg=name)


def test_ground_truth_itself_costs_nothing():
    truth, prediction = perfect(some_truth(counts=(2, 3, 0, 1)))
    for name, term in GroundTruthLoss()(prediction, truth).items():
        assert term.item() == pytest.approx(0, abs=1e-5), name


def test_what_is_unknown_has_no_part_and_negatives_teach_presence_and_semantics_alone():
    truth, prediction = some_truth(), some_prediction(layers=1)
    values = (prediction.masks, prediction.boxes, prediction.logits)
    values += (prediction.presence, prediction.semantic)
    values += tuple(vars(prediction.earlier[0]).values())
    for tensor in values:
        tensor.requires_grad_()
    sum(GroundTruthLoss()(prediction, truth).values()).backward()
    for tensor in values:
        assert not tensor.grad[3].any()
    touched = {id(tensor): bool(tensor.grad[2].any()) for tensor in values}
    for tensor in (prediction.presence, prediction.semantic, prediction.earlier[0].presence):
        assert touched.pop(id(tensor))
    assert not any(touched.values())


def test_without_any_known_ground_truth_the_loss_is_zero_and_can_be_differentiated():
    truth, prediction = some_truth(counts=(-1, -1)), some_prediction(prompts=2)
    prediction.presence.requires_grad_()
    terms = GroundTruthLoss()(prediction, truth)
    total = sum(terms.values())
    total.backward()
    assert total.item() == 0
    assert not prediction.presence.grad.any()


def test_the_order_of_queries_and_objects_is_nothing():
    truth, prediction = some_truth(counts=(3, 3, 3, 3)), some_prediction(layers=1)
    queries, objects = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 0, 1])
    shuffled = replace(
        prediction,
        masks=prediction.masks[:, queries],
        boxes=prediction.boxes[:, queries],
        logits=prediction.logits[:, queries],
    )
    other = replace(truth, masks=truth.masks[:, objects], boxes=truth.boxes[:, objects])
    expected = GroundTruthLoss()(prediction, truth)
    for name, term in GroundTruthLoss()(shuffled, other).items():
        assert_close(term, expected[name], msg=name)


def test_earlier_layers_add_their_own_boxes_scores_and_presence():
    truth, prediction = some_truth(), some_prediction(layers=2)
    loss = GroundTruthLoss()
    terms, last = loss(prediction, truth), loss(replace(prediction, earlier=()), truth)
    for name in ("dice", "bce", "semantic"):
        assert_close(terms[name], last[name])
    blind = MatchingWeights(dice=0.0, bce=0.0)  # earlier layers have no masks to be matched by
    by_box = GroundTruthLoss(matching=blind)
    for name in ("box", "giou", "score", "presence"):
        alone = [
            by_box(replace(prediction, **vars(layer), earlier=()), truth)[name]
            for layer in prediction.earlier
        ]
        assert_close(terms[name], last[name] + sum(alone), msg=name)


def test_half_precision_is_compared_in_float32():
    truth, prediction = some_truth(), some_prediction()
    names = ("masks", "boxes", "logits", "presence", "semantic")
    half = replace(prediction, **{name: getattr(prediction, name).half() for name in names})
    widened = replace(half, **{name: getattr(half, name).float() for name in names})
    expected = GroundTruthLoss()(widened, truth)
    for name, term in GroundTruthLoss()(half, truth).items():
        assert term.dtype == torch.float32
        assert torch.equal(term, expected[name]), name


def test_masks_of_another_size_are_refused():
    truth = replace(some_truth(), masks=torch.zeros(B, M, 4, 4))
    with pytest.raises(ValueError, match=r"truth has masks of \(4, 4\), the prediction of \(6, 6"):
        GroundTruthLoss()(some_prediction(), truth)
