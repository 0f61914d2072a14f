"""Which of the student's queries answers for which of the teacher's.

For each prompt the one-to-one assignment that loses least (Kuhn 1955; Carion et al. 2020, DETR,
section 3.1). A pair of a student's query s and a teacher's query t disagrees by

    c(s, t) = mask (1 - T) + box |b_s - b_t|_1 + giou (1 - GIoU) + logit |sigma(l_s) - sigma(l_t)|,

where T = pq / (p^2 + q^2 - pq), summed over cells, is the IoU of two soft masks p and q (Tanimoto
1958): unlike pq / (p + q - pq) it is 1 for a soft mask and itself. Masks are compared as shares of
coarse cells; at 64 x 64 the assignment is that of full resolution.

The teacher has more queries than the student, most of them sure of nothing. So the assignment

    minimises  the sum over pairs of  w_t (c(s, t) - C),   w_t = sigma(l_t) sigma(presence),

the teacher's score times what a match saves, C being the worst disagreement there is: no query is
left out that the teacher is sure of while doubtful ones, easier to agree with, are matched. A
student that gives the teacher's answers, all or the surest, is matched to these very ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from braid.segmentation.sam3.masks import giou, shares
from braid.segmentation.sam3.sam3 import Prediction


class Matches(NamedTuple):
    """K = min(Qs, Qt) pairs of queries of each of B prompts, in the order of the student's."""

    rows: Tensor  # [B, K] long, the student's
    columns: Tensor  # [B, K] long, the teacher's
    weight: Tensor  # [B, K] float32, the teacher's score


@dataclass(frozen=True)
class Matcher:
    """Weights of the disagreements; calling it matches."""

    mask: float = 5.0
    box: float = 5.0
    giou: float = 2.0
    logit: float = 2.0
    size: int = 64  # cells a side at which masks are compared, unless they are smaller

    @property
    def worst(self) -> float:
        """C: what a pair costs that has nothing in common."""
        return self.mask + 4 * self.box + 2 * self.giou + self.logit

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
        size = min(self.size, student.masks.shape[-1], teacher.masks.shape[-1])
        with torch.autocast(student.masks.device.type, enabled=False):
            overlap = soft_iou(*(_coarse(each.masks, size) for each in (student, teacher)))
        a, b = student.boxes.float()[:, :, None], teacher.boxes.float()[:, None]
        left, right = student.logits.float().sigmoid(), teacher.logits.float().sigmoid()
        return (
            self.mask * (1 - overlap)
            + self.box * (a - b).abs().sum(-1)
            + self.giou * (1 - giou(a, b))
            + self.logit * (left[:, :, None] - right[:, None]).abs()
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
    pairs = [linear_sum_assignment(_finite(each)) for each in cost.cpu().double().numpy()]
    rows, columns = torch.from_numpy(np.array(pairs)).to(cost.device).unbind(1)
    return rows, columns


def _finite(cost: np.ndarray) -> np.ndarray:
    """One such pair costs more than all others together can save."""
    known = np.isfinite(cost)
    least, most = (cost[known].min(), cost[known].max()) if known.any() else (0.0, 0.0)
    return np.where(known, cost, most + (most - least + 1) * min(cost.shape))


def _coarse(masks: Tensor, size: int) -> Tensor:
    """Shares of `size` x `size` cells, [B, Q, size * size]."""
    chances = masks.float().sigmoid()
    return (chances if chances.shape[-1] == size else shares(chances, size)).flatten(2)
