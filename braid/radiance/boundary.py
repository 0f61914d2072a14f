"""The soft mask that keeps feature supervision away from the faces between cells.

d is the distance of a point to the nearest face of its cell in half edges: 0 on a face, 1 at the
centre. The weight rises from 0 at d = threshold to 1 at d = threshold + soft_transition as a
smoothstep; without a transition it is the step d >= threshold.
"""

from __future__ import annotations

from torch import Tensor

from braid.radiance.cells import CellGrid

COLLAPSED = 0.05  # mean weight below which the mask leaves next to nothing to learn from


def face_distance(
    points: Tensor,  # [P, 3], scene units
    grid: CellGrid,
) -> Tensor:
    """Distance to the nearest face of the own cell in half edges, [P] in [0, 1]."""
    place = grid.local(points)
    within = place - place.floor()
    return (1 - (2 * within - 1).abs()).amin(dim=-1)


def mask_weight(
    distance: Tensor,  # [P], half edges
    threshold: float,
    soft_transition: float,
) -> Tensor:
    """The weight of the feature loss at each point, [P] in [0, 1]."""
    if soft_transition == 0:
        return (distance >= threshold).to(distance)
    rise = ((distance - threshold) / soft_transition).clamp(0, 1)
    return rise * rise * (3 - 2 * rise)


def mask_state(mean: float) -> str:
    """`collapsed`, `saturated` (every weight is 1) or `ok`."""
    if mean < COLLAPSED:
        return "collapsed"
    return "saturated" if mean == 1.0 else "ok"
