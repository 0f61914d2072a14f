"""Pictures of answers: the image, the truth and every model side by side, failures among them.

Prompts are chosen by rule, not by eye: the worst, the median and the best by the student's
agreement with its teacher, then one of each kind that matters. A mask has the colour of the object
that it is matched to; one that is matched to none is black. The white frame is a box that was given
as a prompt.
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
from braid.segmentation.data.prompted import Pair, PromptedImages
from braid.segmentation.data.prompts import Prompt
from braid.segmentation.evaluation.agreement import (
    Answers,
    Table,
    assign,
    compare,
    mask_figures,
    mask_iou,
)
from braid.segmentation.evaluation.evaluation import Panel

COLOURS = (ORANGE, BLUE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")  # of objects, in turn
UNMATCHED = "black"
OPACITY = 0.55
_SCORES = 3  # that are written below a picture
_CELL = 1.5  # inches; side of a picture
_LINE = 18  # characters of a row's label
_WHOLE = (0.0, 1.0, 1.0, 0.0)  # left, right, bottom, top of every picture


@dataclass(frozen=True)
class Shown:
    """One prompt and all answers to it."""

    reason: str  # for which it is shown
    prompt: Prompt
    image: Tensor  # [3, S, S] in [0, 1]
    truth: Answers  # of one prompt, like all others here
    models: Mapping[str, Answers]  # by the name of their column, the teacher first


def choose(
    prompted: PromptedImages,
    pairs: Sequence[Pair],  # P
    by_teacher: Table,  # [P] of the student
    count: int,
) -> dict[str, Pair]:
    """At most `count` different prompts, by the reason for which they are shown.

    Of a kind of prompts it is the median one, of negative prompts the worst. Teacher and student
    that both find nothing agree. A photo is an image in which not every object is annotated.
    """
    prompts = [prompted.prompt(pair) for pair in pairs]
    photos = [not prompted.images.record(image).exhaustive for image, _ in pairs]
    masks = by_teacher["answers"] + by_teacher["references"]
    agreement = (2 * by_teacher["iou"] / masks.clamp_min(1)).where(masks > 0, 1.0).tolist()
    order = sorted(range(len(prompts)), key=lambda place: (agreement[place], place))
    some = [place for place in order if masks[place]]  # where there is something to see

    def kind(name: str) -> list[int]:
        return _outwards([place for place in some if prompts[place].kind == name])

    candidates = {
        "worst": some,
        "median": _outwards(some),
        "best": some[::-1],
        "negative": [place for place in order if prompts[place].answers == ()],
        "withheld": _outwards([place for place in some if not prompts[place].labelled]),
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
    """The one in the middle, then its neighbours at growing distance."""
    middle = (len(places) - 1) / 2
    order = sorted(range(len(places)), key=lambda k: (abs(k - middle), k))
    return [places[k] for k in order]


def shown(panel: Panel, chosen: Mapping[str, Pair], names: Sequence[str]) -> list[Shown]:
    """Ask the models of these names the chosen prompts; the teacher's name comes first."""
    rows = []
    for reason, pair in chosen.items():
        truth, answers = panel.answers([pair])
        image = panel.prompted.images.pixels(pair[0]) / 255
        models = {name: answers[name] for name in names}
        rows.append(Shown(reason, panel.prompted.prompt(pair), image, truth, models))
    return rows


def answers_picture(path: Path, rows: Sequence[Shown]) -> None:
    """A row for each prompt: the image, the truth, what every model finds."""
    names = ["image", "truth", *rows[0].models]
    size = (_CELL * len(names) + 1.1, (_CELL + 0.27) * len(rows) + 0.3)
    with styled():
        tight = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
        figure = Figure(figsize=size, layout=tight)
        axes = figure.subplots(len(rows), len(names), squeeze=False)
        for line, row in zip(axes, rows, strict=True):
            _draw_row(line, row)
        for ax, name in zip(axes[0], names, strict=True):
            ax.set_title(name, pad=4)
        save(figure, path)


def _draw_row(axes: NDArray[np.object_], row: Shown) -> None:
    label = [row.reason.upper(), *textwrap.wrap(f"{row.prompt.kind}: «{row.prompt.text}»", _LINE)]
    axes[0].set_ylabel("\n".join(label), rotation=0, ha="right", va="center", fontsize=7)
    teacher = next(iter(row.models.values()))
    reference = row.truth if bool(row.truth.known) else teacher
    _draw(axes[0], row, None, reference, "")
    _draw(axes[1], row, row.truth, reference, truth_caption(row.truth))
    for ax, answers in zip(axes[2:], row.models.values(), strict=True):
        _draw(ax, row, answers, reference, caption(answers, row.truth, teacher))


def truth_caption(truth: Answers) -> str:
    """How many objects there are."""
    count = int(truth.found.sum())
    return f"{count} to be found\n" if bool(truth.known) else "unknown\n"


def caption(answers: Answers, truth: Answers, teacher: Answers) -> str:
    """Presence and scores; IoU with the truth and agreement with the teacher, where they are."""
    scores = answers.scores[answers.found].sort(descending=True).values.tolist()
    listed = " ".join(f"{each:.2f}" for each in scores[:_SCORES]) or "none"
    more = f" +{len(scores) - _SCORES}" if len(scores) > _SCORES else ""
    values = {"IoU": mask_figures(compare(answers, truth))["matched_iou"]}
    if answers is not teacher:
        values["agreement"] = mask_figures(compare(answers, teacher))["agreement_iou"]
    second = "  ".join(f"{name} {each:.2f}" for name, each in values.items() if each is not None)
    return f"{'yes' if bool(answers.present) else 'no'}: {listed}{more}\n{second}"


def _draw(ax: Axes, row: Shown, answers: Answers | None, reference: Answers, text: str) -> None:
    ax.imshow(row.image.permute(1, 2, 0).clamp(0, 1).cpu().numpy(), extent=_WHOLE)
    if answers is not None:
        for mask, colour in zip(*coloured(answers, reference), strict=True):
            _overlay(ax, mask, colour)
    if row.prompt.box is not None:
        x, y, width, height = row.prompt.box
        corner = (x - width / 2, y - height / 2)
        ax.add_patch(Rectangle(corner, width, height, fill=False, ec="white", lw=1.4))
        ax.add_patch(Rectangle(corner, width, height, fill=False, ec="black", lw=0.5))
    ax.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(1, 0))
    ax.spines[:].set_visible(False)
    ax.set_xlabel(text, fontsize=6, labelpad=2)


def coloured(answers: Answers, reference: Answers) -> tuple[list[NDArray[np.bool_]], list[str]]:
    """The found masks of one prompt, and the colours of what they are matched to."""
    iou = mask_iou(answers, reference)
    pairs = assign(iou, answers.found, reference.found)
    partner = dict(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    places = answers.found[0].nonzero()[:, 0].tolist()
    colours = [
        COLOURS[partner[place] % len(COLOURS)] if place in partner else UNMATCHED
        for place in places
    ]
    return [answers.masks[0, place].cpu().numpy() for place in places], colours


def _overlay(ax: Axes, mask: NDArray[np.bool_], colour: str) -> None:
    """A mask over the image: a veil with an edge."""
    veil = np.zeros((*mask.shape, 4), np.float32)
    veil[mask] = (*to_rgb(colour), OPACITY)
    ax.imshow(veil, extent=_WHOLE)
    if mask.any() and not mask.all():
        across, down = ((np.arange(length) + 0.5) / length for length in mask.shape[::-1])
        ax.contour(across, down, mask.astype(float), levels=[0.5], colors=[colour], linewidths=0.9)
