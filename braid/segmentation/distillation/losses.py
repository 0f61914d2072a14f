"""The nine terms of the distillation: a student's predictions against its teacher's.

Pairs of queries are matched first (`Matcher`). Terms of the pairs are sums over a prompt's pairs,
weighted by the teacher's score w and divided by max(1, sum of w), the number of objects that the
teacher detects, as DETR divides by the number of boxes: what the teacher is sure is nothing teaches
nothing, and a prompt for what is not there leaves masks and boxes alone.

    mask      Dice + cross-entropy of the matched masks, on the teacher's grid
    box       |b_s - b_t|_1 of xyxy in [0, 1]
    giou      1 - GIoU
    logit     cross-entropy of *all* the student's queries against the teacher's probability, sum
              over queries, the same divisor: what the teacher doubts the student learns to doubt; a
              query without a partner learns the lowest logit there is. What is nothing to the
              teacher weighs `spare`, a pair `spare` + (1 - `spare`) w: which query takes an object
              is uncertain, and scores that doubt it all alike are too low together
    presence  `bce`: cross-entropy against the teacher's probability; `mse`: squared difference of
              the logits, which at SAM3's limits of +-10 outweighs all other terms together
    semantic  Dice + cross-entropy of the semantic maps, on the teacher's grid
    fpn       squared difference of the FPN's levels, the mean of the levels
    encoder   squared difference of the DETR encoder's tokens on their grid
    text      squared difference of the text's tokens as the DETR encoder takes them, no padding

A cross-entropy here has the teacher's entropy taken off, so that it is the Kullback-Leibler
divergence: of the same gradient, and 0 where student and teacher agree. So are all nine, gradient
included. Every term is a mean over prompts (fpn: images) of what one of them would give alone.
Student's features are brought to the teacher's grid bilinearly. All is float32, whatever comes in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from braid.segmentation.config import LossesConfig, MatchingConfig
from braid.segmentation.sam3.geometry import area_means, dice, giou, resized
from braid.segmentation.sam3.sam3 import Prediction

# ---- Matching: which of the student's queries goes with which of the teacher's -------------------
# For each prompt the one-to-one assignment that loses least (Kuhn 1955; Carion et al. 2020, DETR,
# section 3.1). A pair of a student's query s and a teacher's query t disagrees by
#
#     c(s, t) = mask (1 - T) + box |b_s - b_t|_1 + giou (1 - GIoU) + logit |sig(l_s) - sig(l_t)|,
#
# where T = pq / (p^2 + q^2 - pq), summed over cells, is the IoU of two soft masks p and q (Tanimoto
# 1958): unlike pq / (p + q - pq) it is 1 for a soft mask and itself. Masks are compared as
# fractions of coarse cells; at 64 x 64 the assignment is that of full resolution.
#
# The teacher has more queries than the student, most of them sure of nothing. So the assignment
#
#     minimizes  the sum over pairs of  w_t (c(s, t) - C),   w_t = sig(l_t) sig(presence),
#
# the teacher's score times what a match saves, C being the worst disagreement there is: no query
# is left out that the teacher is sure of while doubtful ones, easier to agree with, are matched. A
# student that predicts what the teacher does, all or the surest, is matched to these very queries.


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


NO_OBJECT = -12.0  # the lowest logit that SAM3 gives a query


class DistillationLoss:
    """Weights of the terms; calling it gives them. A term of weight 0 is not computed."""

    def __init__(self, matcher: Matcher, config: LossesConfig) -> None:
        self.matcher = matcher
        self.on_pairs = {
            name: (getattr(config, name), term)
            for name, term in (
                PAIR_TERMS | {"logit": partial(logit_term, spare=config.spare)}
            ).items()
        }
        self.on_maps = {
            name: (getattr(config, name), term)
            for name, term in (MAP_TERMS | {"presence": PRESENCE[config.presence_loss]}).items()
        }

    def __call__(
        self,
        student: Prediction,
        teacher: Prediction,  # masks of any size, all queries or some of them; learns nothing
    ) -> dict[str, Tensor]:
        """Weighted scalars by name; fpn, encoder and text only where both have such features.

        Raises:
            ValueError: the two are not of the same prompts, or features differ in channels.
        """
        _check(student, teacher)
        comparable = _comparable(student, teacher)
        terms = {}
        with torch.autocast(student.masks.device.type, enabled=False):
            if any(weight for weight, _ in self.on_pairs.values()):
                pairs = self.matcher(student, teacher)
                for name, (weight, of_pairs) in self.on_pairs.items():
                    if weight:
                        terms[name] = weight * of_pairs(student, teacher, pairs)
            for name, (weight, of_maps) in self.on_maps.items():
                if weight and name in comparable:
                    terms[name] = weight * of_maps(student, teacher)
        return terms


def mask_term(student: Prediction, teacher: Prediction, pairs: Matches) -> Tensor:
    """Dice + cross-entropy of the matched masks, on the teacher's grid."""
    logits, targets = _taken(student.masks, pairs.rows), _taken(teacher.masks, pairs.columns)
    return _of_pairs(_disagreement(logits, targets), pairs)


