"""Epochs, batches of prompts, and that a student learns from either teacher."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from braid.common.rng import generator
from braid.segmentation.data.prompted import Pair, GroundTruth
from braid.segmentation.distillation.distillation import (
    Distillation,
    TeacherSupervision,
    GroundTruthSupervision,
)
from braid.segmentation.distillation.losses import DistillationLoss
from braid.segmentation.distillation.matching import Matcher
from braid.segmentation.sam3.sam3 import Prediction, PromptInputs, predict
from braid.segmentation.training.batches import Epochs, PromptSampler
from braid.segmentation.training.ground_truth import GroundTruthLoss
from braid.training.distributed import Process
from tests.segmentation.tiny_models import CONTEXT, some_images, tiny_teacher

CPU = torch.device("cpu")
BOX = (0.5, 0.5, 0.4, 0.4)


class FewImages:
    """Three random images with four prompts each, of which the last one has a box."""

    def __init__(self) -> None:
        self.images = some_images(3)

    def prompt(self, pair: Pair) -> Any:
        return SimpleNamespace(box=BOX if pair[1] == 3 else None)

    def pixels(self, images: Sequence[int]) -> torch.Tensor:
        return self.images[list(images)]

    def inputs(
        self, pairs: Sequence[Pair], owner: torch.Tensor, tokenizer: object, length: int
    ) -> PromptInputs:
        tokens = torch.tensor([[2 + 5 * image + place] * length for image, place in pairs])
        boxed = torch.tensor([place == 3 for _, place in pairs])
        boxes = torch.tensor([BOX] * len(pairs)) if boxed.any() else None
        return PromptInputs(owner, tokens, tokens > 0, boxes, boxed if boxed.any() else None)

    def truth(self, pairs: Sequence[Pair], size: int) -> GroundTruth:
        masks = torch.zeros(len(pairs), 1, size, size)
        masks[:, :, : size // 2] = 1
        boxes = torch.tensor([0.0, 0.0, 1.0, 0.5]).expand(len(pairs), 1, 4)
        return GroundTruth(masks, boxes, torch.ones(len(pairs)).long(), masks)


PAIRS = [(image, place) for image in range(3) for place in range(4)]


def questions(images: Any = None) -> PromptSampler:
    return PromptSampler(images or FewImages(), PAIRS, None, CONTEXT, CPU)


def epochs(images: Sequence[int] = range(3), **changes: Any) -> Epochs:
    return Epochs(images, **{"batch": 1, "accumulate": 1, "seed": 0, "phase": "p", **changes})


def taken(order: Epochs, epoch: int) -> list[int]:
    steps = range(epoch * order.steps, (epoch + 1) * order.steps)
    return [each for step in steps for i in range(order.accumulate) for each in order(step, i)]


@pytest.mark.parametrize(("count", "batch", "accumulate"), [(10, 1, 8), (7, 3, 1), (5, 2, 4)])
def test_an_epoch_has_every_image_and_steps_the_last_partial_update(
    count: int, batch: int, accumulate: int
) -> None:
    order = epochs(range(100, 100 + count), batch=batch, accumulate=accumulate)
    assert order.steps == math.ceil(count / (batch * accumulate))
    for epoch in (0, 1):
        seen = Counter(taken(order, epoch))
        assert set(seen) == set(range(100, 100 + count))
        assert sum(seen.values()) == order.steps * batch * accumulate
    assert taken(order, 0) != taken(order, 1)


def test_the_seeds_schedule_has_its_count_of_steps() -> None:
    order = epochs(range(32_558), accumulate=8)
    assert 5 * order.steps == 20_350
    assert 10 * order.steps == 40_700


def test_phases_and_seeds_have_orders_of_their_own() -> None:
    orders = [epochs(range(20), **each) for each in ({}, {"phase": "q"}, {"seed": 1})]
    assert len({tuple(taken(order, 0)) for order in orders}) == 3


def test_processes_share_an_epoch_out() -> None:
    alone = epochs(range(12), batch=2, accumulate=2)
    parts = [epochs(range(12), batch=1, accumulate=2, process=Process(r, 2)) for r in (0, 1)]
    assert [part.steps for part in parts] == [alone.steps] * 2
    for step in range(alone.steps):
        for micro in range(2):
            joint = [each for part in parts for each in part(step, micro)]
            assert joint == alone(step, micro)


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no image has a prompt"):
        epochs([])


def test_a_batch_asks_prompts_with_boxes_or_without() -> None:
    kinds = Counter()
    for step in range(200):
        asked = questions().draw([0, 2], 2, generator(0, step))
        boxed = {place == 3 for _, place in asked.pairs}
        assert len(boxed) == 1
        assert {image for image, _ in asked.pairs} == {0, 2}
        assert len(asked.pairs) == (2 if boxed.pop() else 4) == len(set(asked.pairs))
        kinds[asked.inputs.boxed is not None] += 1
    assert 0.15 < kinds[True] / 200 < 0.35  # a quarter of the prompts has a box


def test_each_prompt_asks_its_own_image() -> None:
    asked = questions().ask([(2, 0), (1, 1), (2, 3)])
    assert asked.inputs.owner.tolist() == [0, 1, 0]
    assert torch.equal(asked.pixels, FewImages().images[[2, 1]])


class Batch:
    """A teacher that answers at once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @torch.no_grad()
    def predictions(self, pairs: Sequence[Pair]) -> Prediction:
        asked = questions().ask(pairs)
        return predict(self.model, asked.pixels, asked.inputs, features=True)


