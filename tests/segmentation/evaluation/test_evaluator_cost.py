"""A student folded for inference, one in 8 bits, their size and latency."""

import copy

import pytest
import torch
from torch import nn

from braid.segmentation.data.prompted import prompt_batch
from braid.segmentation.evaluation.evaluator import (
    fused,
    latencies,
    latency,
    megabytes,
    percentiles,
    quantized,
)
from braid.segmentation.sam3.sam3 import predict
from tests.segmentation.evaluated import CPU, PAIRS, Prompted, models
from tests.segmentation.tiny_models import some_images, some_prompts
from tests.segmentation.tiny_students import restless, tiny_student


def masks(model, boxed="some"):
    with torch.no_grad():
        return predict(model, some_images(), some_prompts(boxed=boxed)).masks


def layers(model, kind):
    return sum(isinstance(layer, kind) for layer in model.modules())


def test_a_fused_student_predicts_the_same_with_fewer_layers():
    student = restless(tiny_student())
    before = copy.deepcopy(student.state_dict())
    light = fused(student.train())
    assert not light.training
    student.eval()
    torch.testing.assert_close(masks(light), masks(student), atol=1e-3, rtol=1e-3)
    vision, own = light.vision_encoder.backbone, student.vision_encoder.backbone
    assert layers(vision, nn.BatchNorm2d) == 0 < layers(own, nn.BatchNorm2d)
    assert layers(vision, nn.Conv2d) < layers(own, nn.Conv2d)
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_a_fused_student_keeps_its_precision():
    student = tiny_student().to(torch.bfloat16)
    assert {parameter.dtype for parameter in fused(student).parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}


def test_a_quantized_student_predicts_nearly_the_same():
    student = restless(tiny_student())
    small, exact = quantized(student), masks(student)
    error = (masks(small) - exact).abs().mean()
    assert 0 < error < 0.1 * exact.abs().mean()
    assert layers(student, nn.Linear) > 0  # the student itself is as it was
    assert not small.training


def test_linear_layers_and_token_embeddings_take_a_byte_a_weight():
    student = tiny_student(vocabulary=2000, text_width=64, queries=3)
    linear = sum(m.weight.numel() for m in student.modules() if isinstance(m, nn.Linear))
    embedding = student.text_encoder.embeddings.token_embedding.weight.numel()
    plain, small = megabytes(student), megabytes(quantized(student))
    assert layers(quantized(student), nn.Linear) == 0
    saved = 1e6 * (plain - small) / (3 * (linear + embedding))
    assert 0.7 < saved < 1.1


def test_megabytes_are_millions_of_bytes_on_disk():
    small = megabytes(nn.Linear(1000, 1000, bias=False))
    assert abs(small - 4.0) < 0.01
    assert abs(megabytes(nn.Linear(1000, 1000, bias=False).half()) - 2.0) < 0.01


def test_latency_counts_calls_after_a_warm_up():
    calls = []
    times = latency(lambda: calls.append(0), 5, CPU)
    assert set(times) == {"p50_ms", "p95_ms"}
    assert len(calls) == 7
    by_model = latencies(models(), prompt_batch(Prompted(), PAIRS[:1]), 2)
    assert set(by_model) == set(models())
    assert all(set(times_of_one) == set(times) for times_of_one in by_model.values())
    assert percentiles([k / 1000 for k in range(101)]) == pytest.approx(
        {"p50_ms": 50, "p95_ms": 95}
    )
