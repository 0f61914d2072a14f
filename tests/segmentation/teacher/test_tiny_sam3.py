"""The tiny teacher: its sizes, its initial weights, and that it learns."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from braid.segmentation.data.prompted import GroundTruth
from braid.segmentation.sam3.sam3 import PromptInputs, predict
from braid.segmentation.teacher.tiny_sam3 import initialize, sines
from braid.segmentation.training.ground_truth import GroundTruthLoss
from tests.segmentation.tiny_models import some_images, some_prompts, tiny_teacher


def test_it_is_the_class_of_the_library_with_the_given_sizes():
    model = tiny_teacher(width=24, layers=3, queries=7, image_size=70, vocabulary=30, context=5)
    from transformers import Sam3Model  # not before torchvision is mended

    assert type(model) is Sam3Model
    config = model.config
    assert config.vision_config.image_size == 70
    assert config.text_config.vocab_size == 30
    assert config.text_config.max_position_embeddings == 5
    assert config.detr_decoder_config.num_queries == 7
    parts = (model.vision_encoder.backbone, model.detr_encoder, model.detr_decoder)
    assert [len(part.layers) for part in parts] == [3, 3, 3]
    with torch.no_grad():
        inputs = some_prompts(1, 1)
        short = PromptInputs(inputs.owner, inputs.tokens[:, :5] % 30, inputs.attention[:, :5])
        prediction = predict(model, some_images(1, size=70), short)
    assert prediction.masks.shape == (1, 7, 20, 20)


def test_every_weight_comes_from_the_generator():
    one, again, other = tiny_teacher(0), tiny_teacher(0), tiny_teacher(1)
    matrices = 0
    for (name, a), b, c in zip(
        one.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        fixed = ("position_embeddings", "reference_points")
        if a.ndim > 1 and not name.startswith(tuple(fixed)) and not any(f in name for f in fixed):
            assert not torch.equal(a, c), name
            matrices += 1
    assert matrices > 50


def test_layers_have_the_scale_of_their_fan_in():
    model = tiny_teacher(width=64)
    decoder = model.detr_decoder
    assert decoder.layers[0].mlp.fc1.weight.std().item() == pytest.approx(1 / 8, rel=0.1)
    convolution = model.mask_decoder.pixel_decoder.conv_layers[0].weight
    assert convolution.std().item() == pytest.approx(1 / math.sqrt(64 * 9), rel=0.1)
    assert decoder.layers[0].mlp.fc2.weight.std().item() < 0.4 / math.sqrt(128)
    for layer in (decoder.layers[0].text_cross_attn, model.detr_encoder.layers[0].cross_attn):
        assert layer.o_proj.weight.std().item() == pytest.approx(1.4 / 8, rel=0.1)  # the prompt
    for layer in (decoder.layers[0].vision_cross_attn, model.detr_encoder.layers[0].self_attn):
        assert layer.o_proj.weight.std().item() == pytest.approx(0.3 / 8, rel=0.1)
    deconvolution = model.vision_encoder.neck.fpn_layers[0].scale_layers[0]
    given = torch.randn(8, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    assert deconvolution(given).std().item() == pytest.approx(1, rel=0.15)


def test_a_query_attends_to_what_lies_in_its_reference_box():
    decoder = tiny_teacher(image_size=112).detr_decoder
    box = torch.tensor([[[0.25, 0.5, 0.26, 0.5]]])  # cxcywh: columns 1 to 3 of 8, rows 2 to 6
    size = torch.tensor([8, 8])
    with torch.no_grad():
        bias = decoder._get_rpb_matrix(box, (size[0], size[1]))[0, :, 0].unflatten(1, (8, 8))
    inside = bias[:, 3:6, 1:3].flatten(1)
    outside = torch.cat([bias[:, 0], bias[:, :, 5:].flatten(1)], 1)
    assert (inside.amin(1) > outside.amax(1) + 0.5).all()
    rows = bias[0, 3]
    assert (rows[4:-1] > rows[5:]).all()  # the farther, the less


def test_places_differ_by_their_sines():
    known = sines(8, 32)
    assert known.shape == (64, 32)
    distances = torch.cdist(known, known)
    assert (distances + 10 * torch.eye(64)).min() > 0.3
    near, far = distances[0, 1], distances[0, 7]
    assert near < far
    assert sines(3, 18).shape == (9, 18)


def test_it_overfits_one_batch():
    model, inputs = tiny_teacher().train(), some_prompts(2, 2)
    images = -torch.ones(2, 3, 56, 56)
    masks = torch.zeros(4, 1, 16, 16)
    boxes = torch.zeros(4, 1, 4)
    for prompt, (row, column) in enumerate([(0, 0), (8, 4), (8, 8), (0, 0)]):
        owner = int(inputs.owner[prompt])
        images[
            owner, prompt % 3, int(3.5 * row) : int(3.5 * row) + 28, 3 * column : 3 * column + 24
        ] = 1
        masks[prompt, 0, row : row + 8, column : column + 7] = 1
        boxes[prompt, 0] = torch.tensor([column, row, column + 7, row + 8]) / 16
    count = torch.tensor([1, 1, 1, 0])
    masks[3], boxes[3] = 0, 0
    truth, loss = GroundTruth(masks, boxes, count, masks), GroundTruthLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        terms = loss(predict(model, images, inputs, earlier=True), truth)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        prediction = predict(model.eval(), images, inputs)
    assert (prediction.presence[:, 0] > 0).tolist() == [True, True, True, False]
    for prompt in range(3):
        best = prediction.scores[prompt].argmax()
        mask, true = prediction.masks[prompt, best] > 0, masks[prompt, 0] > 0.5
        assert prediction.scores[prompt, best] > 0.5
        assert (mask & true).sum() / (mask | true).sum() > 0.7


def test_initialising_again_gives_another_model():
    model = tiny_teacher(0)
    initialize(model, torch.Generator().manual_seed(5))
    fresh = tiny_teacher(5)
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)


def test_another_processors_kernels_change_predictions_by_rounding_alone(tmp_path):
    """PyTorch's kernels for AVX2 stand for those of a processor without AVX-512."""
    script = (
        "import sys, torch; torch.set_num_threads(1);"
        "from braid.segmentation.sam3.sam3 import predict;"
        "from tests.segmentation.tiny_models import some_images, some_prompts, tiny_teacher;"
        "model = tiny_teacher();"
        "output = predict(model, some_images(), some_prompts());"
        "outputs = output.masks.detach(), output.logits.detach();"
        "torch.save((model.state_dict(), *outputs), sys.argv[1])"
    )
    outputs = []
    for name, kernels in {"own": {}, "older": {"ATEN_CPU_CAPABILITY": "avx2"}}.items():
        command = [sys.executable, "-c", script, str(tmp_path / name)]
        environment = {**os.environ, **kernels}
        subprocess.run(command, env=environment, cwd=Path(__file__).parents[3], check=True)
        outputs.append(torch.load(tmp_path / name, weights_only=True))
    (weights, *own), (same, *older) = outputs
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    for one, other in zip(own, older, strict=True):
        assert (one - other).norm() < 1e-5 * one.norm()
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert not torch.equal(own[0], older[0])  # the variable chose other kernels
