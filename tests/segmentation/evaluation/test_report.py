"""Tables of models, the headline, and the status of the student."""

import io
from dataclasses import replace

import pytest
import torch

from braid.segmentation.data.prompted import prompt_batch
from braid.segmentation.evaluation.evaluator import RANDOM_TEACHER, TEACHER, TRUTH
from braid.segmentation.evaluation.report import (
    BY_SPLIT,
    NULL_REASON,
    group_rows,
    headline,
    model_metrics,
    model_rows,
    status,
)
from braid.segmentation.metrics.agreement import (
    compare,
    mask_metrics,
    predicted_detections,
    true_detections,
)
from tests.segmentation.evaluated import PAIRS, SIZE, Prompted, evaluations, models


def test_metrics_do_not_depend_on_how_prompts_are_batched():
    one, all_at_once = (model_metrics(evaluations(images), 5) for images in (2, 5))
    for name in (TEACHER, "student", TRUTH):
        assert set(one[name]) == set(all_at_once[name])
        for metric, value in one[name].items():
            other = all_at_once[name][metric]
            assert value == other or value == pytest.approx(other, rel=1e-4), metric
    assert one["student"]["iou"] > 0
    assert 0 < one["student"]["agreement_iou"] < 1


def test_every_metric_is_that_of_the_prompts_taken_together():
    labeled = torch.tensor([place != 2 for _, place in PAIRS])
    metrics = model_metrics(evaluations(), 5)["student"]
    truth = true_detections(Prompted().ground_truth(PAIRS, SIZE))
    batch = prompt_batch(Prompted(), PAIRS)
    predicted, teacher = (
        predicted_detections(models()[name](batch), score=0.2, size=SIZE)
        for name in ("student", TEACHER)
    )
    assert metrics["iou"] == pytest.approx(mask_metrics(compare(predicted, truth))["matched_iou"])
    agreement = mask_metrics(compare(predicted, teacher))
    for name in ("agreement_iou", "matched_iou", "score_gap_signed"):
        assert metrics[name] == pytest.approx(agreement[name]), name
    prompts = [Prompted().prompt(pair) for pair in PAIRS]
    splits, by_kind = group_rows(evaluations(), prompts)
    rows = {(row["model"], row["split"]): row for row in splits}
    for split, some in {"withheld": ~labeled, "labeled": labeled}.items():
        part = mask_metrics(compare(predicted.take(some), teacher.take(some)))
        row = rows["student", split]
        assert row["agreement_iou"] == pytest.approx(part["agreement_iou"])
        assert row["prompts"] == int(some.sum())
        assert set(BY_SPLIT) <= set(row)
    kinds = {(row["model"], row["kind"]): row for row in by_kind}
    assert {kind for _, kind in kinds} == {"box", "caption", "category"}
    box = torch.tensor([prompt.kind == "box" for prompt in prompts])
    part = mask_metrics(compare(predicted.take(box), teacher.take(box)))
    row = kinds["student", "box"]
    assert (row["agreement_iou"], row["prompts"]) == (pytest.approx(part["agreement_iou"]), 5)


def test_ground_truth_and_chance_stand_beside_the_models():
    metrics = model_metrics(evaluations(), 5)
    assert "iou" not in metrics[TRUTH]
    assert "agreement_iou" not in metrics[TEACHER]
    assert metrics[TRUTH]["agreement_iou"] > 0
    assert metrics[TRUTH]["prompt_sensitivity"] > metrics[TEACHER]["prompt_sensitivity"]
    assert metrics[RANDOM_TEACHER]["agreement_iou"] < 1
    prompts = [replace(Prompted().prompt(pair), labeled=True) for pair in PAIRS]
    rows = {(row["model"], row["split"]): row for row in group_rows(evaluations(), prompts)[0]}
    assert rows["student", "withheld"]["agreement_iou"] is None  # there are none
    reason = rows["student", "withheld"]["null_reason"]
    assert reason == f"{', '.join(BY_SPLIT)}: {NULL_REASON}"
    known = [row for row in rows.values() if row["split"] == "labeled"]
    for row in known:  # a reason names its own columns, not those of another model
        named = (row["null_reason"] or ": ").split(": ")[0].split(", ")
        assert all(row[name] is None for name in named if name)


