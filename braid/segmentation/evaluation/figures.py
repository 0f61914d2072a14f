"""Figures of examples: image, ground truth and every model side by side, failures among them.

Prompts are chosen by rule: the worst, the median and the best by the student's agreement with its
teacher, then one of each kind that matters. A mask has the color of the object that it is matched
to; one that is matched to none is black. The white frame is the box of a prompt.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from braid.common.plotting import BLUE, GREEN, ORANGE, save, styled
from braid.segmentation.data.prompted import Pair, Prompt, PromptedImages
from braid.segmentation.evaluation.evaluator import STUDENT, TEACHER, TRUTH_ONLY, Evaluator
from braid.segmentation.metrics.agreement import (
    Detections,
    Table,
    assign,
    compare,
    mask_iou,
    mask_metrics,
)

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