def box_term(student: Prediction, teacher: Prediction, pairs: Matches) -> Tensor:
    """L1 of the matched boxes."""
    boxes, targets = _taken(student.boxes, pairs.rows), _taken(teacher.boxes, pairs.columns)
    return _of_pairs((boxes - targets.detach()).abs().sum(-1), pairs)


def giou_term(student: Prediction, teacher: Prediction, pairs: Matches) -> Tensor:
    """1 - GIoU of the matched boxes."""
    boxes, targets = _taken(student.boxes, pairs.rows), _taken(teacher.boxes, pairs.columns)
    return _of_pairs(1 - giou(boxes, targets.detach()), pairs)


def logit_term(
    student: Prediction, teacher: Prediction, pairs: Matches, spare: float = 1.0
) -> Tensor:
    """Cross-entropy of all queries, what is nothing to the teacher with weight `spare`."""
    logits = student.logits.float()
    matched = teacher.logits.detach().float().gather(1, pairs.columns)
    targets = torch.full_like(logits, NO_OBJECT).scatter(1, pairs.rows, matched)
    weights = torch.full_like(logits, spare)
    weights = weights.scatter_add(1, pairs.rows, (1 - spare) * pairs.weight)
    return ((weights * divergence(logits, targets)).sum(1) / _objects(pairs)).mean()


def presence_mse(student: Prediction, teacher: Prediction) -> Tensor:
    """Squared difference of the logits."""
    return F.mse_loss(student.presence.float(), teacher.presence.detach().float())


def presence_bce(student: Prediction, teacher: Prediction) -> Tensor:
    """Cross-entropy against the teacher's probability."""
    return divergence(student.presence.float(), teacher.presence.detach().float()).mean()


def semantic_term(student: Prediction, teacher: Prediction) -> Tensor:
    """Dice + cross-entropy of the semantic maps, on the teacher's grid."""
    return _disagreement(student.semantic, teacher.semantic).mean()


def fpn_term(student: Prediction, teacher: Prediction) -> Tensor:
    """Squared difference of the levels that the teacher gives, the coarsest ones."""
    levels = zip(student.fpn[-len(teacher.fpn) :], teacher.fpn, strict=True)
    return torch.stack([feature_error(*level) for level in levels]).mean()


def encoder_term(student: Prediction, teacher: Prediction) -> Tensor:
    """Squared difference of the tokens."""
    assert student.encoder is not None
    assert teacher.encoder is not None
    return feature_error(student.encoder, teacher.encoder)


def text_term(student: Prediction, teacher: Prediction) -> Tensor:
    """Squared difference of a text's tokens; each text counts alike, however long it is."""
    assert student.text is not None
    assert teacher.text is not None
    assert teacher.attention is not None
    squares = (student.text.float() - teacher.text.detach().float()).square().mean(2)
    weights = teacher.attention.float()
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
    return (weights * squares).sum(1).mean()


