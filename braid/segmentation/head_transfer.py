"""What a student inherits: the teacher's heads, with as many of its queries as the student has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

HEADS = ("geometry_encoder", "detr_encoder", "detr_decoder", "mask_decoder", "dot_product_scoring")
QUERIES = ("detr_decoder.query_embed.weight", "detr_decoder.reference_points.weight")


@dataclass
class Inheritance:
    """What was copied."""

    tensors: int = 0
    parameters: int = 0
    queries: list[int] = field(default_factory=list)  # of the teacher, the student's in order
    left: list[str] = field(default_factory=list)  # of the student's heads, not copied


@torch.no_grad()
def initialise_heads(
    student: Any,  # Sam3Model
    teacher: Any,  # Sam3Model
    usage: Tensor | None = None,  # [Qt] how often each of the teacher's queries found something
) -> Inheritance:
    """Copy the heads' weights whose names and shapes agree; the student's queries become the
    teacher's most used ones, or its first without `usage`. Nothing else changes.

    Raises:
        ValueError: `usage` is not one finite number for each of the teacher's queries.
    """
    weights = teacher.state_dict()
    report = Inheritance(queries=most_used(usage, len(weights[QUERIES[0]]), student))
    for name, own in student.state_dict().items():
        if name.partition(".")[0] not in HEADS:
            continue
        given = weights.get(name)
        if name in QUERIES and given.shape[1:] == own.shape[1:]:
            given = torch.cat([given[report.queries], own[len(report.queries) :].to(given)])
        if given is None or given.shape != own.shape:
            report.left.append(name)
            continue
        own.copy_(given)
        report.tensors += 1
        report.parameters += own.numel()
    return report


def most_used(usage: Tensor | None, count: int, student: Any) -> list[int]:
    """The teacher's queries that the student takes, in the teacher's order."""
    if usage is None:
        usage = torch.zeros(count)
    if usage.shape != (count,) or not bool(usage.isfinite().all()):
        raise ValueError(
            f"query usage has shape {tuple(usage.shape)}, expected {count} finite numbers"
        )
    wanted = student.config.detr_decoder_config.num_queries
    order = usage.argsort(descending=True, stable=True)
    return sorted(order[:wanted].tolist())
