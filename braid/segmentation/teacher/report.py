"""How good a teacher is by the ground truth of held-out images, beside what takes no model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from braid.segmentation.data.prompted import Pair, PromptedImages, image_batches, prompt_batch
from braid.segmentation.metrics.agreement import (
    BLIND,
    Detections,
    Table,
    compare,
    joined,
    mask_metrics,
    predicted_detections,
    presence_metrics,
    rows_of,
    true_detections,
)
from braid.segmentation.sam3.geometry import xyxy
from braid.segmentation.sam3.predictor import Predictor

Row = dict[str, Any]

TEACHER, WHOLE_IMAGE, FILLED_BOX = "teacher", "whole_image", "filled_box"
ALL = "all"  # kinds of prompts
DETECTED = 0.3  # the score of a detection: no param, or other ways to evaluate would fit anew
EVERYWHERE = (0.5, 0.5, 1.0, 1.0)  # cxcywh
COLUMNS = ("model", "kind", "prompts", "iou")  # at least


def teacher_rows(
    predictor: Predictor,
    prompted: PromptedImages,
    pairs: Sequence[Pair],  # of known ground truth, those of an image one after another
    *,
    images: int,  # at once
    score: float = DETECTED,
) -> list[Row]:
    """Metrics of the teacher and of trivial predictors, for all prompts and each kind of them.

    `whole_image` detects all of an image whatever the prompt is, `filled_box` all of its box; both
    always predict presence. `iou` is the mean over true objects: 0 for one that no detection is
    matched to. Without prompts there are no rows.
    """
    if not pairs:
        return []
    parts: dict[str, list[Table]] = {TEACHER: [], WHOLE_IMAGE: [], FILLED_BOX: []}
    for batch in image_batches(pairs, images):
        prediction = predictor(prompt_batch(prompted, batch)).to(torch.device("cpu"))
        size = prediction.masks.shape[-1]
        truth = true_detections(prompted.ground_truth(batch, size))
        boxes = [prompted.prompt(pair).box or EVERYWHERE for pair in batch]
        detections = {
            TEACHER: predicted_detections(prediction, score=score, size=size),
            WHOLE_IMAGE: filled(torch.tensor([EVERYWHERE] * len(batch)), size),
            FILLED_BOX: filled(torch.tensor(boxes), size),
        }
        for model in parts:
            parts[model].append(compare(detections[model], truth))
    tables = {model: joined(of_model) for model, of_model in parts.items()}
    kinds = [prompted.prompt(pair).kind for pair in pairs]
    return [
        _row(model, kind, tables[model], torch.tensor([kind in (ALL, own) for own in kinds]))
        for kind in (ALL, *sorted(set(kinds)))
        for model in (TEACHER, FILLED_BOX if kind == "box" else WHOLE_IMAGE)
    ]


def _row(
    model: str,
    kind: str,
    table: Table,
    rows: Tensor,  # [P] bool, which prompts
) -> Row:
    some = rows_of(table, rows)
    masks = mask_metrics(some)
    return {
        "model": model,
        "kind": kind,
        "prompts": int(rows.sum()),
        "iou": masks["matched_iou"],
        "semantic_iou": masks["semantic_iou"],
        **presence_metrics(some),
    }


def headline(rows: Iterable[Row]) -> Row:
    """What the teacher is worth in two numbers, and its status.

    - `unknown`: no held-out prompt has known ground truth
    - `finds_nothing`: its masks are no better than the whole image
    - `presence_at_chance`: it tells what is there from what is not hardly better than a coin does
    """
    of_all = {row["model"]: row for row in rows if row["kind"] == ALL}
    teacher, trivial = of_all.get(TEACHER, {}), of_all.get(WHOLE_IMAGE, {})
    iou, presence = teacher.get("iou"), teacher.get("presence_balanced_accuracy")
    if iou is None:
        status = "unknown"
    elif iou <= trivial["iou"]:
        status = "finds_nothing"
    elif presence is not None and presence <= BLIND:
        status = "presence_at_chance"
    else:
        status = "ok"
    return {
        "miou_teacher": iou,
        "presence_balanced_accuracy_teacher": presence,
        "status": status,
    }


def filled(
    boxes: Tensor,  # [B, 4] cxcywh in [0, 1]
    size: int,  # cells a side
) -> Detections:
    """The detection of all of a box as the object, which is there."""
    corners = xyxy(boxes)
    low, high = corners[:, :2], corners[:, 2:]
    center = (torch.arange(size) + 0.5) / size
    inside = (center >= low[..., None]) & (center < high[..., None])  # [B, 2, size]
    masks = inside[:, 1, :, None] & inside[:, 0, None]
    ones = torch.ones(len(boxes), 1)
    return Detections(
        masks=masks[:, None],
        boxes=corners[:, None],
        scores=ones,
        detected=ones.bool(),
        present=ones[:, 0].bool(),
        semantic=masks,
        known=ones[:, 0].bool(),
    )
