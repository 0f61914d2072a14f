"""How far a student's features agree with its teacher's.

The networks of a KiloNeRF share no basis, so raw student features of different cells are not
comparable; cosine and explained variance are of the *projector's predictions*, only the CKA is of
the raw features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def alignment(
    student: Tensor,  # [N, H], penultimate features
    predicted: Tensor,  # [N, F], their projection, standardised units
    target: Tensor,  # [N, F], teacher features, standardised
    columns: Mapping[str, slice],  # channel groups
) -> dict[str, float]:
    """`cosine`, `cka` and `explained_variance/<group>`."""
    shares = explained_variance(predicted, target, columns)
    return {
        "cosine": mean_cosine(predicted, target),
        "cka": linear_cka(student, target),
        **{f"explained_variance/{name}": share for name, share in shares.items()},
    }


def mean_cosine(
    x: Tensor,  # [N, F]
    y: Tensor,  # [N, F]
) -> float:
    """Mean cosine between rows."""
    return float(torch.nn.functional.cosine_similarity(x, y, dim=-1).mean())


def linear_cka(
    x: Tensor,  # [N, H]
    y: Tensor,  # [N, F]
) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019), in [0, 1].

    1 for features equal up to rotation, shift and scale; 0 where either does not vary. Independent
    features of N rows score about sqrt(H F) / N, not 0.
    """
    x, y = (each.cpu().double() - each.cpu().double().mean(dim=0) for each in (x, y))
    cross, own_x, own_y = (torch.linalg.matrix_norm(m) for m in (y.T @ x, x.T @ x, y.T @ y))
    scale = float(own_x * own_y)
    return float(cross**2) / scale if scale > 0 else 0.0


def explained_variance(
    predicted: Tensor,  # [N, F]
    target: Tensor,  # [N, F]
    columns: Mapping[str, slice],  # channel groups
) -> dict[str, float]:
    """1 - squared error / variance about the mean per group; 0 for a group that does not vary."""
    predicted, target = predicted.cpu().double(), target.cpu().double()
    error = (predicted - target).square().sum(dim=0)
    total = (target - target.mean(dim=0)).square().sum(dim=0)
    shares = {}
    for name, each in columns.items():
        variance = float(total[each].sum())
        shares[name] = 1 - float(error[each].sum()) / variance if variance > 0 else 0.0
    return shares
