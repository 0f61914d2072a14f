"""Tables of all models, the headline metrics, and the status of the student.

`cgf1`, `pmf1` and `il_mcc` are SA-Co's, at their score of 1/2; all others take the params'.
`symmetric_iou` lowers the IoU by extra masks as much as by missed ones.
Metrics against the teacher's detections are `matched_iou`, `extra_iou`, `score_gap` and all that
begin with `agreement`, of which `agreement_presence` is a balanced accuracy; the others are against
ground truth. Withheld prompts are those whose ground truth no student was given in training; all
are of held-out images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from braid.segmentation.evaluation.calibration import reliability
from braid.segmentation.evaluation.cost import MEGABYTE, megabytes
from braid.segmentation.evaluation.evaluator import (
    INT8,
    RANDOM_TEACHER,
    STUDENT,
    TEACHER,
    TRUTH,
    TRUTH_ONLY,
    UNTRAINED,
    Evaluation,
)
from braid.segmentation.metrics.agreement import (
    BLIND,
    Metrics,
    mask_metrics,
    presence_metrics,
    ratio,
    rows_of,
)
from braid.segmentation.metrics.cgf1 import concept_metrics
from braid.segmentation.sam3.predictor import Predictor
from braid.segmentation.sam3.sam3 import count_parameters

Row = dict[str, Any]

SENSITIVE = 0.5  # of the teacher's prompt sensitivity that a student must have
NEAR = 0.8  # of the teacher's cgF1 that a student must have
BY_SPLIT = (
    "iou",
    "cgf1",
    "presence_balanced_accuracy",
    "matched_iou",
    "agreement_iou",
    "agreement_presence",
    "score_gap",
)  # metrics that are given for labeled and withheld prompts too
NULL_REASON = "nothing to average over, as no such prompt, no such object, or nothing detected"


def model_metrics(
    evaluations: Mapping[str, Evaluation],
    bins: int,  # of the calibration error
) -> dict[str, Metrics]:
    """All metrics of every model, but those of ground truth and of the teacher by themselves."""
    models = {name: _of_all(name, evaluation, bins) for name, evaluation in evaluations.items()}
    own, teacher = models[STUDENT]["iou"], models[TEACHER]
    for metrics in models.values():
        if "iou" in metrics:
            iou = metrics["iou"]
            metrics["cgf1_ratio"] = ratio(metrics["cgf1"], teacher["cgf1"])
            metrics["iou_ratio"] = ratio(iou, teacher["iou"])
            metrics["iou_drop"] = None if own is None or iou is None else own - iou
    return models


def _of_all(model: str, evaluation: Evaluation, bins: int) -> Metrics:
    every = torch.ones_like(evaluation.by_truth["known"], dtype=torch.bool)
    metrics = _of_prompts(model, evaluation, every)
    if model != TRUTH:
        scores, right, detected = evaluation.scored
        metrics["ece"] = reliability(scores, right, bins).error()
        metrics["ece_detected"] = reliability(scores[detected], right[detected], bins).error()
    sensitivity = evaluation.sensitivity
    metrics["prompt_sensitivity"] = float(sensitivity.mean()) if len(sensitivity) else None
    return metrics


def _of_prompts(model: str, evaluation: Evaluation, rows: Tensor) -> Metrics:
    """Metrics of some prompts, [P] bool."""
    metrics: Metrics = {}
    if model != TRUTH:
        table = rows_of(evaluation.by_truth, rows)
        masks = mask_metrics(table)
        metrics |= {
            "iou": masks["matched_iou"],
            "detected_iou": masks["extra_iou"],
            "symmetric_iou": masks["agreement_iou"],
            "boundary_iou": masks["boundary_iou"],
            "box_iou": masks["box_iou"],
            "semantic_iou": masks["semantic_iou"],
            **presence_metrics(table),
            **concept_metrics(rows_of(evaluation.concepts, rows)),
        }
    if model != TEACHER:
        table = rows_of(evaluation.by_teacher, rows)
        masks = mask_metrics(table)
        metrics |= {
            "matched_iou": masks["matched_iou"],
            "extra_iou": masks["extra_iou"],
            "agreement_iou": masks["agreement_iou"],
            "agreement_boundary_iou": masks["boundary_iou"],
            "agreement_box_iou": masks["box_iou"],
            "agreement_semantic_iou": masks["semantic_iou"],
            "agreement_presence": presence_metrics(table)["presence_balanced_accuracy"],
            "score_gap": masks["score_gap"],
            "score_gap_signed": masks["score_gap_signed"],
        }
    return metrics


def model_rows(
    models: Mapping[str, Metrics], predictors: Mapping[str, Predictor], prompts: int
) -> list[Row]:
    """The table of models: all metrics of all prompts, parameters, size."""
    columns = models[STUDENT]
    return [
        {
            "model": name,
            **{column: metrics.get(column) for column in columns},
            "prompts": prompts,
            **_size(name, predictors),
            "null_reason": _null_reason(metrics),
        }
        for name, metrics in models.items()
    ]


def _size(name: str, predictors: Mapping[str, Predictor]) -> Row:
    """Parameters and millions of bytes: in half precision, or in 8 bits as it is."""
    if name not in predictors:
        return {"parameters": None, "megabytes": None}
    model = predictors[name].model
    if name == INT8:
        return {"parameters": None, "megabytes": megabytes(model)}
    count = count_parameters(model)
    return {"parameters": count, "megabytes": 2 * count / MEGABYTE}


def split_rows(
    evaluations: Mapping[str, Evaluation],
    labeled: Tensor,  # [P] bool, of the prompts
) -> list[Row]:
    """The table of labeled and withheld prompts: a row for each model and either of them."""
    return [
        _split_row(name, split, _of_prompts(name, evaluation, rows), int(rows.sum()))
        for name, evaluation in evaluations.items()
        for split, rows in {"labeled": labeled, "withheld": ~labeled}.items()
    ]


def _split_row(model: str, split: str, metrics: Metrics, prompts: int) -> Row:
    chosen = {name: metrics[name] for name in BY_SPLIT if name in metrics}
    return {
        "model": model,
        "split": split,
        "prompts": prompts,
        **{name: chosen.get(name) for name in BY_SPLIT},
        "null_reason": _null_reason(chosen),
    }


def _null_reason(metrics: Metrics) -> str | None:
    """Which metrics are None and why, where any is; those that a model has not are left out."""
    empty = [name for name, value in metrics.items() if value is None]
    return f"{', '.join(empty)}: {NULL_REASON}" if empty else None


def headline(models: Mapping[str, Metrics]) -> Row:
    """What the student is worth in eleven numbers, and its status."""
    own, teacher = models[STUDENT], models[TEACHER]
    return {
        "cgf1_ratio": own["cgf1_ratio"],
        "miou_student": own["iou"],
        "miou_teacher": teacher["iou"],
        "miou_ratio": own["iou_ratio"],
        "agreement": own["agreement_iou"],
        "presence_balanced_accuracy": own["presence_balanced_accuracy"],
        "presence_balanced_accuracy_teacher": teacher["presence_balanced_accuracy"],
        "score_gap": own["score_gap_signed"],
        "ece": own["ece"],
        "prompt_sensitivity": own["prompt_sensitivity"],
        "boundary_iou": own["boundary_iou"],
        "status": status(models),
    }


def status(models: Mapping[str, Metrics]) -> str:
    """`ok`, or what is wrong with the student, worst first.

    - `teacher_finds_nothing`: there is nothing to agree with
    - `collapsed`: it agrees with the teacher no more than chance or fresh weights do
    - `prompt_blind`: masks of other prompts differ less than half as much as the teacher's do
    - `always_present`: its presence is hardly better than always the same
    - `no_distillation`: the control, which never had the teacher, agrees with it as much
    - `far_from_teacher`: its cgF1 is less than 0.8 of the teacher's
    """
    own, teacher = models[STUDENT], models[TEACHER]

    def no_more(metric: str, than: float | None) -> bool:
        value = own[metric]
        return value is not None and than is not None and value <= than

    def below(fraction: float, metric: str) -> bool:
        reached = ratio(own[metric], teacher[metric])
        return reached is not None and reached < fraction

    if own["matched_iou"] is None:
        return "teacher_finds_nothing"
    chance = (models[name]["agreement_iou"] for name in (RANDOM_TEACHER, UNTRAINED))
    if any(no_more("agreement_iou", value) for value in chance):
        return "collapsed"
    if below(SENSITIVE, "prompt_sensitivity"):
        return "prompt_blind"
    if no_more("presence_balanced_accuracy", BLIND):
        return "always_present"
    if no_more("agreement_iou", models[TRUTH_ONLY]["agreement_iou"]):
        return "no_distillation"
    return "far_from_teacher" if below(NEAR, "cgf1") else "ok"
