"""The nine terms against float64 formulas, and what must leave them at rest."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from braid.segmentation.distillation.losses import (
    NO_OBJECT,
    DistillationLoss,
    divergence,
    feature_error,
)
from braid.segmentation.sam3.geometry import giou, resized
from braid.segmentation.sam3.sam3 import predict
from tests.segmentation.predictions import (
    learning,
    leaves,
    mapped,
    random_prediction,
    with_prompt,
    with_queries,
)
from tests.segmentation.tiny_losses import LOSSES, some_loss
from tests.segmentation.tiny_models import some_images, some_prompts, tiny_teacher

NAMES = ["mask", "box", "giou", "logit", "presence", "semantic", "fpn", "encoder", "text"]
LOSS = some_loss(8)
SEEDS = some_loss(8, presence_loss="mse")
ONES = some_loss(8, **dict.fromkeys(NAMES, 1.0))


def student_and_teacher(prompts=2, queries=(4, 7), sides=(14, 16)):
    student = random_prediction(
        prompts, queries[0], sides[0], seed=1, features=(6, sides[0], prompts)
    )
    teacher = random_prediction(
        prompts, queries[1], sides[1], seed=2, features=(6, sides[1], prompts)
    )
    return student, teacher


def numpy(tensor):
    return tensor.detach().double().numpy()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def kl(student, teacher):
    p, q = sigmoid(teacher), sigmoid(student)
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def overlap(student, teacher):
    """Dice + divergence of two maps of logits."""
    p, q = sigmoid(student), sigmoid(teacher)
    dice = 1 - (2 * (p * q).sum() + 1) / ((p**2).sum() + (q**2).sum() + 1)
    return dice + kl(student, teacher).mean()


def slow(student, teacher):
    """All terms, unweighted, prompt after prompt and pair after pair."""
    pairs = LOSS.matcher(student, teacher)
    side = teacher.masks.shape[-1]
    masks, maps = (numpy(resized(logits, side)) for logits in (student.masks, student.semantic))
    sums = dict.fromkeys(NAMES, 0.0)
    prompts = len(student.logits)
    for n in range(prompts):
        targets = np.full(student.logits.shape[1], NO_OBJECT)
        weights = sigmoid(numpy(teacher.logits[n])) * sigmoid(numpy(teacher.presence[n]))
        objects = max(1.0, weights[pairs.columns[n].numpy()].sum())
        for s, t in zip(pairs.rows[n].tolist(), pairs.columns[n].tolist(), strict=True):
            weight = weights[t] / objects / prompts
            a, b = student.boxes[n, s], teacher.boxes[n, t]
            sums["mask"] += weight * overlap(masks[n, s], numpy(teacher.masks[n, t]))
            sums["box"] += weight * np.abs(numpy(a) - numpy(b)).sum()
            sums["giou"] += weight * (1 - giou(a, b).item())
            targets[s] = teacher.logits[n, t]
        sums["logit"] += kl(numpy(student.logits[n]), targets).sum() / objects / prompts
        presence = numpy(student.presence[n]), numpy(teacher.presence[n])
        sums["presence"] += kl(*presence).item() / prompts
        squares = (numpy(student.text[n]) - numpy(teacher.text[n])) ** 2
        sums["text"] += squares[numpy(teacher.attention[n]) > 0].mean() / prompts
        sums["semantic"] += overlap(maps[n], numpy(teacher.semantic[n])) / prompts
    for x, y in zip(student.fpn, teacher.fpn, strict=True):
        sums["fpn"] += feature_error(x, y).item() / 3
    sums["encoder"] = feature_error(student.encoder, teacher.encoder).item()
    return sums


@pytest.mark.parametrize("queries", [(4, 7), (5, 5), (6, 3)])
@pytest.mark.parametrize("sides", [(14, 16), (16, 12)])  # finer, and coarser as in a cache
def test_the_terms_are_those_of_the_formulas(queries, sides):
    student, teacher = student_and_teacher(queries=queries, sides=sides)
    terms, expected = ONES(student, teacher), slow(student, teacher)
    assert list(terms) == NAMES
    for name in NAMES:
        assert terms[name].item() == pytest.approx(expected[name], rel=1e-4), name
        assert terms[name].dtype == torch.float32


def test_a_score_above_one_object_is_divided_by_their_number():
    student, teacher = student_and_teacher()
    sure = replace(teacher, logits=torch.full((2, 7), 9.0), presence=torch.full((2, 1), 9.0))
    pairs = LOSS.matcher(student, sure)
    boxes = [student.boxes[n, pairs.rows[n]] - sure.boxes[n, pairs.columns[n]] for n in (0, 1)]
    expected = torch.stack(boxes).abs().sum(-1).mean()
    assert ONES(student, sure)["box"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_weights_act_linearly():
    student, teacher = student_and_teacher()
    plain, weighted = ONES(student, teacher), LOSS(student, teacher)
    weights = dict(zip(NAMES, (5.0, 5.0, 2.0, 2.0, 1.0, 2.0, 1.0, 1.0, 10.0), strict=True))
    for name, weight in weights.items():
        assert torch.equal(weighted[name], weight * plain[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_of_zero_leaves_its_term_out(name):
    student, teacher = student_and_teacher()
    terms = some_loss(8, **{name: 0.0})(student, teacher)
    assert list(terms) == [other for other in NAMES if other != name]


def test_what_has_no_weight_is_not_computed():
    def never(*_):
        raise AssertionError

    pairs = dict.fromkeys(("mask", "box", "giou", "logit"), 0.0)
    terms = DistillationLoss(never, LOSSES.model_copy(update=pairs))(*student_and_teacher())
    assert list(terms) == NAMES[4:]


@pytest.mark.parametrize("bare", ["student", "teacher"])
def test_features_are_compared_where_both_have_them(bare):
    both = dict(zip(("student", "teacher"), student_and_teacher(), strict=True))
    both[bare] = replace(both[bare], fpn=(), encoder=None, text=None)
    assert list(LOSS(**both)) == NAMES[:6]
    both[bare] = replace(both[bare], fpn=both["teacher"].fpn or both["student"].fpn)
    assert list(LOSS(**both)) == NAMES[:7]


def surest(prediction, count):
    return prediction.logits[0].argsort(descending=True)[:count].roll(1)


@pytest.mark.parametrize("side", [12, 7])  # the teacher's masks as they are, and from a cache
@pytest.mark.parametrize("count", [4, 9])  # its surest queries, and all
def test_a_student_that_predicts_like_the_teacher_is_at_rest(side, count):
    teacher = random_prediction(1, 9, 12, seed=3, features=(6, 12, 1))
    student = learning(with_queries(teacher, surest(teacher, count)))
    small = {name: resized(getattr(teacher, name), side) for name in ("masks", "semantic")}
    terms = LOSS(student, replace(teacher, **small))
    assert list(terms) == NAMES
    for name, term in terms.items():
        assert abs(term.item()) < 2e-6, name
    sum(terms.values()).backward()
    for leaf in leaves(student):
        assert leaf.grad.abs().max() < 1e-5


def test_saturated_predictions_are_at_rest_too():
    teacher = mapped(random_prediction(1, 5, 12, seed=3), lambda tensor: tensor)
    teacher = replace(teacher, masks=30 * teacher.masks, logits=torch.full((1, 5), 12.0))
    student = learning(teacher)
    total = sum(LOSS(student, teacher).values())
    total.backward()
    assert abs(total.item()) < 1e-5
    assert all(leaf.grad.abs().max() < 1e-5 for leaf in leaves(student))


def test_divergence_has_the_gradient_of_cross_entropy_and_is_never_below_zero():
    source = torch.Generator().manual_seed(0)
    logits, teacher = 5 * torch.randn(2, 500, generator=source)
    logits.requires_grad_()
    values = divergence(logits, teacher)
    expected = torch.from_numpy(kl(numpy(logits), numpy(teacher)))
    assert (values.detach().double() - expected).abs().max() < 1e-5
    assert values.min() > -1e-6
    values.sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().sigmoid() - teacher.sigmoid())
    assert torch.equal(divergence(teacher, teacher), torch.zeros(500))


def test_the_order_of_the_teachers_queries_is_nothing():
    student, teacher = student_and_teacher()
    turned = with_queries(teacher, torch.tensor([3, 1, 6, 0, 2, 5, 4]))
    terms, again = LOSS(student, teacher), LOSS(student, turned)
    assert all(torch.equal(terms[name], again[name]) for name in NAMES)


def test_a_batch_is_the_mean_of_its_prompts():
    student, teacher = student_and_teacher(prompts=3)
    terms = LOSS(student, teacher)
    alone = [LOSS(with_prompt(student, n), with_prompt(teacher, n)) for n in range(3)]
    for name in NAMES:
        mean = torch.stack([terms_of_one[name] for terms_of_one in alone]).mean()
        torch.testing.assert_close(terms[name], mean, rtol=1e-5, atol=1e-6)


def test_the_teacher_learns_nothing_and_the_student_everything():
    student, teacher = map(learning, student_and_teacher())
    before = [leaf.detach().clone() for leaf in leaves(teacher)]
    sum(LOSS(student, teacher).values()).backward()
    assert all(leaf.grad is None for leaf in leaves(teacher))
    assert all(torch.equal(*both) for both in zip(before, leaves(teacher), strict=True))
    assert all(leaf.grad.abs().sum() > 0 for leaf in leaves(student))


def test_half_precision_comes_in_and_autocast_is_off():
    student, teacher = student_and_teacher(sides=(16, 12))
    expected = LOSS(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        terms = LOSS(student, teacher)
    assert all(torch.equal(terms[name], expected[name]) for name in NAMES)

    def at(precision):
        return lambda tensor: tensor.to(precision) if tensor.is_floating_point() else tensor

    lower, halves = learning(mapped(student, at(torch.half))), mapped(teacher, at(torch.half))
    terms = LOSS(lower, halves)
    exact = LOSS(mapped(lower, at(torch.float)), mapped(halves, at(torch.float)))
    assert all(terms[name].dtype == torch.float32 for name in NAMES)
    assert all(torch.equal(terms[name], exact[name]) for name in NAMES)
    sum(terms.values()).backward()
    assert all(leaf.grad.dtype == torch.float16 for leaf in leaves(lower))


def test_a_query_without_a_partner_learns_that_there_is_nothing():
    student, teacher = student_and_teacher(prompts=1, queries=(6, 3))
    student = learning(student)
    rows = LOSS.matcher(student, teacher).rows[0].tolist()
    sum(LOSS(student, teacher).values()).backward()
    for query in set(range(6)) - set(rows):
        assert student.masks.grad[0, query].abs().max() == 0
        assert student.boxes.grad[0, query].abs().max() == 0
        assert student.logits.grad[0, query] > 0.01


def test_what_is_nothing_to_the_teacher_counts_by_its_weight_in_the_logits():
    student, teacher = student_and_teacher(prompts=1, queries=(6, 3))
    pairs = LOSS.matcher(student, teacher)
    whole, none, third = (
        some_loss(8, spare=spare)(student, teacher)["logit"].item() for spare in (1.0, 0.0, 0.3)
    )
    matched = kl(
        numpy(student.logits[0, pairs.rows[0]]), numpy(teacher.logits[0, pairs.columns[0]])
    )
    weights = numpy(pairs.weight[0])
    assert none == pytest.approx(
        2.0 * (weights * matched).sum() / max(1.0, weights.sum()), rel=1e-5
    )
    assert third == pytest.approx(none + 0.3 * (whole - none), rel=1e-5)


def test_the_seeds_presence_is_the_squared_difference_of_logits():
    student, teacher = student_and_teacher()
    squares = (numpy(student.presence) - numpy(teacher.presence)) ** 2
    assert SEEDS(student, teacher)["presence"].item() == pytest.approx(squares.mean(), rel=1e-5)


def test_presence_by_cross_entropy_has_a_bounded_gradient_and_by_squares_has_not():
    """At SAM3's limits the squares push twenty times what a chance of 1 can."""
    student, teacher = student_and_teacher()
    far = replace(teacher, presence=torch.full((2, 1), 10.0))
    slopes = {}
    for name, loss in {"bce": LOSS, "mse": SEEDS}.items():
        presence = torch.full((2, 1), -10.0, requires_grad=True)
        loss(replace(student, presence=presence), far)["presence"].backward()
        slopes[name] = presence.grad.abs().sum().item()
    assert slopes["bce"] == pytest.approx(1, abs=1e-3)
    assert slopes["mse"] == pytest.approx(40)


