"""Gradient checkpointing saves memory and changes nothing else."""

import copy

import pytest
import torch
from torch import nn

from braid.segmentation.sam3.sam3 import predict
from braid.segmentation.student.student import checkpoint_layers
from tests.segmentation.tiny_models import some_images, some_prompts
from tests.segmentation.tiny_students import tiny_student


def step(student, boxed="all"):
    """Loss, gradients, buffers and the bytes kept for the backward pass of one training step."""
    kept = []

    def keep(tensor):
        kept.append(tensor.untyped_storage())
        return tensor

    torch.manual_seed(7)
    student.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        prediction = predict(student, some_images(), some_prompts(boxed=boxed), features=True)
        parts = (
            prediction.masks,
            prediction.boxes,
            prediction.logits,
            prediction.semantic,
            prediction.encoder,
        )
        loss = sum(part.square().sum() for part in (*parts, *prediction.fpn))
    size = sum({storage.data_ptr(): storage.nbytes() for storage in kept}.values())
    loss.backward()
    gradients = {name: value.grad for name, value in student.named_parameters()}
    return loss, gradients, dict(student.named_buffers()), size


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_loss_gradients_and_statistics_are_the_same_with_less_kept(dropout):
    plain, thrifty = (tiny_student(checkpointing=wanted) for wanted in (False, True))
    for student in (plain, thrifty):
        for module in student.detr_encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
    assert list(plain.state_dict()) == list(thrifty.state_dict())
    (loss, gradients, buffers, size), (loss2, gradients2, buffers2, size2) = map(
        step, (plain, thrifty)
    )
    assert torch.equal(loss, loss2)
    for name, gradient in gradients.items():
        if gradient is None:
            assert gradients2[name] is None
        else:
            torch.testing.assert_close(gradients2[name], gradient, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, buffers2[name]) for name, value in buffers.items())
    assert size2 < 0.5 * size


def test_the_layers_run_twice_in_training_and_once_in_evaluation():
    student = tiny_student(checkpointing=True)
    calls = []
    layers = {
        "stage": student.vision_encoder.backbone.stages_1.blocks,
        "encoder": student.detr_encoder.layers[1].mlp,
        "decoder": student.detr_decoder.layers[0].mlp,
        "pixels": student.mask_decoder.pixel_decoder.conv_layers[0],
        "text": student.text_encoder.layers[1].mlp,
    }
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    step(student, "none")
    twice = {name: calls.count(name) for name in layers}
    assert twice == {"stage": 2, "encoder": 2, "decoder": 2, "pixels": 2, "text": 1}
    calls.clear()
    predict(student.eval(), some_images(), some_prompts()).masks.sum().backward()
    assert {name: calls.count(name) for name in layers} == dict.fromkeys(layers, 1)


def test_a_copy_computes_with_its_own_weights():
    layer = nn.Linear(3, 3)
    checkpoint_layers([layer])
    copied = copy.deepcopy(layer)
    with torch.no_grad():
        copied.weight.zero_()
        copied.bias.zero_()
    copied(torch.ones(2, 3)).sum().backward()
    assert not copied(torch.ones(2, 3)).any()
    assert copied.bias.grad.eq(2).all()
    assert layer.bias.grad is None


def test_layers_without_parameters_are_left_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 3))
    reference = copy.deepcopy(model)
    checkpoint_layers(model)
    for network in (model, reference):
        network(torch.ones(2, 3)).sum().backward()
    assert torch.equal(model[0].weight.grad, reference[0].weight.grad)
