"""One call for teacher and student: batches, boxes, cached texts, earlier layers, RoIAlign."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from braid.segmentation.sam3.checkpoint import remove_text_tower
from braid.segmentation.sam3.sam3 import predict, roi_align, separable_roi_align, text_features
from tests.segmentation.tiny_models import (
    CONTEXT,
    MASK_SIZE,
    QUERIES,
    WIDTH,
    some_images,
    some_prompts,
    tiny_teacher,
)

PARTS = ("masks", "boxes", "logits", "presence", "semantic", "encoder")


@pytest.fixture(scope="module")
def teacher():
    return tiny_teacher()


@pytest.fixture(scope="module")
def operators():
    import torchvision  # which tiny_models has mended by now

    return torchvision.ops


@torch.no_grad()
def predicted(model, images, inputs, **options):
    return predict(model, images, inputs, **options)


def assert_same(prediction, expected, rows=slice(None)):
    for name in PARTS:
        assert_close(getattr(prediction, name), getattr(expected, name)[rows], rtol=1e-4, atol=1e-5)
    for layer, other in zip(prediction.earlier, expected.earlier, strict=True):
        for name in ("boxes", "logits", "presence"):
            assert_close(getattr(layer, name), getattr(other, name)[rows], rtol=1e-4, atol=1e-5)


def test_shapes(teacher):
    prediction = predicted(teacher, some_images(2), some_prompts(2, 3), features=True, earlier=True)
    assert prediction.masks.shape == (6, QUERIES, MASK_SIZE, MASK_SIZE)
    assert prediction.boxes.shape == (6, QUERIES, 4)
    assert prediction.logits.shape == (6, QUERIES)
    assert prediction.presence.shape == (6, 1)
    assert prediction.semantic.shape == (6, 1, MASK_SIZE, MASK_SIZE)
    sizes = [(MASK_SIZE, MASK_SIZE), (8, 8), (4, 4)]
    assert [tuple(level.shape) for level in prediction.fpn] == [(2, WIDTH, *size) for size in sizes]
    assert prediction.encoder.shape == (6, WIDTH, 4, 4)
    assert [layer.boxes.shape for layer in prediction.earlier] == [(6, QUERIES, 4)]
    plain = predicted(teacher, some_images(2), some_prompts(2, 3))
    assert (plain.fpn, plain.encoder, plain.earlier) == ((), None, ())
    assert torch.equal(plain.masks, prediction.masks)


def test_scores_need_a_good_query_and_presence(teacher):
    prediction = predicted(teacher, some_images(1), some_prompts(1, 2))
    expected = prediction.logits.sigmoid() * prediction.presence.sigmoid()
    assert torch.equal(prediction.scores, expected)


@pytest.mark.parametrize("boxed", ["none", "some", "all"])
def test_a_batch_is_its_prompts_one_by_one(teacher, boxed):
    images, inputs = some_images(2), some_prompts(2, 2, boxed=boxed)
    together = predicted(teacher, images, inputs, features=True, earlier=True)
    for row in range(4):
        alone = replace(inputs.take(torch.tensor([row])), owner=torch.tensor([0]))
        image = images[inputs.owner[row]][None]
        prediction = predicted(teacher, image, alone, features=True, earlier=True)
        assert_same(prediction, together, slice(row, row + 1))
    assert (together.masks[0] - together.masks[1]).abs().max() > 1e-3  # prompts matter
    assert (together.fpn[0][0] - together.fpn[0][1]).abs().max() > 1e-3


@pytest.mark.parametrize("boxed", ["none", "some"])
def test_the_order_of_the_prompts_is_kept(teacher, boxed):
    images, inputs = some_images(3), some_prompts(3, 2, boxed=boxed)
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    prediction = predicted(teacher, images, inputs.take(order), features=True, earlier=True)
    assert_same(prediction, predicted(teacher, images, inputs, features=True, earlier=True), order)


def test_a_box_matters_only_where_it_counts(teacher):
    images, inputs = some_images(1), some_prompts(1, 2, boxed="some")
    moved = replace(inputs, boxes=inputs.boxes + 0.1)
    before, after = predicted(teacher, images, inputs), predicted(teacher, images, moved)
    assert (before.masks[0] - after.masks[0]).abs().max() > 1e-4
    assert torch.equal(before.masks[1], after.masks[1])
    without = replace(inputs, boxes=None, boxed=None)
    assert_close(
        predicted(teacher, images, without).masks[1], before.masks[1], rtol=1e-4, atol=1e-5
    )


def test_it_is_what_the_model_predicts_by_itself(teacher):
    images, inputs = some_images(1), some_prompts(1, 1, boxed="all")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        output = teacher(
            pixel_values=images,
            input_ids=inputs.tokens,
            attention_mask=inputs.attention,
            input_boxes=inputs.boxes[:, None],
        )
    prediction = predicted(teacher, images, inputs)
    assert_close(prediction.masks, output.pred_masks, rtol=1e-4, atol=1e-5)
    assert_close(prediction.boxes, output.pred_boxes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("boxed", ["none", "some"])
def test_features_of_texts_stand_for_tokens_and_need_no_text_tower(boxed):
    model, images, inputs = tiny_teacher(), some_images(), some_prompts(boxed=boxed)
    expected = predicted(model, images, inputs, features=True)
    with torch.no_grad():
        given = replace(inputs, text=text_features(model, inputs))
    assert given.text.shape == (6, CONTEXT, WIDTH)
    remove_text_tower(model)
    prediction = predicted(model, images, replace(given, tokens=torch.zeros_like(given.tokens)))
    assert torch.equal(prediction.masks, expected.masks)
    with pytest.raises(ValueError, match="text tower was removed, expected text features"):
        predicted(model, images, inputs)


def test_padding_does_not_matter(teacher):
    images, inputs = some_images(), some_prompts()
    noise = torch.where(inputs.attention.bool(), inputs.tokens, 7)
    assert (inputs.attention == 0).any()
    prediction = predicted(teacher, images, replace(inputs, tokens=noise))
    assert_close(prediction.masks, predicted(teacher, images, inputs).masks, rtol=1e-4, atol=1e-5)


def test_earlier_layers_predict_as_a_decoder_that_ends_there():
    model, images, inputs = tiny_teacher(layers=3), some_images(2), some_prompts(2, 2)
    earlier = predicted(model, images, inputs, earlier=True).earlier
    assert len(earlier) == 2
    for depth, layer in enumerate(earlier, 1):
        short = tiny_teacher(layers=3)
        del short.detr_decoder.layers[depth:]
        last = predicted(short, images, inputs)
        for name in ("boxes", "logits", "presence"):
            assert_close(getattr(layer, name), getattr(last, name))


def test_gradients_reach_earlier_layers():
    model = tiny_teacher()
    prediction = predict(model, some_images(), some_prompts(), earlier=True)
    (layer,) = prediction.earlier
    decoder = model.detr_decoder
    ways = {
        "boxes": decoder.box_head.layer3.weight,
        "logits": decoder.query_embed.weight,
        "presence": decoder.presence_token.weight,
    }
    for name, parameter in ways.items():
        total = getattr(layer, name).sum()
        (gradient,) = torch.autograd.grad(total, parameter, retain_graph=True)
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("size", [(4, 4), (9, 5)])
def test_roi_align_is_that_of_torchvision(operators, size):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(3, 2, *size, generator=generator)
    corners = [torch.rand(count, 2, 2, generator=generator) for count in (2, 0, 3)]
    scale = torch.tensor([size[1], size[0]])
    boxes = [(pair.sort(1).values * scale).flatten(1) for pair in corners]
    boxes[0][0, 2:] = boxes[0][0, :2] + 0.01  # counts as a whole cell
    with torch.compiler.set_stance("force_eager"):
        expected = operators.roi_align(features, boxes, 7)
    assert_close(roi_align(features, boxes, 7), expected)


def test_roi_align_averages_a_slope_and_ignores_what_is_far_outside():
    slope = torch.arange(8.0).expand(1, 1, 8, 8)
    (pooled,) = roi_align(slope, [torch.tensor([[1.0, 2.0, 7.0, 5.0]])], 3)
    assert_close(pooled[0], torch.tensor([2.0, 4.0, 6.0]).expand(3, 3))
    (outside,) = roi_align(slope + 1, [torch.tensor([[9.0, 9.0, 12.0, 12.0]])], 3)
    assert not outside.any()


def test_the_library_has_its_own_roi_align_back_afterwards(operators):
    original = operators.roi_align
    with pytest.raises(KeyError), separable_roi_align():
        assert operators.roi_align is roi_align
        raise KeyError
    assert operators.roi_align is original
