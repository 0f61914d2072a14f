"""Tables of all models, the headline metrics, the status of the student, figures of examples.

`cgf1`, `pmf1` and `il_mcc` are SA-Co's, at their score of 1/2; all others take the params'.
`symmetric_iou` lowers the IoU by extra masks as much as by missed ones.
Metrics against the teacher's detections are `matched_iou`, `extra_iou`, `score_gap` and all that
begin with `agreement`, of which `agreement_presence` is a balanced accuracy; the others are against
ground truth. Withheld prompts are those whose ground truth no student was given in training; all
are of held-out images.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from braid.common.plotting import BLUE, GREEN, ORANGE, save, styled
from braid.segmentation.data.prompted import Pair, Prompt, PromptedImages
from braid.segmentation.evaluation.evaluator import (
    INT8,
    MEGABYTE,
    RANDOM_TEACHER,
    STUDENT,
    TEACHER,
    TRUTH,
    TRUTH_ONLY,
    UNTRAINED,
    Evaluation,
    Evaluator,
    megabytes,
    reliability,
)
from braid.segmentation.metrics.agreement import (
    BLIND,
    Detections,
    Metrics,
    Table,
    assign,
    compare,
    concept_metrics,
    mask_iou,
    mask_metrics,
    presence_metrics,
    ratio,
    rows_of,
)
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
)  # metrics that are given for labeled and withheld prompts, and for each kind, too
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
    """Parameters and millions of bytes of weights, as the model was evaluated."""
    if name not in predictors:
        return {"parameters": None, "megabytes": None}
    model = predictors[name].model
    if name == INT8:
        return {"parameters": None, "megabytes": megabytes(model)}
    stored = sum(value.nbytes for value in model.state_dict().values())
    return {"parameters": count_parameters(model), "megabytes": stored / MEGABYTE}


def group_rows(
    evaluations: Mapping[str, Evaluation],
    prompts: Sequence[Prompt],  # P
) -> tuple[list[Row], list[Row]]:
    """Two tables, a row for each model and group: labeled and withheld prompts; their kinds."""
    labeled = torch.tensor([prompt.labeled for prompt in prompts])
    kinds: dict[str, Tensor] = {
        kind: torch.tensor([prompt.kind == kind for prompt in prompts])
        for kind in sorted({prompt.kind for prompt in prompts})
    }
    splits = {"labeled": labeled, "withheld": ~labeled}
    return _group_rows(evaluations, "split", splits), _group_rows(evaluations, "kind", kinds)


def _group_rows(
    evaluations: Mapping[str, Evaluation], column: str, groups: Mapping[str, Tensor]
) -> list[Row]:
    return [
        {"model": name, column: group, **_group_row(_of_prompts(name, evaluation, rows), rows)}
        for name, evaluation in evaluations.items()
        for group, rows in groups.items()
    ]


def _group_row(metrics: Metrics, rows: Tensor) -> Row:
    chosen = {name: metrics[name] for name in BY_SPLIT if name in metrics}
    return {
        "prompts": int(rows.sum()),
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
        "score_gap_signed": own["score_gap_signed"],
        "ece": own["ece"],
        "prompt_sensitivity": own["prompt_sensitivity"],
        "boundary_iou": own["boundary_iou"],
        "status": status(models),
    }


def status(models: Mapping[str, Metrics]) -> str:
    """`ok`, or what is wrong with the student, worst first; `unknown` where its cgF1 is None.

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
    if own["cgf1"] is None:
        return "unknown"
    return "far_from_teacher" if below(NEAR, "cgf1") else "ok"


# ---- Figures of examples: image, ground truth and every model, failures among them -----------
# Prompts are chosen by rule: the worst, the median and the best by the student's agreement with its
# teacher, then one of each kind that matters. A mask has the color of the object that it is matched
# to; one that is matched to none is black. The white frame is the box of a prompt.

