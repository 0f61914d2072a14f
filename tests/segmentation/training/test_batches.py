"""Epochs, and batches of prompts for a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from braid.common.rng import generator
from braid.segmentation.data.prompted import Prompt
from braid.segmentation.sam3.predictor import word_tokenizer
from braid.segmentation.sam3.sam3 import predict
from braid.segmentation.training.batches import Epochs, tokenized
from tests.segmentation.few_images import BOX, PAIRS, FewImages, sampler
from tests.segmentation.tiny_models import tiny_teacher


def epochs(images: Sequence[int] = range(3), **changes: Any) -> Epochs:
    return Epochs(images, **{"update": 1, "seed": 0, "phase": "p", **changes})


def taken(order: Epochs, epoch: int) -> list[int]:
    steps = range(epoch * order.steps, (epoch + 1) * order.steps)
    return [image for step in steps for image in order(step)]


@pytest.mark.parametrize(("count", "update"), [(10, 8), (7, 3), (5, 8)])
def test_an_epoch_has_every_image_and_steps_the_last_partial_update(
    count: int, update: int
) -> None:
    order = epochs(range(100, 100 + count), update=update)
    assert order.steps == math.ceil(count / update)
    for epoch in (0, 1):
        images = Counter(taken(order, epoch))
        assert set(images) == set(range(100, 100 + count))
        assert sum(images.values()) == order.steps * update
    assert taken(order, 0) != taken(order, 1)


def test_the_seeds_schedule_has_its_count_of_steps() -> None:
    order = epochs(range(32_558), update=8)
    assert 5 * order.steps == 20_350
    assert 10 * order.steps == 40_700


def test_phases_and_seeds_have_orders_of_their_own() -> None:
    orders = [epochs(range(20), **changes) for changes in ({}, {"phase": "q"}, {"seed": 1})]
    assert len({tuple(taken(order, 0)) for order in orders}) == 3


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no image has a prompt"):
        epochs([])


def test_a_batch_has_prompts_with_boxes_or_without() -> None:
    kinds = Counter()
    for step in range(200):
        batch = sampler().draw([0, 2], 2, generator(0, step))
        boxed = {place == 3 for _, place in batch.pairs}
        assert len(boxed) == 1
        assert {image for image, _ in batch.pairs} == {0, 2}
        assert len(batch.pairs) == (2 if boxed.pop() else 4) == len(set(batch.pairs))
        kinds[batch.inputs.boxed is not None] += 1
    assert 0.15 < kinds[True] / 200 < 0.35  # a quarter of the prompts has a box


def test_each_prompt_belongs_to_its_own_image() -> None:
    batch = sampler().batch([(2, 0), (1, 1), (2, 3)])
    assert batch.inputs.owner.tolist() == [0, 1, 0]
    assert torch.equal(batch.pixels, FewImages().images[[2, 1]])


def test_a_text_is_tokenized_once_and_alike() -> None:
    some, rows = sampler(), []
    for pairs in ([(2, 0), (1, 1)], [(1, 1), (2, 0), (2, 1)]):
        batch = some.batch(pairs)
        prompts = [some.prompted.prompt(pair) for pair in pairs]
        fresh = tokenized(prompts, batch.inputs.owner, some.tokenizer, some.length)
        assert torch.equal(batch.inputs.tokens, fresh.tokens)
        assert torch.equal(batch.inputs.attention, fresh.attention)
        rows.append(batch.inputs.tokens)
    some.tokenizer = None  # is not needed any more
    assert torch.equal(some.batch([(1, 1)]).inputs.tokens, rows[0][1:])


PROMPTS = [
    Prompt("category", "blue star", None, None, True),
    Prompt("category", "red circle", None, None, True),
    Prompt("box", "visual", BOX, None, True),
]


def tokenizer() -> Any:
    return word_tokenizer(["red", "circle", "visual", "green", "star", "blue"], length=8)


def test_inputs_are_the_texts_and_boxes_of_the_prompts() -> None:
    owner = torch.tensor([0, 1, 1])
    inputs = tokenized(PROMPTS, owner, tokenizer(), 6)
    assert inputs.tokens.tolist() == [[0, 8, 7, 1, 1, 1], [0, 3, 4, 1, 1, 1], [0, 5, 1, 1, 1, 1]]
    assert inputs.attention.sum(1).tolist() == [4, 4, 3]
    assert inputs.owner is owner
    assert inputs.boxed is not None
    assert inputs.boxes is not None
    assert inputs.boxed.tolist() == [False, False, True]
    torch.testing.assert_close(inputs.boxes[2], torch.tensor(BOX))
    assert not inputs.boxes[:2].any()


def test_without_a_box_there_are_no_boxes() -> None:
    inputs = tokenized(PROMPTS[1:2], torch.tensor([0]), tokenizer(), 6)
    assert inputs.boxes is inputs.boxed is None


def test_a_model_predicts_for_a_batch_of_all_kinds() -> None:
    batch = sampler().batch(PAIRS)
    with torch.no_grad():
        prediction = predict(tiny_teacher(), batch.pixels, batch.inputs)
    truth = FewImages().ground_truth(PAIRS, prediction.masks.shape[-1])
    assert prediction.masks.shape[0] == len(PAIRS) == len(truth.count)
    assert truth.masks.shape[-2:] == prediction.masks.shape[-2:]
