"""Class-balanced batches: a step draws classes, then clips of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Which clips a step looks at."""

    classes: Tensor  # [C]
    members: Tensor  # [C, N] indices into the training clips
    repeated: int  # how many of them stand there more than once: their class is too small


class ClassBatches:
    """Draws `classes` classes and `members` clips of each, both without replacement.

    A class with fewer clips repeats them as evenly as it can; a step that wants more classes than
    there are repeats classes.
    """

    def __init__(self, labels: Tensor) -> None:
        """Sort clips by class.

        Args:
            labels: the class of each training clip, [n].

        Raises:
            ValueError: there are no clips.
        """
        if not len(labels):
            raise ValueError("there are no training clips to draw batches from")
        self.sizes = torch.bincount(labels)
        self.occupied = self.sizes.nonzero().flatten()
        self.order = labels.argsort(stable=True)
        self.first = self.sizes.cumsum(0) - self.sizes

    def draw(self, classes: int, members: int, generator: torch.Generator) -> Batch:
        """One step's classes and clips."""
        chosen = self.occupied[_cycled(len(self.occupied), classes, generator)]
        return self.members(chosen, members, generator)

    def members(self, classes: Tensor, members: int, generator: torch.Generator) -> Batch:
        """Clips of the given classes [C]."""
        sizes = self.sizes[classes]
        keys = torch.rand(len(classes), int(sizes.max()), generator=generator)
        beyond = torch.arange(keys.shape[1]) >= sizes[:, None]
        ranked = keys.masked_fill(beyond, 2.0).argsort(dim=1)  # a class's own clips first
        turn = torch.arange(members) % sizes[:, None]
        within = ranked.gather(1, turn)
        repeated = int((members - sizes).clamp(min=0).sum())
        return Batch(classes, self.order[self.first[classes][:, None] + within], repeated)


def _cycled(size: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` of `size` things: all different, or as evenly repeated as can be."""
    return torch.randperm(size, generator=generator)[torch.arange(count) % size]