def feature_error(
    student: Tensor,  # [N, C, h, w]
    teacher: Tensor,  # [N, C, H, W]
) -> Tensor:
    """Mean squared difference on the teacher's grid."""
    size = teacher.shape[-2:]
    features = F.interpolate(student.float(), size, mode="bilinear", align_corners=False)
    return F.mse_loss(features, teacher.detach().float())


def divergence(
    logits: Tensor,
    teacher: Tensor,  # logits, broadcast alike
) -> Tensor:
    """KL(teacher || student) of Bernoulli variables, elementwise; exactly 0 for equal logits."""
    targets = teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(teacher, targets, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none") - entropy


PairTerm = Callable[[Prediction, Prediction, Matches], Tensor]
PAIR_TERMS: dict[str, PairTerm] = {
    "mask": mask_term,
    "box": box_term,
    "giou": giou_term,
    "logit": logit_term,
}
MAP_TERMS: dict[str, Callable[[Prediction, Prediction], Tensor]] = {
    "presence": presence_mse,
    "semantic": semantic_term,
    "fpn": fpn_term,
    "encoder": encoder_term,
    "text": text_term,
}
PRESENCE = {"mse": presence_mse, "bce": presence_bce}


def _disagreement(
    masks: Tensor,  # [B, K, h, w] logits
    teacher: Tensor,  # [B, K, H, W] logits
) -> Tensor:
    """Dice + cross-entropy of each mask, [B, K]."""
    targets = teacher.detach().float().flatten(2)
    logits = resized(masks, teacher.shape[-1]).flatten(2)
    return dice(logits.sigmoid(), targets.sigmoid()) + divergence(logits, targets).mean(-1)


def _taken(
    values: Tensor,  # [B, Q, ...]
    queries: Tensor,  # [B, K]
) -> Tensor:
    """Those of some queries, [B, K, ...] float32."""
    prompts = torch.arange(len(queries), device=queries.device)[:, None]
    return values[prompts, queries].float()


def _objects(pairs: Matches) -> Tensor:
    """How many objects the teacher detects, at least 1, [B]."""
    return pairs.weight.sum(1).clamp_min(1)


def _of_pairs(
    values: Tensor,  # [B, K]
    pairs: Matches,
) -> Tensor:
    return ((pairs.weight * values).sum(1) / _objects(pairs)).mean()


def _comparable(student: Prediction, teacher: Prediction) -> set[str]:
    """Terms of maps that both have."""
    names = {"presence", "semantic"}
    if student.fpn and teacher.fpn:
        names.add("fpn")
    if student.encoder is not None and teacher.encoder is not None:
        names.add("encoder")
    if student.text is not None and teacher.text is not None:
        names.add("text")
    return names


def _check(student: Prediction, teacher: Prediction) -> None:
    prompts = len(student.logits), len(teacher.logits)
    if prompts[0] != prompts[1]:
        raise ValueError(f"the student's prompts are {prompts[0]}, the teacher's {prompts[1]}")
    levels = len(student.fpn), len(teacher.fpn)
    if all(levels) and levels[0] < levels[1]:
        raise ValueError(f"the student's FPN has {levels[0]} levels, the teacher's {levels[1]}")
    if student.text is not None and teacher.text is not None:
        _check_text(student, teacher)
    maps = [*zip(reversed(student.fpn), reversed(teacher.fpn), strict=False)]
    if student.encoder is not None and teacher.encoder is not None:
        maps.append((student.encoder, teacher.encoder))
    for left, right in maps:
        if left.shape[:2] != right.shape[:2]:
            raise ValueError(
                f"the student's features are [{left.shape[0]}, {left.shape[1]}, h, w], "
                f"the teacher's [{right.shape[0]}, {right.shape[1]}, h, w]"
            )


def _check_text(student: Prediction, teacher: Prediction) -> None:
    own, theirs = student.attention, teacher.attention
    if own is None or theirs is None or not torch.equal(own, theirs):
        raise ValueError(
            "sam3.losses.text: the student's tokenizer splits a text into other tokens than the "
            "teacher's does, expected the same one, or weight 0"
        )