def test_padding_of_a_text_teaches_nothing_and_its_length_does_not_weigh():
    student, teacher = student_and_teacher()
    padding = teacher.attention[..., None] == 0
    moved = torch.where(padding, 9.0, student.text)
    assert torch.equal(
        LOSS(replace(student, text=moved), teacher)["text"], LOSS(student, teacher)["text"]
    )
    away = replace(student, text=teacher.text + 2)
    assert ONES(away, teacher)["text"].item() == pytest.approx(4)


def test_what_is_not_there_moves_no_masks_and_boxes():
    student, teacher = student_and_teacher(prompts=1)
    student = learning(student)
    absent = replace(teacher, presence=torch.full((1, 1), -10.0))
    terms = LOSS(student, absent)
    (terms["mask"] + terms["box"] + terms["giou"]).backward()
    assert student.masks.grad.abs().sum() < 1e-3
    assert student.boxes.grad.abs().sum() < 1e-2
    assert terms["logit"] > 0.1


def test_queries_that_agree_on_nothing_dilute_nothing():
    teacher = random_prediction(1, 3, 16, seed=2, features=(6, 16, 1))
    student = mapped(
        teacher, lambda tensor: tensor + 0.1 * torch.ones_like(tensor).cumsum(-1).cos()
    )
    student = replace(student, attention=teacher.attention)
    nothing = random_prediction(1, 4, 16, seed=9)
    nothing = replace(nothing, logits=torch.full((1, 4), -12.0))
    more = [
        replace(
            prediction,
            masks=torch.cat([prediction.masks, nothing.masks], 1),
            boxes=torch.cat([prediction.boxes, nothing.boxes], 1),
            logits=torch.cat([prediction.logits, nothing.logits], 1),
        )
        for prediction in (student, teacher)
    ]
    terms, diluted = LOSS(student, teacher), LOSS(*more)
    for name in NAMES:
        torch.testing.assert_close(diluted[name], terms[name], rtol=1e-3, atol=1e-5)


