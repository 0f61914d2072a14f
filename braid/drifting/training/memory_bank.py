"""Memory banks, a ring of samples a class: what a step compares with beyond its own batch.

They hold latents, not features: at 86 maps a sample's features are hundreds of times its latent.
Or they hold positions in a data set, 8 bytes each, whose latents are read again when drawn: 1,024
classes of 128 clips are then 1 MiB, where their latents in Wan's size would be 1.1 TB.
As in the official release a draw is without replacement, and with replacement only from a class
that holds too few; that is counted, for it weights samples double.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Drawn(NamedTuple):
    """Samples of C classes; those of a class that holds none are zeros."""

    samples: Tensor  # [C, count, ...]
    counts: Tensor  # [C] int64: count, or 0 where the class holds none


class MemoryBanks:
    """The newest `capacity` samples of each class, on the CPU.

    Memory is taken as it fills. Counts and indices stay on the CPU, and with them the decisions.

    Raises:
        ValueError: no classes or no capacity; pushed samples of another shape or class.
    """

    def __init__(
        self,
        classes: int,
        capacity: int,  # samples a class
        sample_shape: tuple[int, ...],
        read: Callable[[Tensor], Tensor] | None = None,  # samples are positions [...]; of latents
    ) -> None:
        if classes < 1 or capacity < 1:
            raise ValueError(
                f"memory banks: expected classes and a capacity, got {classes}, {capacity}"
            )
        self.capacity, self.read = capacity, read
        kind = torch.float32 if read is None else torch.int64
        self.samples = torch.zeros(classes, capacity, *sample_shape, dtype=kind)
        self.pushed = torch.zeros(classes, dtype=torch.int64)  # [K] ever
        self.fallbacks = 0  # draws from a class that had too few, ever

    @property
    def sizes(self) -> Tensor:
        """How many samples each class holds, [K]."""
        return self.pushed.clamp(max=self.capacity)

    def push(
        self,
        classes: Tensor,  # [B] int64, in any order
        samples: Tensor,  # [B, ...]
    ) -> None:
        """Add samples; of a full class the oldest go, and the last of a batch are the newest."""
        classes = classes.cpu()
        if samples.shape != (len(classes), *self.samples.shape[2:]):
            expected = (len(classes), *self.samples.shape[2:])
            raise ValueError(
                f"memory banks: expected samples {expected}, got {tuple(samples.shape)}"
            )
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(self.pushed):
            raise ValueError(
                f"memory banks: expected classes below {len(self.pushed)}, got {classes}"
            )
        order = classes.argsort(stable=True)
        sizes = torch.bincount(classes, minlength=len(self.pushed))
        classes = classes[order]
        rank = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[classes]
        slot = (self.pushed[classes] + rank) % self.capacity
        kept = rank >= sizes[classes] - self.capacity  # or a slot would be written twice
        source = samples.detach()[order[kept].to(samples.device)]
        self.samples[classes[kept], slot[kept]] = source.to(self.samples)
        self.pushed += sizes

    def draw(
        self,
        classes: Tensor,  # [C] int64; a class that stands there twice is drawn from twice
        count: int,
        generator: torch.Generator,
        near: Tensor | None = None,  # [C, N, ...] to take the nearest samples to; None: any
    ) -> Drawn:
        """`count` samples of each class, at random or those at the least distance to one of `near`.

        The nearest of a class that has too few are all of it, as evenly repeated as can be.

        Raises:
            ValueError: `count` is more than a class can hold.
        """
        if count > self.capacity:
            raise ValueError(
                f"memory banks: {count} samples to draw, a class keeps {self.capacity}"
            )
        classes = classes.cpu()
        size = self.sizes[classes][:, None]  # [C, 1]
        keys = torch.rand(
            (len(classes), self.capacity), generator=generator, device=generator.device
        ).cpu()
        order = keys if near is None else self._distances(classes, near)
        order = order.masked_fill(torch.arange(self.capacity) >= size, math.inf).argsort(1)
        index = order.gather(1, torch.arange(count) % size.clamp(min=1))
        if near is None:
            repeated = (keys[:, :count] * size).long().minimum((size - 1).clamp(min=0))
            index = torch.where(size >= count, index, repeated)
        self.fallbacks += int((size < count).sum())
        return Drawn(self.samples[classes[:, None], index], count * (size[:, 0] > 0))

    def state_dict(self) -> dict[str, Any]:
        """The samples and what counts; empty slots are left out."""
        return {
            "samples": self.samples[self._filled()].cpu(),
            "pushed": self.pushed.clone(),
            "fallbacks": self.fallbacks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as the banks did that gave the state.

        Raises:
            ValueError: they were of another size.
        """
        pushed, samples = state["pushed"], state["samples"]
        total = int(pushed.clamp(max=self.capacity).sum())
        if pushed.shape != self.pushed.shape or samples.shape != (total, *self.samples.shape[2:]):
            raise ValueError("memory banks: the state is of banks of another size")
        self.pushed = pushed.clone()
        self.fallbacks = int(state["fallbacks"])
        self.samples[self._filled()] = samples.to(self.samples)

    def _distances(self, classes: Tensor, near: Tensor) -> Tensor:
        """From each slot of classes [C] to the nearest of [C, N, ...], [C, capacity]."""
        slots = self.samples[classes]
        slots = (slots if self.read is None else self.read(slots)).flatten(2)
        return torch.cdist(slots, near.detach().to(slots).flatten(2)).amin(2).cpu()

    def _filled(self) -> Tensor:
        """Which slots hold a sample, [K, capacity]."""
        return torch.arange(self.capacity) < self.sizes[:, None]


class MemoryBank:
    """The newest samples of any class: unconditional ones."""

    def __init__(
        self,
        capacity: int,
        sample_shape: tuple[int, ...],
        read: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._banks = MemoryBanks(1, capacity, sample_shape, read)

    @property
    def size(self) -> int:
        """How many samples it holds."""
        return int(self._banks.sizes)

    def push(
        self,
        samples: Tensor,  # [B, ...]
    ) -> None:
        """Add samples; when it is full the oldest go."""
        self._banks.push(torch.zeros(len(samples), dtype=torch.int64), samples)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` samples, [count, ...].

        Raises:
            ValueError: nothing was pushed yet, or `count` is more than it can hold.
        """
        if not self.size:
            raise ValueError(
                "memory banks: nothing was pushed yet to draw unconditional samples from"
            )
        return self._banks.draw(torch.zeros(1, dtype=torch.int64), count, generator).samples[0]

    def state_dict(self) -> dict[str, Any]:
        """See `MemoryBanks`."""
        return self._banks.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `MemoryBanks`."""
        self._banks.load_state_dict(state)


class ReadAhead:
    """Reads samples in one thread, those that were announced before they are asked for."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        self._read = read
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._announced: tuple[Tensor, Future[Tensor]] | None = None

    def announce(self, positions: Tensor) -> None:
        """Start to read what will be asked for; what was announced before it is forgotten."""
        self._announced = positions, self._thread.submit(self._read, positions)

    def __call__(self, positions: Tensor) -> Tensor:
        """The samples at positions [B]."""
        if self._announced and torch.equal(self._announced[0], positions):
            future, self._announced = self._announced[1], None
            return future.result()
        return self._read(positions)