def from_teacher(features: bool = True) -> TeacherSupervision:
    loss = DistillationLoss(Matcher(size=16))
    return TeacherSupervision(Batch(tiny_teacher(0)), loss, features=features)


def test_features_are_compared_only_where_a_phase_wants_them() -> None:
    for features in (True, False):
        objective = Distillation(
            tiny_teacher(1), questions(), from_teacher(features), epochs(), prompts=2
        )
        terms = objective(0, generator(0, "step"))
        names = {"mask", "box", "giou", "logit", "presence", "semantic"}
        assert set(terms) == names | ({"fpn", "encoder"} if features else set())


def test_micro_steps_take_the_images_of_their_place() -> None:
    order = epochs(range(3), accumulate=3)
    objective = Distillation(tiny_teacher(1), questions(), from_teacher(), order, prompts=1)
    seen: list[int] = []
    objective.terms = lambda asked: seen.append(asked.pairs[0][0]) or {}  # type: ignore[method-assign]
    for step in (0, 1):
        for _ in range(3):
            objective(step, generator(0, step))
    assert seen == [order(step, micro)[0] for step in (0, 1) for micro in range(3)]


def test_a_student_that_is_the_teacher_has_nothing_to_learn() -> None:
    objective = Distillation(tiny_teacher(0), questions(), from_teacher(), epochs(), prompts=2)
    judged = objective.judged(PAIRS, 5, "float32")
    assert set(judged) > {"loss", "mask", "fpn"}
    # The logit term pushes nothing either: every query of the teacher is taken as it is.
    assert judged["loss"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("supervision", ["teacher", "truth"])
def test_a_batch_is_overfitted(supervision: str) -> None:
    truth = GroundTruthSupervision(FewImages(), GroundTruthLoss())  # type: ignore[arg-type]
    taught = from_teacher() if supervision == "teacher" else truth
    objective = Distillation(tiny_teacher(1), questions(), taught, epochs(), prompts=2)
    asked = questions().ask(PAIRS[:4])
    optimizer = torch.optim.Adam(objective.parameters(), lr=2e-3)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = torch.stack(list(objective.terms(asked).values())).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_judging_leaves_the_mode_and_no_gradient() -> None:
    student = tiny_teacher(1).train()
    objective = Distillation(student, questions(), from_teacher(), epochs(), prompts=1)
    whole, parts = (objective.judged(PAIRS[:6], each, "float32") for each in (6, 3))
    assert student.training
    assert whole["semantic"] == pytest.approx(parts["semantic"], rel=1e-4)
    assert all(each.grad is None for each in student.parameters())


def test_judging_takes_the_precision_of_training() -> None:
    objective = Distillation(tiny_teacher(1), questions(), from_teacher(), epochs(), prompts=1)
    fine, coarse = (objective.judged(PAIRS[:4], 4, each) for each in ("float32", "bfloat16"))
    assert fine["semantic"] != coarse["semantic"]
    assert fine["semantic"] == pytest.approx(coarse["semantic"], rel=0.1)
