"""A student folded for inference, one in 8 bits, and what they weigh."""

import copy

import torch
from torch import nn

from braid.segmentation.evaluation.cost import fused, megabytes, quantized
from braid.segmentation.sam3.sam3 import predict
from tests.segmentation.tiny_models import some_images, some_prompts
from tests.segmentation.tiny_students import restless, tiny_student


def masks(model, boxed="some"):
    with torch.no_grad():
        return predict(model, some_images(), some_prompts(boxed=boxed)).masks


def layers(model, kind):
    return sum(isinstance(each, kind) for each in model.modules())


def test_a_fused_student_answers_the_same_with_fewer_layers():
    student = restless(tiny_student())
    before = copy.deepcopy(student.state_dict())
    light = fused(student.train())
    assert not light.training
    student.eval()
    torch.testing.assert_close(masks(light), masks(student), atol=1e-3, rtol=1e-3)
    vision, own = light.vision_encoder.backbone, student.vision_encoder.backbone
    assert layers(vision, nn.BatchNorm2d) == 0 < layers(own, nn.BatchNorm2d)
    assert layers(vision, nn.Conv2d) < layers(own, nn.Conv2d)
    assert all(torch.equal(each, before[name]) for name, each in student.state_dict().items())


def test_a_fused_student_keeps_its_precision():
    student = tiny_student().to(torch.bfloat16)
    assert {each.dtype for each in fused(student).parameters()} == {torch.bfloat16}
    assert {each.dtype for each in student.parameters()} == {torch.bfloat16}


def test_a_quantized_student_answers_nearly_the_same():
    student = restless(tiny_student())
    small, exact = quantized(student), masks(student)
    error = (masks(small) - exact).abs().mean()
    assert 0 < error < 0.1 * exact.abs().mean()
    assert layers(student, nn.Linear) > 0  # the student itself is as it was
    assert not small.training


def test_linear_layers_and_words_take_a_byte_a_weight():
    student = tiny_student(vocabulary=2000, text_width=64, queries=3)
    linear = sum(each.weight.numel() for each in student.modules() if isinstance(each, nn.Linear))
    words = student.text_encoder.embeddings.token_embedding.weight.numel()
    plain, small = megabytes(student), megabytes(quantized(student))
    assert layers(quantized(student), nn.Linear) == 0
    saved = 1e6 * (plain - small) / (3 * (linear + words))
    assert 0.7 < saved < 1.1


def test_megabytes_are_millions_of_bytes_on_disk():
    small = megabytes(nn.Linear(1000, 1000, bias=False))
    assert abs(small - 4.0) < 0.01
    assert abs(megabytes(nn.Linear(1000, 1000, bias=False).half()) - 2.0) < 0.01
