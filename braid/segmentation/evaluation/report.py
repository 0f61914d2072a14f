"""From what was judged to named figures, and to a verdict on the student.

Figures against the teacher's answers are `matched_iou`, `extra_iou`, `score_gap` and all that begin
with `agreement`, of which `agreement_presence` is a balanced accuracy; the others are against the
truth. `_withheld` and `_labelled` are those of the prompts whose truth no student saw in training
and of the rest, all of them on held-out images.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from braid.segmentation.evaluation.agreement import (
    Figures,
    Table,
    mask_figures,
    presence_figures,
    ratio,
    reliability,
)
from braid.segmentation.evaluation.evaluation import RANDOM_TEACHER, TEACHER, TRUTH, Judged

STUDENT, TRUTH_ONLY, UNTRAINED, INT8 = "student", "truth_only", "untrained", "int8"
SENSITIVE = 0.5  # of the teacher's prompt sensitivity that a student must have
BLIND = 0.55  # balanced accuracy of a presence that says nothing; a constant has 0.5
NEAR = 0.8  # of the teacher's IoU with the truth that a student must have
BY_LABEL = (
    "miou",
    "presence_balanced_accuracy",
    "matched_iou",
    "agreement_iou",
    "agreement_presence",
    "score_gap",
)  # figures that are given for labelled and withheld prompts too
COMPARED = (
    "miou",
    "boundary_iou",
    "presence_f1",
    "presence_balanced_accuracy",
    "ece",
    "prompt_sensitivity",
    "matched_iou",
    "agreement_iou",
    "agreement_iou_withheld",
    "score_gap",
)  # figures of every model that stand beside the student's


def report(
    judged: Mapping[str, Judged],
    labelled: Tensor,  # [P] bool, of the prompts
    bins: int,  # of the calibration error
) -> dict[str, Figures]:
    """All figures of every model, but those of the truth and of the teacher by themselves."""
    return {name: _figures(name, each, labelled, bins) for name, each in judged.items()}


def _figures(model: str, judged: Judged, labelled: Tensor, bins: int) -> Figures:
    made = _of_prompts(model, judged, labelled | True)
    for name, rows in {"labelled": labelled, "withheld": ~labelled}.items():
        some = _of_prompts(model, judged, rows)
        made |= {f"{figure}_{name}": some[figure] for figure in BY_LABEL if figure in some}
    if model != TRUTH:
        scores, right, found = judged.scored
        made["ece"] = reliability(scores, right, bins).error()
        made["ece_found"] = reliability(scores[found], right[found], bins).error()
    made["prompt_sensitivity"] = mean(judged.sensitivity)
    return made


def _of_prompts(model: str, judged: Judged, rows: Tensor) -> Figures:
    made: Figures = {}
    if model != TRUTH:
        made |= _by_truth({name: each[rows] for name, each in judged.by_truth.items()})
    if model != TEACHER:
        made |= _by_teacher({name: each[rows] for name, each in judged.by_teacher.items()})
    return made


def _by_truth(table: Table) -> Figures:
    masks = mask_figures(table)
    return {
        "miou": masks["matched_iou"],
        "found_iou": masks["extra_iou"],
        "boundary_iou": masks["boundary_iou"],
        "box_iou": masks["box_iou"],
        "semantic_iou": masks["semantic_iou"],
        **presence_figures(table),
    }


def _by_teacher(table: Table) -> Figures:
    masks = mask_figures(table)
    return {
        "matched_iou": masks["matched_iou"],
        "extra_iou": masks["extra_iou"],
        "agreement_iou": masks["agreement_iou"],
        "agreement_boundary_iou": masks["boundary_iou"],
        "agreement_box_iou": masks["box_iou"],
        "agreement_semantic_iou": masks["semantic_iou"],
        "agreement_presence": presence_figures(table)["presence_balanced_accuracy"],
        "score_gap": masks["score_gap"],
        "score_gap_signed": masks["score_gap_signed"],
    }


def mean(values: Tensor) -> float | None:
    """The mean of a vector; None of none."""
    return float(values.mean()) if len(values) else None


def flattened(models: Mapping[str, Figures]) -> Figures:
    """All of the student's figures, and of the others `<figure>_<model>` for those of `COMPARED`.

    The student's IoU with the truth is `miou_student`.
    """
    flat = {"miou_student" if name == "miou" else name: v for name, v in models[STUDENT].items()}
    for model in [each for each in models if each != STUDENT]:
        some = {name: models[model][name] for name in COMPARED if name in models[model]}
        flat |= {f"{name}_{model}": value for name, value in some.items()}
    own, quantised = models[STUDENT]["miou"], models[INT8]["miou"]
    flat["miou_ratio"] = ratio(own, models[TEACHER]["miou"])
    flat["miou_drop_int8"] = None if own is None or quantised is None else own - quantised
    return flat


def null_reason(figures: Figures) -> str | None:
    """Why some figures are None, where any is."""
    if None not in figures.values():
        return None
    return "nothing to average over: no such prompt, no such object, or nothing found"


def verdict(models: Mapping[str, Figures]) -> str:
    """`ok`, or what is wrong with the student, worst first.

    - `teacher_finds_nothing`: there is nothing to agree with
    - `collapsed`: it agrees with the teacher no more than chance or fresh weights do
    - `prompt_blind`: masks of other prompts differ less than half as much as the teacher's do
    - `always_present`: its presence tells hardly better than always saying the same
    - `no_distillation`: the control, which never saw the teacher, agrees with it as much
    - `far_from_teacher`: its IoU with the truth is less than 0.8 of the teacher's
    """
    own, teacher = models[STUDENT], models[TEACHER]

    def no_more(figure: str, than: float | None) -> bool:
        value = own[figure]
        return value is not None and than is not None and value <= than

    def below(share: float, figure: str) -> bool:
        reached = ratio(own[figure], teacher[figure])
        return reached is not None and reached < share

    if own["matched_iou"] is None:
        return "teacher_finds_nothing"
    chance = (models[each]["agreement_iou"] for each in (RANDOM_TEACHER, UNTRAINED))
    if any(no_more("agreement_iou", each) for each in chance):
        return "collapsed"
    if below(SENSITIVE, "prompt_sensitivity"):
        return "prompt_blind"
    if no_more("presence_balanced_accuracy", BLIND):
        return "always_present"
    if no_more("agreement_iou", models[TRUTH_ONLY]["agreement_iou"]):
        return "no_distillation"
    return "far_from_teacher" if below(NEAR, "miou") else "ok"
