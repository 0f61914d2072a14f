"""How good a teacher is, beside trivial predictors."""

import pytest
import torch

from braid.segmentation.sam3.predictor import Predictor
from braid.segmentation.teacher.tiny_sam3 import (
    FILLED_BOX,
    TEACHER,
    WHOLE_IMAGE,
    filled,
    headline,
    teacher_rows,
)
from tests.segmentation.tiny_models import tiny_teacher

CPU = torch.device("cpu")


def metrics(prompted, tokenizer, pairs=None, score=0.5, images=2):
    """Rows of the report by model and kind of prompts."""
    pairs = prompted.pairs("val", known=True) if pairs is None else pairs
    teacher = Predictor.of(tiny_teacher(), prompted.texts(), tokenizer, CPU)
    rows = teacher_rows(teacher, prompted, pairs, score=score, images=images)
    return {(row["model"], row["kind"]): row for row in rows}


def test_the_teacher_stands_beside_what_no_model_is_needed_for(prompted, tokenizer):
    rows = metrics(prompted, tokenizer, score=0.0)
    assert rows[WHOLE_IMAGE, "all"]["presence_balanced_accuracy"] == 0.5
    always = rows[TEACHER, "all"]["presence_f1_always"]
    assert rows[WHOLE_IMAGE, "all"]["presence_f1"] == always
    assert 0 < rows[WHOLE_IMAGE, "all"]["iou"] < 0.6
    assert rows[FILLED_BOX, "box"]["iou"] > 0.4
    assert 0 <= rows[TEACHER, "all"]["iou"] <= 1
    kinds = {"all", "generic", "category", "caption", "box"}
    assert {kind for model, kind in rows if model == TEACHER} == kinds
    assert {kind for model, kind in rows if model == WHOLE_IMAGE} == kinds - {"box"}
    prompts = {kind: rows[TEACHER, kind]["prompts"] for kind in kinds}
    assert prompts.pop("all") == sum(prompts.values())
    nothing = metrics(prompted, tokenizer, score=1.0)
    assert nothing[TEACHER, "all"]["iou"] == 0
    assert nothing[WHOLE_IMAGE, "all"]["iou"] == rows[WHOLE_IMAGE, "all"]["iou"]
    for key, row in metrics(prompted, tokenizer, score=0.0, images=1).items():
        assert row == pytest.approx(rows[key], abs=1e-5)


def test_the_whole_image_scores_the_fraction_of_the_true_objects(prompted, tokenizer):
    pairs = prompted.pairs("val", known=True)
    pairs = [pair for pair in pairs if prompted.prompt(pair).kind == "box"]
    area = prompted.ground_truth(pairs, 16).masks[:, 0].ge(0.5).float().mean((1, 2))
    area = area[area > 0]  # boxes around nothing have no overlap to score
    rows = metrics(prompted, tokenizer, pairs)
    assert rows[WHOLE_IMAGE, "all"]["iou"] == pytest.approx(area.mean().item(), abs=1e-5)


def test_without_known_ground_truth_there_are_no_rows(prompted, tokenizer):
    assert metrics(prompted, tokenizer, []) == {}
    nothing = dict.fromkeys(("miou_teacher", "presence_balanced_accuracy_teacher"))
    assert headline([]) == {**nothing, "status": "unknown"}


def test_a_filled_box_covers_the_cells_whose_centres_it_has():
    detections = filled(torch.tensor([[0.5, 0.25, 0.5, 0.5]]), 4)
    expected = torch.zeros(4, 4).bool()
    expected[:2, 1:3] = True
    assert torch.equal(detections.masks[0, 0], expected)
    assert detections.boxes.tolist() == [[[0.25, 0.0, 0.75, 0.5]]]
    assert detections.detected.all()
    assert detections.present.all()


@pytest.mark.parametrize(
    ("iou", "presence", "status"),
    [
        (0.7, 0.8, "ok"),
        (0.1, 0.8, "finds_nothing"),
        (0.7, 0.5, "presence_at_chance"),
        (0.7, 0.54, "presence_at_chance"),  # where a student's is called always_present
        (0.7, None, "ok"),
        (None, 0.8, "unknown"),
    ],
)
def test_failures_have_names(iou, presence, status):
    teacher = {"model": TEACHER, "kind": "all", "iou": iou, "presence_balanced_accuracy": presence}
    trivial = {"model": WHOLE_IMAGE, "kind": "all", "iou": 0.1, "presence_balanced_accuracy": 0.5}
    other = {**trivial, "kind": "generic", "iou": 0.9}
    assert headline([teacher, trivial, other]) == {
        "miou_teacher": iou,
        "presence_balanced_accuracy_teacher": presence,
        "status": status,
    }