COLORS = (ORANGE, BLUE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")  # of objects, in turn
UNMATCHED = "black"
OPACITY = 0.55
_SCORES = 3  # that are written below a panel
_CELL = 1.5  # inches; side of a panel
_LINE = 18  # characters of a row's label
_WHOLE = (0.0, 1.0, 1.0, 0.0)  # left, right, bottom, top of every panel


@dataclass(frozen=True)
class Example:
    """One prompt and all detections for it."""

    reason: str  # for which it is shown
    prompt: Prompt
    image: Tensor  # [3, S, S] in [0, 1]
    truth: Detections  # of one prompt, like all others here
    models: Mapping[str, Detections]  # by the name of their column, the teacher first


def select(
    prompted: PromptedImages,
    pairs: Sequence[Pair],  # P
    by_teacher: Table,  # [P] of the student
    count: int,
) -> dict[str, Pair]:
    """At most `count` different prompts, by the reason for which they are shown.

    Of a kind of prompts it is the median one, of negative prompts the worst. Teacher and student
    that both detect nothing agree. A photo is an image in which not every object is annotated.
    """
    prompts = [prompted.prompt(pair) for pair in pairs]
    photos = [not prompted.images.record(image).exhaustive for image, _ in pairs]
    masks = by_teacher["detections"] + by_teacher["references"]
    agreement = (2 * by_teacher["iou"] / masks.clamp_min(1)).where(masks > 0, 1.0).tolist()
    order = sorted(range(len(prompts)), key=lambda place: (agreement[place], place))
    some = [place for place in order if masks[place]]  # where there is something to draw

    def kind(name: str) -> list[int]:
        return _outwards([place for place in some if prompts[place].kind == name])

    candidates = {
        "worst": some,
        "median": _outwards(some),
        "best": some[::-1],
        "negative": [place for place in order if prompts[place].targets == ()],
        "withheld": _outwards([place for place in some if not prompts[place].labeled]),
        "photo": _outwards([place for place in some if photos[place]]),
        "box": kind("box"),
        "caption": kind("caption"),
        "phrase": kind("phrase"),
        "generic": kind("generic"),
        "any": order,
    }
    taken: dict[str, Pair] = {}
    for reason, places in candidates.items():
        free = [pairs[place] for place in places if pairs[place] not in taken.values()]
        if free and len(taken) < count:
            taken[reason] = free[0]
    return taken


def _outwards(places: Sequence[int]) -> list[int]:
    """The one in the middle, then its neighbors at growing distance."""
    middle = (len(places) - 1) / 2
    order = sorted(range(len(places)), key=lambda k: (abs(k - middle), k))
    return [places[k] for k in order]


def examples_of(evaluator: Evaluator, selected: Mapping[str, Pair]) -> list[Example]:
    """The selected prompts with the detections of teacher, student and control."""
    examples = []
    for reason, pair in selected.items():
        truth, detections = evaluator.detections([pair])
        image = evaluator.prompted.images.pixels(pair[0]) / 255
        models = {name: detections[name] for name in (TEACHER, STUDENT, TRUTH_ONLY)}
        examples.append(Example(reason, evaluator.prompted.prompt(pair), image, truth, models))
    return examples


def draw_examples(path: Path, examples: Sequence[Example]) -> None:
    """A row for each example: the image, ground truth, every model's detections."""
    names = ["image", "truth", *examples[0].models]
    size = (_CELL * len(names) + 1.1, (_CELL + 0.27) * len(examples) + 0.3)
    with styled():
        tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        figure = Figure(figsize=size, layout=tight)
        axes = figure.subplots(len(examples), len(names), squeeze=False)
        for row, example in zip(axes, examples, strict=True):
            _draw_row(row, example)
        for ax, name in zip(axes[0], names, strict=True):
            ax.set_title(name, pad=4)
        save(figure, path)


def _draw_row(axes: NDArray[np.object_], example: Example) -> None:
    prompt, truth = example.prompt, example.truth
    label = [example.reason.upper(), *textwrap.wrap(f"{prompt.kind}: «{prompt.text}»", _LINE)]
    axes[0].set_ylabel("\n".join(label), rotation=0, ha="right", va="center", fontsize=7)
    teacher = next(iter(example.models.values()))
    reference = truth if bool(truth.known) else teacher
    _draw(axes[0], example, None, reference, "")
    _draw(axes[1], example, truth, reference, truth_caption(truth))
    for ax, detections in zip(axes[2:], example.models.values(), strict=True):
        _draw(ax, example, detections, reference, caption(detections, truth, teacher))


def truth_caption(truth: Detections) -> str:
    """How many objects there are."""
    count = int(truth.detected.sum())
    return f"objects: {count}\n" if bool(truth.known) else "unknown\n"


def caption(detections: Detections, truth: Detections, teacher: Detections) -> str:
    """Presence and scores; IoU with ground truth and agreement with the teacher, where they are."""
    scores = detections.scores[detections.detected].sort(descending=True).values.tolist()
    listed = " ".join(f"{score:.2f}" for score in scores[:_SCORES]) or "none"
    more = f" +{len(scores) - _SCORES}" if len(scores) > _SCORES else ""
    values = {"IoU": mask_metrics(compare(detections, truth))["matched_iou"]}
    if detections is not teacher:
        values["agreement"] = mask_metrics(compare(detections, teacher))["agreement_iou"]
    second = "  ".join(f"{name} {value:.2f}" for name, value in values.items() if value is not None)
    return f"{'yes' if bool(detections.present) else 'no'}: {listed}{more}\n{second}"


def _draw(
    ax: Axes, example: Example, detections: Detections | None, reference: Detections, text: str
) -> None:
    ax.imshow(example.image.permute(1, 2, 0).clamp(0, 1).cpu().numpy(), extent=_WHOLE)
    if detections is not None:
        for mask, color in zip(*colored(detections, reference), strict=True):
            _overlay(ax, mask, color)
    if example.prompt.box is not None:
        x, y, width, height = example.prompt.box
        corner = (x - width / 2, y - height / 2)
        ax.add_patch(Rectangle(corner, width, height, fill=False, ec="white", lw=1.4))
        ax.add_patch(Rectangle(corner, width, height, fill=False, ec="black", lw=0.5))
    ax.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
    ax.spines[:].set_visible(False)
    ax.set_xlabel(text, fontsize=6, labelpad=2)


def colored(
    detections: Detections, reference: Detections
) -> tuple[list[NDArray[np.bool_]], list[str]]:
    """The detected masks of one prompt, and the colors of what they are matched to."""
    iou = mask_iou(detections, reference)
    pairs = assign(iou, detections.detected, reference.detected)
    partner = dict(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    places = detections.detected[0].nonzero()[:, 0].tolist()
    colors = [
        COLORS[partner[place] % len(COLORS)] if place in partner else UNMATCHED for place in places
    ]
    return [detections.masks[0, place].cpu().numpy() for place in places], colors


def _overlay(ax: Axes, mask: NDArray[np.bool_], color: str) -> None:
    """A mask over the image: a veil with an edge."""
    veil = np.zeros((*mask.shape, 4), np.float32)
    veil[mask] = (*to_rgb(color), OPACITY)
    ax.imshow(veil, extent=_WHOLE)
    if mask.any() and not mask.all():
        across, down = ((np.arange(length) + 0.5) / length for length in mask.shape[::-1])
        ax.contour(across, down, mask.astype(float), levels=[0.5], colors=[color], linewidths=0.9)
