"""Matching against brute force, with broken numbers, and at small resolutions."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import matching as bench
from braid.segmentation.distillation.losses import assign
from braid.segmentation.sam3.geometry import area_means
from tests.segmentation.predictions import mapped, random_prediction, with_prompt, with_queries
from tests.segmentation.tiny_losses import some_matcher


def cheapest(cost):
    """The least sum over all one-to-one assignments."""
    if cost.shape[0] > cost.shape[1]:
        cost = cost.T
    rows = range(cost.shape[0])
    choices = itertools.permutations(range(cost.shape[1]), cost.shape[0])
    return min(sum(cost[i, j] for i, j in zip(rows, columns, strict=True)) for columns in choices)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (6, 6), (3, 7), (7, 3)])
def test_the_assignment_is_the_cheapest_of_all(shape):
    costs = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    rows, columns = assign(costs)
    assert rows.shape == columns.shape == (5, min(shape))
    for cost, i, j in zip(costs, rows, columns, strict=True):
        assert len(set(i.tolist())) == len(set(j.tolist())) == min(shape)
        assert cost[i, j].sum().item() == pytest.approx(cheapest(cost.numpy()), abs=1e-5)


def iou(a, b):
    width, height = (max(0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    hull = np.prod([max(a[k + 2], b[k + 2]) - min(a[k], b[k]) for k in (0, 1)])
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    union = sum(areas) - width * height
    return width * height / union - (hull - union) / hull


def test_the_cost_is_that_of_pair_after_pair():
    student, teacher = random_prediction(2, 4, 9, seed=1), random_prediction(2, 6, 12, seed=2)
    matcher = some_matcher(mask=1.5, box=2.0, giou=0.5, logit=3.0, size=6)
    cost = matcher.cost(student, teacher)
    p, q = (
        area_means(prediction.masks.double().sigmoid(), 6).numpy()
        for prediction in (student, teacher)
    )
    left, right = (
        prediction.logits.double().sigmoid().numpy() for prediction in (student, teacher)
    )
    for n, s, t in np.ndindex(2, 4, 6):
        both = (p[n, s] * q[n, t]).sum()
        overlap = both / ((p[n, s] ** 2).sum() + (q[n, t] ** 2).sum() - both)
        a, b = student.boxes[n, s].tolist(), teacher.boxes[n, t].tolist()
        expected = (
            1.5 * (1 - overlap)
            + 2.0 * sum(abs(x - y) for x, y in zip(a, b, strict=True))
            + 0.5 * (1 - iou(a, b))
            + 3.0 * abs(left[n, s] - right[n, t])
        )
        assert cost[n, s, t].item() == pytest.approx(expected, rel=1e-4)


def test_a_pair_with_nothing_in_common_costs_the_worst():
    def corner(at, logit, column):
        masks = torch.full((1, 1, 8, 8), -50.0)
        masks[..., column] = 50.0
        box = torch.tensor([[[at, at, at + 1e-4, at + 1e-4]]])
        return replace(
            random_prediction(1, 1, 8), masks=masks, boxes=box, logits=box[..., 0] * 0 + logit
        )

    cost = some_matcher().cost(corner(0.0, -50, 0), corner(1.0, 50, 1))
    assert cost.item() == pytest.approx(some_matcher().worst, rel=1e-3)


def surest(prediction, count):
    """The first prompt's highest logits, for a prediction with one order for all prompts."""
    return prediction.logits[0].argsort(descending=True)[:count].roll(1)


@pytest.mark.parametrize("teacher_side", [12, 9])
@pytest.mark.parametrize("count", [4, 9])
def test_the_surest_queries_find_themselves(teacher_side, count):
    teacher = random_prediction(1, 9, 12, seed=3)
    chosen = surest(teacher, count)
    student = with_queries(teacher, chosen)
    shown = replace(teacher, masks=area_means(teacher.masks.sigmoid(), teacher_side).logit())
    pairs = some_matcher(size=8)(student, shown)
    assert pairs.rows.tolist() == [list(range(count))]
    assert torch.equal(pairs.columns[0], chosen)
    expected = (teacher.logits.sigmoid() * teacher.presence.sigmoid())[:, chosen]
    torch.testing.assert_close(pairs.weight, expected)


def test_what_the_teacher_is_sure_of_is_left_to_nobody():
    """The student is unlike the one sure query and just like the five doubtful ones."""
    teacher = random_prediction(1, 6, 12, seed=4)
    student = with_queries(teacher, torch.tensor([0, 1, 2]))
    logits = torch.tensor([[-3.0, -3.0, -3.0, -3.0, -3.0, 3.0]])
    teacher = replace(teacher, logits=logits)
    student = replace(student, logits=logits[:, :3])
    assert 5 in some_matcher()(student, teacher).columns
    equally = assign(some_matcher().cost(student, teacher))[1]
    assert equally.tolist() == [[0, 1, 2]]