def test_constant_features_are_constant_at_any_size():
    constant, finer = torch.full((1, 3, 63, 63), 0.7), torch.full((1, 3, 72, 72), 0.7)
    assert feature_error(constant, finer) == pytest.approx(0, abs=1e-13)
    assert feature_error(constant, finer - 0.5).item() == pytest.approx(0.25)


def test_levels_count_alike_whatever_their_size():
    student, teacher = student_and_teacher()
    away = replace(student, fpn=tuple(level.clone() for level in teacher.fpn))
    for level in range(3):
        moved = [x + 2 if k == level else x for k, x in enumerate(away.fpn)]
        assert ONES(replace(away, fpn=tuple(moved)), teacher)["fpn"].item() == pytest.approx(4 / 3)


def test_of_fewer_levels_the_coarsest_are_compared():
    student, teacher = student_and_teacher()
    student = replace(student, fpn=tuple(level.clone() for level in teacher.fpn))
    shown = replace(teacher, fpn=teacher.fpn[1:])
    assert ONES(student, shown)["fpn"].item() == pytest.approx(0, abs=1e-12)
    moved = [x + 2 if k == 0 else x for k, x in enumerate(student.fpn)]
    assert ONES(replace(student, fpn=tuple(moved)), shown)["fpn"].item() == pytest.approx(
        0, abs=1e-12
    )