GOOD = {"agreement_iou": 0.8, "prompt_sensitivity": 0.6, "iou": 0.7, "cgf1": 0.4}
GOOD |= {"presence_f1": 0.9, "presence_balanced_accuracy": 0.8}
MODELS = {
    TEACHER: {"iou": 0.75, "prompt_sensitivity": 0.7, "cgf1": 0.45},
    "student": {**GOOD, "matched_iou": 0.8},
    "truth_only": {**GOOD, "agreement_iou": 0.6},
    "untrained": {**GOOD, "agreement_iou": 0.1},
    "int8": {**GOOD, "iou": 0.68},
    RANDOM_TEACHER: {**GOOD, "agreement_iou": 0.2},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ok"),
        ({"matched_iou": None, "agreement_iou": None}, "teacher_finds_nothing"),
        ({"agreement_iou": 0.2}, "collapsed"),
        ({"prompt_sensitivity": 0.34}, "prompt_blind"),
        ({"presence_balanced_accuracy": 0.52}, "always_present"),
        ({"agreement_iou": 0.6}, "no_distillation"),
        ({"cgf1": 0.35}, "far_from_teacher"),
        ({"iou": 0.2}, "ok"),  # the IoU alone would not see false positives either
        (
            {"prompt_sensitivity": None, "presence_balanced_accuracy": None, "cgf1": None},
            "unknown",
        ),  # as without negative prompts
        ({"agreement_iou": 0.05, "prompt_sensitivity": 0.0}, "collapsed"),
    ],
)
def test_failures_have_names(changes, expected):
    assert status({**MODELS, "student": {**MODELS["student"], **changes}}) == expected


def test_the_table_has_a_row_for_each_model_and_the_headline_a_few_of_its_numbers():
    metrics = model_metrics(evaluations(), 5)
    rows = {row["model"]: row for row in model_rows(metrics, models(), len(PAIRS))}
    assert set(rows) == {TEACHER, "student", TRUTH, RANDOM_TEACHER}
    assert len({tuple(row) for row in rows.values()}) == 1  # the same columns
    student, teacher = rows["student"], rows[TEACHER]
    assert student["iou_ratio"] == pytest.approx(student["iou"] / teacher["iou"])
    assert student["iou_drop"] == 0
    assert teacher["iou_drop"] == pytest.approx(student["iou"] - teacher["iou"])
    assert rows[TRUTH]["iou"] is rows[TRUTH]["parameters"] is None
    for name, row in rows.items():  # metrics that a model has not need no reason
        assert (row["null_reason"] is None) == (None not in metrics[name].values())
    kept = io.BytesIO()
    torch.save(models()["student"].model.state_dict(), kept)
    assert student["megabytes"] == pytest.approx(kept.tell() / 1e6, rel=0.3)  # names are long here
    assert student["prompts"] == len(PAIRS)
    metrics |= dict.fromkeys(("truth_only", "untrained", "int8"), metrics["student"])
    figures = headline(metrics)
    assert len(figures) == 12
    assert figures["miou_ratio"] == student["iou_ratio"]
    assert (figures["miou_student"], figures["miou_teacher"]) == (student["iou"], teacher["iou"])
    assert figures["agreement"] == student["agreement_iou"]
    assert figures["score_gap_signed"] == student["score_gap_signed"]
    presence = "presence_balanced_accuracy"
    assert figures[presence] == student[presence]
    assert figures[f"{presence}_teacher"] == teacher[presence]
    assert figures["status"] == "collapsed"