def test_a_teacher_of_few_queries_leaves_students_alone():
    teacher = random_prediction(2, 3, 12, seed=5)
    student = random_prediction(2, 6, 12, seed=6)
    student.masks[:, 3:], student.boxes[:, 3:] = teacher.masks, teacher.boxes
    student.logits[:, 3:] = teacher.logits
    pairs = some_matcher()(student, teacher)
    assert pairs.rows.tolist() == [[3, 4, 5]] * 2
    assert pairs.columns.tolist() == [[0, 1, 2]] * 2


def test_prompts_do_not_touch_one_another():
    student, teacher = random_prediction(4, 5, 9, seed=1), random_prediction(4, 8, 12, seed=2)
    together = some_matcher()(student, teacher)
    for prompt in range(4):
        alone = some_matcher()(with_prompt(student, prompt), with_prompt(teacher, prompt))
        assert torch.equal(alone.columns[0], together.columns[prompt])


def test_the_order_of_queries_is_nothing():
    student, teacher = random_prediction(2, 5, 9, seed=1), random_prediction(2, 8, 12, seed=2)
    columns = some_matcher()(student, teacher).columns
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    assert torch.equal(
        order[some_matcher()(student, with_queries(teacher, order)).columns], columns
    )
    turned = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(
        some_matcher()(with_queries(student, turned), teacher).columns, columns[:, turned]
    )


PLACES = {"masks": (0, 2, 4, 4), "boxes": (0, 2, 1), "logits": (0, 2)}


def broken(prediction, name, value):
    """One number of query 2 of prompt 0 spoiled."""
    spoiled = getattr(prediction, name).clone()
    spoiled[PLACES[name]] = value
    return replace(prediction, **{name: spoiled})


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("weight", [1.0, 0.0])  # whether that number counts or not
def test_a_broken_query_is_matched_last(name, weight):
    setting = {"masks": "mask", "boxes": "box", "logits": "logit"}[name]
    matcher = some_matcher(**{setting: weight})
    few, many = random_prediction(2, 5, 9, seed=1), random_prediction(2, 8, 9, seed=2)
    others = torch.tensor([0, 1, 3, 4])

    spoiled = matcher(broken(few, name, float("nan")), many)
    healthy = matcher(with_queries(few, others), many)
    assert torch.equal(spoiled.columns[0, others], healthy.columns[0])
    assert torch.equal(spoiled.columns[1], matcher(few, many).columns[1])

    assert 2 not in matcher(few, broken(many, name, float("nan"))).columns[0]
    assert 2 not in matcher(broken(many, name, float("nan")), few).rows[0]


def test_infinite_boxes_are_broken_too():
    few, many = random_prediction(2, 5, 9, seed=1), random_prediction(2, 8, 9, seed=2)
    assert 2 not in some_matcher()(broken(many, "boxes", float("inf")), few).rows[0]


def test_nothing_but_broken_numbers_is_matched_somehow():
    nothing = mapped(
        random_prediction(2, 5, 9), lambda tensor: torch.full_like(tensor, float("nan"))
    )
    pairs = some_matcher()(nothing, random_prediction(2, 8, 9))
    assert all(len(set(columns)) == 5 for columns in pairs.columns.tolist())


def test_one_broken_pair_is_dearer_than_all_others():
    cost = torch.tensor([[[0.0, 100.0], [float("inf"), -100.0]]])
    assert assign(cost)[1].tolist() == [[0, 1]]
    cost = torch.tensor([[[-1000.0, 100.0], [100.0, float("nan")]]])
    assert assign(cost)[1].tolist() == [[1, 0]]


@pytest.mark.parametrize("name", ["mask", "box", "giou", "logit", "size"])
def test_every_setting_changes_the_cost(name):
    student, teacher = random_prediction(1, 5, 9, seed=1), random_prediction(1, 8, 12, seed=2)
    base = some_matcher(size=6)
    other = some_matcher(**{"size": 6, name: 3 if name == "size" else 0.7})
    assert not torch.allclose(base.cost(student, teacher), other.cost(student, teacher))
    if name != "size":
        assert base.worst != other.worst


def test_half_precision_comes_in_and_autocast_is_off():
    student, teacher = random_prediction(2, 5, 9, seed=1), random_prediction(2, 8, 12, seed=2)
    expected = some_matcher()(student, teacher)
    for lowered in (torch.Tensor.half, torch.Tensor.bfloat16):
        pairs = some_matcher()(mapped(student, lowered), mapped(teacher, lowered))
        assert pairs.weight.dtype == torch.float32
        assert torch.equal(pairs.columns, expected.columns)
    cost = some_matcher(size=8).cost(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(some_matcher(size=8).cost(student, teacher), cost)


def test_masks_of_64_px_from_a_cache_match_as_full_resolution_does():
    same = []
    for seed in range(3):
        student, teacher = bench.scene(seed, 8)
        assert student.masks.shape == (1, 20, 252, 252)
        small = bench.cached(teacher)
        columns = some_matcher()(student, small).columns
        same.append(columns == bench.FULL(student, teacher).columns)
    assert torch.cat(same).float().mean() >= 0.99
    assert torch.equal(bench.loop(bench.SMALL, student, small), columns)
