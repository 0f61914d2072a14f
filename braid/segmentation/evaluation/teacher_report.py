"""How good a teacher is by the truth of held-out images, beside what takes no model to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from braid.segmentation.data.prompted import Pair, PromptedImages
from braid.segmentation.evaluation.agreement import (
    Answers,
    Figures,
    Table,
    answers_of,
    compare,
    joined,
    mask_figures,
    presence_figures,
    true_answers,
)
from braid.segmentation.evaluation.evaluation import Respondent, batches, question
from braid.segmentation.sam3.sam3 import xyxy

TEACHER, WHOLE_IMAGE, FILLED_BOX = "", "_whole_image", "_filled_box"  # suffixes of figures
EVERYWHERE = (0.5, 0.5, 1.0, 1.0)  # cxcywh
CHANCE = 0.5  # the balanced accuracy of an answer that is always the same


def teacher_report(
    teacher: Respondent,
    prompted: PromptedImages,
    pairs: Sequence[Pair],  # of known truth
    *,
    score: float,  # a query above it counts as found
    images: int,  # at once
) -> Figures:
    """Figures of the teacher; `_whole_image` and `_filled_box` are those of trivial answers.

    `iou` is the mean over true objects: 0 for one that no query above the score is matched to.
    There are figures of all prompts and of each kind of prompt by itself; what cannot be had
    without prompts of known truth is None.
    """
    tables: dict[str, list[Table]] = {TEACHER: [], WHOLE_IMAGE: [], FILLED_BOX: []}
    for batch in batches(pairs, images):
        prediction = teacher.asked(question(prompted, batch))().to(torch.device("cpu"))
        size = prediction.masks.shape[-1]
        truth = true_answers(prompted.truth(batch, size))
        boxes = [prompted.prompt(pair).box or EVERYWHERE for pair in batch]
        answers = {
            TEACHER: answers_of(prediction, score=score, size=size),
            WHOLE_IMAGE: filled(torch.tensor([EVERYWHERE] * len(batch)), size),
            FILLED_BOX: filled(torch.tensor(boxes), size),
        }
        for name, each in answers.items():
            tables[name].append(compare(each, truth))
    if not pairs:
        return {"iou": None, "iou_whole_image": None, "presence_balanced_accuracy": None}
    kinds = [prompted.prompt(pair).kind for pair in pairs]
    return _figures({name: joined(each) for name, each in tables.items()}, kinds)


def _figures(tables: Mapping[str, Table], kinds: Sequence[str]) -> Figures:
    figures: Figures = {}
    for name in (TEACHER, WHOLE_IMAGE):
        masks = mask_figures(tables[name])
        figures |= {
            f"iou{name}": masks["matched_iou"],
            f"semantic_iou{name}": masks["semantic_iou"],
        }
    presence = presence_figures(tables[TEACHER])
    for kind in sorted(set(kinds)):
        rows = torch.tensor([each == kind for each in kinds])
        for name in (TEACHER, FILLED_BOX if kind == "box" else WHOLE_IMAGE):
            some = {column: each[rows] for column, each in tables[name].items()}
            figures[f"iou_{kind}{name}"] = mask_figures(some)["matched_iou"]
    return {**figures, **presence, "presence_balanced_accuracy_always": CHANCE}


def teacher_verdict(figures: Figures) -> str:
    """`ok`, or what is wrong with the teacher, worst first.

    - `unknown`: no held-out prompt has a known truth
    - `finds_nothing`: its masks are no better than the whole image
    - `presence_at_chance`: it tells what is there from what is not as well as a coin does
    """
    iou, trivial = figures["iou"], figures["iou_whole_image"]
    presence = figures["presence_balanced_accuracy"]
    if iou is None or trivial is None:
        return "unknown"
    if iou <= trivial:
        return "finds_nothing"
    if presence is not None and presence <= CHANCE:
        return "presence_at_chance"
    return "ok"


def filled(
    boxes: Tensor,  # [B, 4] cxcywh in [0, 1]
    size: int,  # cells a side
) -> Answers:
    """The answer that all of a box is the object, which is there."""
    corners = xyxy(boxes)
    low, high = corners[:, :2], corners[:, 2:]
    centre = (torch.arange(size) + 0.5) / size
    inside = (centre >= low[..., None]) & (centre < high[..., None])  # [B, 2, size]
    masks = inside[:, 1, :, None] & inside[:, 0, None]
    sure = torch.ones(len(boxes), 1)
    return Answers(
        masks=masks[:, None],
        boxes=corners[:, None],
        scores=sure,
        found=sure.bool(),
        present=sure[:, 0].bool(),
        semantic=masks,
        known=sure[:, 0].bool(),
    )
