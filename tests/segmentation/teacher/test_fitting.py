"""The teacher's training objective, and the figures it is judged by."""

from dataclasses import replace

import pytest
import torch
from braid.segmentation.data.prompts import Asking, ask, write_prompts
from torch.testing import assert_close

from braid.segmentation.data.prompted import GroundTruth, open_prompted
from braid.segmentation.data.sa1b import open_images
from braid.segmentation.evaluation.evaluator import respondent
from braid.segmentation.preparation.built_in import write_built_in
from braid.segmentation.preparation.scan import scan, write_manifest
from braid.segmentation.sam3.tokens import word_tokenizer, words_in
from braid.segmentation.teacher.fitting import GroundTruthObjective, mirror
from braid.segmentation.teacher.report import filled, teacher_report, teacher_verdict
from braid.segmentation.training.batches import Batch, PromptSampler
from braid.segmentation.training.ground_truth import GroundTruthLoss
from braid.training.optimizers import hidden_matrices
from tests.segmentation.tiny_models import CONTEXT, some_prompts, tiny_teacher

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sa1b")
    write_built_in(folder / "images", scenes=6, photos=0, most_shapes=2, size=56, seed=0)
    write_manifest(folder, scan(folder / "images", val=2, faults="fatal"), image_size=56)
    kinds = ("generic", "category", "box", "caption")
    asking = Asking(kinds=kinds, generic="objects", per_image=6, negative_fraction=0.3)
    write_prompts(folder, ask(open_images(folder, cache_mib=1), asking, 0))
    return open_prompted(folder, cache_mib=1)


@pytest.fixture(scope="module")
def tokenizer(prompted):
    texts = [prompt.text for prompts in prompted.prompts for prompt in prompts]
    return word_tokenizer(words_in(texts), length=CONTEXT)


def objective(prompted, tokenizer, pairs=None, **changes):
    pairs = prompted.pairs("train", known=True) if pairs is None else pairs
    questions = PromptSampler(prompted, pairs, tokenizer, CONTEXT, CPU)
    sizes = {"images": 2, "prompts": 2, **changes}
    return GroundTruthObjective(tiny_teacher(), questions, GroundTruthLoss(), **sizes)


def test_a_mirror_moves_image_truth_and_boxes_together():
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
    asked = Batch([(0, 0), (1, 0), (1, 1)], pixels, inputs)
    for axis, dim in enumerate((-1, -2)):
        seen, known = mirror(asked, truth, torch.tensor([False, True]), axis)
        assert torch.equal(seen.pixels[0], pixels[0])
        assert torch.equal(seen.pixels[1], pixels[1].flip(dim))
        assert torch.equal(known.masks[0], masks[0])
        assert torch.equal(known.masks[1:], masks[1:].flip(dim))
        assert torch.equal(known.semantic[1:], truth.semantic[1:].flip(dim))
        for row, mask in enumerate(known.masks[:, 0]):
            ys, xs = mask.nonzero(as_tuple=True)
            box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / 8
            assert_close(known.boxes[row, 0], box)
            corner, size = seen.inputs.boxes[row].view(2, 2)
            assert_close(torch.cat([corner - size / 2, corner + size / 2]), box)
        again = mirror(seen, known, torch.tensor([False, True]), axis)
        assert_close(again[1].boxes[:, 0], boxes[:, 0])
        assert_close(again[0].inputs.boxes, inputs.boxes)


