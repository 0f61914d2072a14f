"""What a drift is computed from, and its layout for batched products.

The M columns of a class at a location are [unconditional | generated | banked | positives], the
unconditional ones the same for each class. They become one tensor, a few locations at a time, so
that on a CPU it stays in the cache. It lies near the origin, which keeps |x|^2 + |y|^2 - 2 x.y
precise; padding is zeroed and has weight 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SQUARE = 1e-8  # of a distance
CACHED = 2**22  # numbers, about what a CPU's cache holds

Block = tuple[Tensor, Tensor | None]  # [C, n, L, D] and how many of n exist, [C]; None: all


@dataclass(frozen=True)
class Samples:
    """A group of feature vectors: C classes, L locations, D dimensions.

    The rows of a class from its count on are padding and without effect, whatever they hold.
    """

    generated: Tensor  # [C, N, L, D] negatives of one another; the ones that get a gradient
    positives: Tensor  # [C, P, L, D]
    negatives: Tensor | None = None  # [C, Q, L, D] generated earlier, from a memory bank
    unconditional: Tensor | None = None  # [U, L, D] real samples of any class, for all classes
    generated_count: Tensor | None = None  # [C] int64; None: all rows are samples
    positive_count: Tensor | None = None  # [C]
    negative_count: Tensor | None = None  # [C]

    def blocks(self) -> list[Block]:
        """In the order of columns, the unconditional ones given to each class."""
        shared = self.unconditional
        every = (
            (None if shared is None else shared.expand(len(self.generated), *shared.shape), None),
            (self.generated, self.generated_count),
            (self.negatives, self.negative_count),
            (self.positives, self.positive_count),
        )
        return [(block.detach(), count) for block, count in every if block is not None]

    def check(self, name: str, classes: int) -> None:
        """Compare shapes.

        Raises:
            ValueError: those of the group called `name` do not fit one another.
        """
        blocks = self.blocks()
        fits = self.generated.ndim == 4 and self.generated.shape[1] > 0
        for block, count in blocks:
            same = block.ndim == 4 and block.shape[2:] == self.generated.shape[2:]
            counted = count is None or count.shape == (classes,)
            fits = fits and same and len(block) == classes and counted
        if not fits:
            shapes = ", ".join(str(list(block.shape)) for block, _ in blocks)
            raise ValueError(
                f"drift: group {name!r}: expected samples [{classes}, n, L, D], unconditional ones "
                f"[n, L, D] and counts [{classes}], all of the same L and D, got {shapes}"
            )


@dataclass(frozen=True)
class Layout:
    """Locations of a group ready for products, in float32 or float64."""

    columns: Tensor  # [L, C, M, D] unconditional, generated, banked, positives
    weight: Tensor  # [C, M] of the columns, 0 for padding
    generated: slice  # the columns that are the N rows
    positives: int  # P: the last columns
    exist: Tensor | None  # [C, M] bool: columns that are no padding; None: all

    @property
    def rows(self) -> Tensor:
        """The generated vectors, [L, C, N, D]."""
        return self.columns[:, :, self.generated]

    @property
    def pairs(self) -> Tensor | None:
        """Which rows and columns exist, [C, N, M] bool; None: all."""
        if self.exist is None:
            return None
        return self.exist[:, self.generated, None] & self.exist[:, None]

    @property
    def counts(self) -> Tensor:
        """How many rows each class has, [C]."""
        if self.exist is None:
            return self.weight.new_full(self.weight.shape[:1], self.rows.shape[2])
        return self.exist[:, self.generated].sum(1).to(self.weight)

    def diagonal(
        self,
        values: Tensor,  # [..., N, M]
    ) -> Tensor:
        """Where a row meets itself, [..., N]; a view."""
        return values.diagonal(self.generated.start, -2, -1)

    def distances(self) -> Tensor:
        """From each generated vector to each column, [L, C, N, M]; 0 for padding."""
        norms = torch.linalg.vector_norm(self.columns, dim=-1).square_()  # [L, C, M]
        pair = self.rows.flatten(0, 1), self.columns.flatten(0, 1).mT
        products = torch.baddbmm(norms.flatten(0, 1)[:, None], *pair, alpha=-2)
        distance = products.unflatten(0, norms.shape[:2])
        distance.add_(norms[:, :, self.generated, None])
        self.diagonal(distance).zero_()  # exactly, whatever rounding says
        distance.clamp_(min=MIN_SQUARE).sqrt_()
        return distance if self.pairs is None else distance.mul_(self.pairs)

    def combine(
        self,
        coefficients: Tensor,  # [L, C, T, N, M]
        out: Tensor,  # [L, C, T, N, D]
    ) -> None:
        """Sums of the columns' vectors, of all temperatures at once."""
        torch.bmm(
            coefficients.flatten(0, 1).flatten(1, 2),
            self.columns.flatten(0, 1),
            out=out.flatten(0, 1).flatten(1, 2),
        )


def lay_out(
    samples: Samples,
    unconditional_weight: Tensor,  # [C]
) -> Iterator[Layout]:
    """A few locations after another: their columns, weights, and what is padding."""
    blocks = samples.blocks()
    sizes = [block.shape[1] for block, _ in blocks]
    ragged = any(count is not None for _, count in blocks)
    exist = torch.cat([_exist(block, count) for block, count in blocks], 1) if ragged else None
    count = 0 if samples.unconditional is None else len(samples.unconditional)
    generated = slice(count, count + samples.generated.shape[1])
    center = _mean(samples.generated.detach(), None if exist is None else exist[:, generated])
    weight = center.new_ones(len(samples.generated), sum(sizes))
    weight[:, :count] = unconditional_weight.detach()[:, None]
    if exist is not None:
        weight *= exist
    for part in _parts(center, weight.numel()):
        columns = center.new_empty(len(center[part]), *weight.shape, center.shape[1])
        for (block, _), slot in zip(blocks, columns.split(sizes, 2), strict=True):
            torch.sub(block[:, :, part].permute(2, 0, 1, 3), center[part, None, None], out=slot)
        if exist is not None:
            columns.masked_fill_(~exist[:, :, None], 0)
        yield Layout(columns, weight, generated, sizes[-1], exist)


def _parts(
    center: Tensor,  # [L, D]
    columns: int,  # of all classes
) -> Iterator[slice]:
    """Locations to take at once: as many as the cache of a CPU holds columns of."""
    locations, dims = center.shape
    step = max(1, CACHED // (columns * dims)) if center.device.type == "cpu" else locations
    return (slice(start, start + step) for start in range(0, locations, step))


def _exist(block: Tensor, count: Tensor | None) -> Tensor:
    """Which samples of a block are no padding, [C, n] bool."""
    place = torch.arange(block.shape[1], device=block.device).expand(block.shape[:2])
    return place >= 0 if count is None else place < count.to(block.device)[:, None]


def _mean(samples: Tensor, exist: Tensor | None) -> Tensor:
    """The mean of [C, n, L, D] over the samples that exist, [L, D], in float32 or float64."""
    dtype = torch.promote_types(samples.dtype, torch.float32)
    if exist is None:
        return samples.mean((0, 1), dtype=dtype)
    kept = samples.masked_fill(~exist[:, :, None, None], 0)
    return kept.sum((0, 1), dtype=dtype) / exist.sum().clamp(min=1)