def test_a_broken_student_shows_in_the_terms_that_it_spoils():
    student, teacher = student_and_teacher()
    masks = student.masks.clone()
    masks[0, 1, 3, 3] = float("nan")
    terms = LOSS(replace(student, masks=masks), teacher)
    assert [name for name in NAMES if not terms[name].isfinite()] == ["mask"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda teacher: with_prompt(teacher, 0), "the student's prompts are 2, the teacher's 1"),
        (
            lambda teacher: replace(teacher, fpn=teacher.fpn * 2),
            "FPN has 3 levels, the teacher's 6",
        ),
        (
            lambda teacher: replace(teacher, encoder=teacher.encoder[:, :4]),
            r"features are \[2, 6, h, w\], the teacher's \[2, 4, h, w\]",
        ),
        (
            lambda teacher: replace(teacher, attention=torch.ones_like(teacher.attention)),
            "^sam3.losses.text: the student's tokenizer splits a text into other tokens",
        ),
    ],
)
def test_predictions_that_cannot_be_compared_are_refused(change, message):
    student, teacher = student_and_teacher()
    with pytest.raises(ValueError, match=message) as caught:
        LOSS(student, change(teacher))
    assert "\n" not in str(caught.value)


def test_predictions_are_learned():
    student, teacher = student_and_teacher(queries=(7, 7), sides=(16, 16))
    student = learning(student)
    optimizer = torch.optim.Adam(leaves(student), lr=0.1)
    totals = []
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        total = sum(LOSS(student, teacher).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.02 * totals[0]


def test_models_learn_from_models():
    teacher, student = tiny_teacher(queries=5), tiny_teacher(seed=1, queries=3)
    images, inputs = some_images(2), some_prompts(2)
    with torch.no_grad():
        target = predict(teacher, images, inputs, features=True)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    totals = []
    for _ in range(8):
        terms = LOSS(predict(student, images, inputs, features=True), target)
        assert list(terms) == NAMES
        assert all(term.isfinite() for term in terms.values())
        total = sum(terms.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())
