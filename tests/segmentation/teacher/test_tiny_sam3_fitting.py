"""The tiny teacher's training."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from braid.segmentation.config import TeacherConfig
from braid.segmentation.data.prompted import GroundTruth
from braid.segmentation.teacher.tiny_sam3 import GroundTruthObjective, fit, mirror, new_teacher
from braid.segmentation.training.batches import Batch, PromptSampler
from braid.segmentation.training.ground_truth import GroundTruthLoss
from braid.training.config import OptimizerConfig
from braid.training.optimizers import hidden_matrices
from braid.training.trainer import Run
from tests.segmentation.tiny_models import CONTEXT, some_prompts, tiny_teacher

CPU = torch.device("cpu")
OPTIMIZER = OptimizerConfig(
    name="muon",
    lr=1e-3,
    lr_floor=0.1,
    warmup=0.0,
    weight_decay=0.0,
    accumulate=1,
    clip_norm=1.0,
    ema_decay=0.5,
)
CONFIG = TeacherConfig(
    source="built_in",
    width=16,
    layers=1,
    queries=4,
    steps=3,
    images=2,
    prompts=2,
    optimizer=OPTIMIZER,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def objective(prompted, tokenizer, pairs=None, **changes):
    pairs = prompted.pairs("train", known=True) if pairs is None else pairs
    sampler = PromptSampler(prompted, pairs, tokenizer, CONTEXT, CPU)
    config = CONFIG.model_copy(update=changes)
    return GroundTruthObjective(tiny_teacher(), sampler, GroundTruthLoss(), config)


def test_a_mirror_moves_image_ground_truth_and_boxes_together():
    pixels = torch.randn(2, 3, 8, 8, generator=generator())
    masks, boxes = torch.zeros(3, 2, 8, 8), torch.zeros(3, 2, 4)
    masks[:, 0, 1:3, 4:7] = 1
    boxes[:, 0] = torch.tensor([4, 1, 7, 3]) / 8
    truth = GroundTruth(masks, boxes, torch.tensor([1, 1, 1]), masks.amax(1, keepdim=True))
    inputs = replace(
        some_prompts(1, 3),
        owner=torch.tensor([0, 1, 1]),
        boxes=torch.tensor([[5.5, 2.0, 3.0, 2.0]]).expand(3, 4) / 8,
        boxed=torch.ones(3).bool(),
    )
    batch = Batch([(0, 0), (1, 0), (1, 1)], pixels, inputs)
    for axis, dim in enumerate((-1, -2)):
        mirrored, known = mirror(batch, truth, torch.tensor([False, True]), axis)
        assert torch.equal(mirrored.pixels[0], pixels[0])
        assert torch.equal(mirrored.pixels[1], pixels[1].flip(dim))
        assert torch.equal(known.masks[0], masks[0])
        assert torch.equal(known.masks[1:], masks[1:].flip(dim))
        assert torch.equal(known.semantic[1:], truth.semantic[1:].flip(dim))
        for row, mask in enumerate(known.masks[:, 0]):
            ys, xs = mask.nonzero(as_tuple=True)
            box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 8
            assert_close(known.boxes[row, 0], box)
            corner, size = mirrored.inputs.boxes[row].view(2, 2)
            assert_close(torch.cat([corner - size / 2, corner + size / 2]), box)
        again = mirror(mirrored, known, torch.tensor([False, True]), axis)
        assert_close(again[1].boxes[:, 0], boxes[:, 0])
        assert_close(again[0].inputs.boxes, inputs.boxes)


def test_the_same_draw_gives_the_same_terms(prompted, tokenizer):
    trained = objective(prompted, tokenizer)
    one, again, other = (trained(0, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(term.isfinite() for term in one.values())


def test_prompts_come_from_the_given_pairs_and_at_most_so_many(prompted, tokenizer):
    pairs = prompted.pairs("train", known=True)[:7]
    trained = objective(prompted, tokenizer, pairs, prompts=3)
    batches, draw = [], trained.sampler.draw

    def watched(*given):
        batches.append(draw(*given))
        return batches[-1]

    trained.sampler.draw = watched
    for seed in range(12):
        trained(0, generator(seed))
    assert {pair for batch in batches for pair in batch.pairs} == set(pairs)
    assert all(len(batch.pixels) <= 2 for batch in batches)
    assert max(len(batch.pairs) for batch in batches) <= 6


def test_every_parameter_learns_but_those_that_sam3_never_uses(prompted, tokenizer):
    trained = objective(prompted, tokenizer)
    for seed in range(6):
        sum(trained(0, generator(seed)).values()).backward()
    still = {name for name, value in trained.model.named_parameters() if value.grad is None}
    unused = (
        "text_encoder.text_projection",
        "pixel_decoder.conv_layers.2",
        "pixel_decoder.norms.2",
    )
    unused += ("neck.fpn_layers.3",)
    assert all(any(part in name for part in unused) for name in still), still


def test_muon_leaves_out_the_outer_layers(prompted, tokenizer):
    trained = objective(prompted, tokenizer)
    hidden = hidden_matrices(trained, trained.outer_layers)
    assert "model.detr_decoder.layers.0.mlp.fc1.weight" in hidden
    assert not any("box_head.layer3" in name for name in hidden)


def test_no_ground_truth_to_learn_from_is_refused(prompted, tokenizer):
    with pytest.raises(ValueError, match="no training prompt has known ground truth"):
        objective(prompted, tokenizer, [])


def test_a_new_teacher_fits_the_images_and_reads_all_words_and_learns(prompted):
    model, tokenizer = new_teacher(CONFIG, prompted, generator())
    assert model.config.vision_config.image_size == 56
    assert model.config.text_config.max_position_embeddings == tokenizer.model_max_length
    ids = tokenizer(prompted.texts())["input_ids"]
    assert max(map(len, ids)) == tokenizer.model_max_length
    assert tokenizer.unk_token_id not in {token for text in ids for token in text}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    history = fit(model, tokenizer, prompted, CONFIG, Run(seed=0, device=CPU, log_every=1))
    assert [row["step"] for row in history] == [0, 1, 2]
    assert not model.training
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
