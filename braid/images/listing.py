"""Which images there are: their names, labels and splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

NO_LABEL = -1


class Fault(NamedTuple):
    """An image that cannot be read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """n images."""

    names: Sequence[str]  # [n], unique
    labels: Sequence[int]  # [n], NO_LABEL: none
    label_names: Sequence[str]
    splits: Sequence[str]  # [n], of `braid.splits`
    faults: Sequence[Fault] = ()  # further images, not among the n