def test_the_same_draw_gives_the_same_terms(prompted, tokenizer):
    made = objective(prompted, tokenizer)
    one, again, other = (made(0, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert all(term.isfinite() for term in one.values())


def test_prompts_come_from_the_given_pairs_and_at_most_so_many(prompted, tokenizer):
    pairs = prompted.pairs("train", known=True)[:7]
    made = objective(prompted, tokenizer, pairs, prompts=3)
    seen, draw = [], made.questions.draw

    def watched(*given):
        seen.append(draw(*given))
        return seen[-1]

    made.questions.draw = watched
    for seed in range(12):
        made(0, generator(seed))
    assert {pair for each in seen for pair in each.pairs} == set(pairs)
    assert all(len(each.pixels) <= 2 for each in seen)
    assert max(len(each.pairs) for each in seen) <= 6


def test_every_parameter_learns_but_those_that_sam3_never_uses(prompted, tokenizer):
    made = objective(prompted, tokenizer)
    for seed in range(6):
        sum(made(0, generator(seed)).values()).backward()
    still = {name for name, each in made.model.named_parameters() if each.grad is None}
    unused = (
        "text_encoder.text_projection",
        "pixel_decoder.conv_layers.2",
        "pixel_decoder.norms.2",
    )
    unused += ("neck.fpn_layers.3",)
    assert all(any(each in name for each in unused) for name in still), still


def test_muon_is_told_of_the_outer_layers(prompted, tokenizer):
    made = objective(prompted, tokenizer)
    hidden = hidden_matrices(made, made.outer_layers)
    assert "model.detr_decoder.layers.0.mlp.fc1.weight" in hidden
    assert not any("box_head.layer3" in name for name in hidden)


def test_no_truth_to_learn_from_is_refused(prompted, tokenizer):
    with pytest.raises(ValueError, match="no training prompt has a known truth"):
        objective(prompted, tokenizer, [])


def report(prompted, tokenizer, pairs=None, score=0.5, images=2):
    pairs = prompted.pairs("val", known=True) if pairs is None else pairs
    texts = {prompted.prompt(pair).text for pair in prompted.pairs("val")}
    teacher = respondent(tiny_teacher(), texts, tokenizer, CPU)
    return teacher_report(teacher, prompted, pairs, score=score, images=images)


def test_figures_stand_beside_what_no_model_is_needed_for(prompted, tokenizer):
    figures = report(prompted, tokenizer, score=0.0)
    assert figures["presence_balanced_accuracy_always"] == 0.5
    assert 0 < figures["iou_whole_image"] < 0.6
    assert figures["iou_box_filled_box"] > 0.4
    assert 0 <= figures["iou"] <= 1
    assert {"iou_generic", "iou_generic_whole_image", "iou_category", "iou_box"} <= set(figures)
    nothing = report(prompted, tokenizer, score=1.0)
    assert nothing["iou"] == 0
    assert nothing["iou_whole_image"] == figures["iou_whole_image"]
    assert report(prompted, tokenizer, score=0.0, images=1) == pytest.approx(figures, abs=1e-5)


def test_the_whole_image_scores_the_share_of_the_true_objects(prompted, tokenizer):
    pairs = prompted.pairs("val", known=True)
    pairs = [each for each in pairs if prompted.prompt(each).kind == "box"]
    area = prompted.truth(pairs, 16).masks[:, 0].ge(0.5).float().mean((1, 2))
    figures = report(prompted, tokenizer, pairs)
    assert figures["iou_whole_image"] == pytest.approx(area.mean().item(), abs=1e-5)


def test_without_known_truth_there_are_no_figures(prompted, tokenizer):
    figures = report(prompted, tokenizer, [])
    assert figures["iou"] is None
    assert teacher_verdict(figures) == "unknown"


def test_a_filled_box_covers_the_cells_whose_centres_it_has():
    answers = filled(torch.tensor([[0.5, 0.25, 0.5, 0.5]]), 4)
    expected = torch.zeros(4, 4).bool()
    expected[:2, 1:3] = True
    assert torch.equal(answers.masks[0, 0], expected)
    assert answers.boxes.tolist() == [[[0.25, 0.0, 0.75, 0.5]]]
    assert answers.found.all()
    assert answers.present.all()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "ok"),
        ({"iou": 0.1}, "finds_nothing"),
        ({"presence_balanced_accuracy": 0.5}, "presence_at_chance"),
        ({"presence_balanced_accuracy": None}, "ok"),
        ({"iou": None}, "unknown"),
    ],
)
def test_failures_have_names(change, status):
    good = {"iou": 0.7, "iou_whole_image": 0.1, "presence_balanced_accuracy": 0.8}
    assert teacher_verdict({**good, **change}) == status
