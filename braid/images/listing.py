"""Which images there are: their names, labels and splits.

An image's name alone decides whether it is for training, validation or test: neither the order of
images nor their number has a say, so a set that grows keeps every image where it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

SPLITS = ("train", "val", "test")
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
    splits: Sequence[str]  # [n], of SPLITS
    faults: Sequence[Fault] = ()  # further images, not among the n


def split_of(name: str, val_share: float, test_share: float) -> str:
    """The split of the image called ``name``; shares hold in expectation.

    The place of BLAKE2b(name) in [0, 1) is held against the shares: test lies lowest, val next.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < test_share:
        return "test"
    return "val" if place < test_share + val_share else "train"
