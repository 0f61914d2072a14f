"""Which of the student's queries is matched to which of the teacher's.

For each prompt the one-to-one assignment that loses least (Kuhn 1955; Carion et al. 2020, DETR,
section 3.1). A pair of a student's query s and a teacher's query t disagrees by

    c(s, t) = mask (1 - T) + box |b_s - b_t|_1 + giou (1 - GIoU) + logit |sigma(l_s) - sigma(l_t)|,

where T = pq / (p^2 + q^2 - pq), summed over cells, is the IoU of two soft masks p and q (Tanimoto
1958): unlike pq / (p + q - pq) it is 1 for a soft mask and itself. Masks are compared as fractions
of coarse cells; at 64 x 64 the assignment is that of full resolution.

The teacher has more queries than the student, most of them sure of nothing. So the assignment

    minimizes  the sum over pairs of  w_t (c(s, t) - C),   w_t = sigma(l_t) sigma(presence),

the teacher's score times what a match saves, C being the worst disagreement there is: no query is
left out that the teacher is sure of while doubtful ones, easier to agree with, are matched. A
student that predicts what the teacher does, all or the surest, is matched to these very queries.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from braid.segmentation.config import MatchingConfig
from braid.segmentation.sam3.geometry import area_means, giou
from braid.segmentation.sam3.sam3 import Prediction


class Matches(NamedTuple):
    """K = min(Qs, Qt) pairs of queries of each of B prompts, in the order of the student's."""

    rows: Tensor  # [B, K] long, the student's
    columns: Tensor  # [B, K] long, the teacher's
    weight: Tensor  # [B, K] float32, the teacher's score


class Matcher:
    """Weights of the disagreements; calling it matches."""

    def __init__(self, config: MatchingConfig) -> None:
        self.config = config
        # C: what a pair costs that has nothing in common
        self.worst = config.mask + 4 * config.box + 2 * config.giou + config.logit

    @torch.no_grad()
    def __call__(
        self,
        student: Prediction,
        teacher: Prediction,  # with masks of any size, and with all queries or some of them
    ) -> Matches:
        """The pairs of each prompt; a query with NaN or inf in it is matched last."""
        scores = teacher.logits.float().sigmoid() * teacher.presence.float().sigmoid()
        rows, columns = assign(scores[:, None] * (self.cost(student, teacher) - self.worst))
        return Matches(rows, columns, scores.gather(1, columns))

    def cost(self, student: Prediction, teacher: Prediction) -> Tensor:
        """Disagreement of all pairs, [B, Qs, Qt] float32."""
        weights = self.config
        size = min(weights.size, student.masks.shape[-1], teacher.masks.shape[-1])
        with torch.autocast(student.masks.device.type, enabled=False):
            p, q = (_coarse(prediction.masks, size) for prediction in (student, teacher))
            overlap = soft_iou(p, q)
        a, b = student.boxes.float()[:, :, None], teacher.boxes.float()[:, None]
        left, right = student.logits.float().sigmoid(), teacher.logits.float().sigmoid()
        return (
            weights.mask * (1 - overlap)
            + weights.box * (a - b).abs().sum(-1)
            + weights.giou * (1 - giou(a, b))
            + weights.logit * (left[:, :, None] - right[:, None]).abs()
        )


def soft_iou(
    p: Tensor,  # [B, N, G] in [0, 1]
    q: Tensor,  # [B, M, G] in [0, 1]
) -> Tensor:
    """Tanimoto's coefficient of all pairs, [B, N, M] in [0, 1]."""
    both = p @ q.mT
    either = p.square().sum(-1)[:, :, None] + q.square().sum(-1)[:, None] - both
    return both / either.clamp_min(torch.finfo(both.dtype).tiny)


def assign(
    cost: Tensor,  # [B, N, M]
) -> tuple[Tensor, Tensor]:
    """Rows and columns of the cheapest one-to-one pairs, each [B, min(N, M)] long.

    A pair whose cost is no number is taken only where every other way takes as many of them.
    """
    costs = cost.cpu().double().numpy()
    pairs = [linear_sum_assignment(_finite(of_prompt)) for of_prompt in costs]
    rows, columns = torch.from_numpy(np.array(pairs)).to(cost.device).unbind(1)
    return rows, columns


def _finite(cost: np.ndarray) -> np.ndarray:
    """One such pair costs more than all others together can save."""
    finite = np.isfinite(cost)
    least, most = (cost[finite].min(), cost[finite].max()) if finite.any() else (0.0, 0.0)
    return np.where(finite, cost, most + (most - least + 1) * min(cost.shape))


def _coarse(masks: Tensor, size: int) -> Tensor:
    """Covered fractions of `size` x `size` cells, [B, Q, size * size]."""
    p = masks.float().sigmoid()
    return (p if p.shape[-1] == size else area_means(p, size)).flatten(2)
