"""Batch normalization with statistics held still, measured, or left alone."""

import copy

import torch
from torch import nn

from braid.segmentation.distillation.distillation import freeze_batch_norm, measured_batch_norm
from braid.segmentation.sam3.sam3 import predict
from braid.segmentation.student.student import unmoved_batch_norm
from tests.segmentation.tiny_models import some_images, some_prompts
from tests.segmentation.tiny_students import restless, tiny_student


def norms(model):
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


def statistics(model):
    return [buffer.clone() for norm in norms(model) for buffer in norm.buffers()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def batches(count=5, size=4):
    generator = torch.Generator().manual_seed(0)
    return [3 + 2 * torch.randn(size, 6, 5, 5, generator=generator) for _ in range(count)]


def test_frozen_statistics_stay_and_normalise_whatever_train_says():
    student = restless(tiny_student())
    images, inputs = some_images(1), some_prompts(1)
    with torch.no_grad():
        expected = predict(student, images, inputs).masks
    before = statistics(student)
    assert freeze_batch_norm(student) == len(norms(student)) > 20
    for _ in range(2):
        student.train()
        torch.testing.assert_close(predict(student, images, inputs).masks, expected)
    assert same(statistics(student), before)


def test_without_freezing_one_image_is_normalised_by_itself():
    student = restless(tiny_student())
    images, inputs = some_images(1), some_prompts(1)
    before = statistics(student)
    with torch.no_grad():
        still, moved = (
            predict(student.train(mode), images, inputs).masks for mode in (False, True)
        )
    assert (still - moved).abs().max() > 0.01
    assert not same(statistics(student), before)


def test_scale_and_shift_still_learn():
    student = tiny_student()
    freeze_batch_norm(student)
    predict(student.train(), some_images(), some_prompts()).masks.sum().backward()
    stem = student.vision_encoder.backbone.stem.conv2
    assert stem.bn.weight.grad is not None
    assert stem.c.weight.grad is not None


def test_a_copy_of_a_frozen_model_is_frozen():
    model = nn.Sequential(nn.BatchNorm2d(6))
    freeze_batch_norm(model)
    copied, before = copy.deepcopy(model), statistics(model)
    copied.train()(batches()[0])
    assert same(statistics(copied), before)


def test_measured_statistics_are_the_mean_over_all_batches():
    norm = nn.BatchNorm2d(6)
    norm(7 + batches(1)[0])  # what was there is forgotten
    norm.eval()
    with torch.no_grad(), measured_batch_norm(norm):
        for batch in batches():
            norm(batch)
    mean = torch.stack([batch.mean((0, 2, 3)) for batch in batches()]).mean(0)
    variance = torch.stack([batch.var((0, 2, 3)) for batch in batches()]).mean(0)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert (norm.momentum, norm.training) == (0.1, False)
    output = norm(torch.cat(batches()))
    assert output.mean().abs() < 0.05
    assert abs(output.std() - 1) < 0.05


def test_unmoved_statistics_forget_a_batch_that_still_normalises_itself():
    norm, batch = nn.BatchNorm2d(6), batches(1)[0]
    expected = copy.deepcopy(norm)(batch)
    before = statistics(norm)
    with unmoved_batch_norm(norm):
        output = norm(batch)
    assert torch.equal(output, expected)
    assert same(statistics(norm), before)
    norm(batch)
    assert norm.num_batches_tracked == 1
    assert not same(statistics(norm), before)
