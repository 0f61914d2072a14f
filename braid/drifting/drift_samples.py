"""What a drift is computed from, and its layout for batched products.

The M columns of a class at a location are [unconditional | generated | queued | positives]. A
group's own ones become one tensor, the unconditional ones another that the classes share; that is
the only copy made of them. Both lie near the origin, which keeps |x|^2 + |y|^2 - 2 x.y precise;
padding is zeroed and has weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MIN_SQUARE = 1e-8  # of a distance

Block = tuple[Tensor, Tensor | None]  # [C, n, L, D] and how many of n exist, [C]; None: all


@dataclass(frozen=True)
class Samples:
    """A group of feature vectors: C classes, L locations, D dimensions.

    The rows of a class from its count on are padding and without effect, whatever they hold.
    """

    generated: Tensor  # [C, N, L, D] negatives of one another; the ones that get a gradient
    positives: Tensor  # [C, P, L, D]
    negatives: Tensor | None = None  # [C, Q, L, D] generated earlier
    unconditional: Tensor | None = None  # [U, L, D] real samples of any class, for all classes
    generated_count: Tensor | None = None  # [C] int64; None: all rows are samples
    positive_count: Tensor | None = None  # [C]
    negative_count: Tensor | None = None  # [C]

    def blocks(self) -> list[Block]:
        """Those of one class each, in the order of columns."""
        every = (
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
        if self.unconditional is not None:
            fits = fits and self.unconditional.shape[1:] == self.generated.shape[2:]
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
    """A group ready for products, in float32 or float64."""

    own: Tensor  # [L, C, M - U, D] generated, queued, positives
    shared: Tensor  # [L, U, D] unconditional
    weight: Tensor  # [C, M] of the columns, 0 for padding
    rows: int  # N: the columns U to U + N, the generated ones
    positives: int  # P: the last columns
    exist: Tensor | None  # [C, M] bool: columns that are no padding; None: all

    @property
    def generated(self) -> slice:
        """The columns that are the rows."""
        return slice(self.shared.shape[1], self.shared.shape[1] + self.rows)

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
            return self.weight.new_full(self.weight.shape[:1], self.rows)
        return self.exist[:, self.generated].sum(1).to(self.weight)

    def diagonal(
        self,
        values: Tensor,  # [..., N, M]
    ) -> Tensor:
        """Where a row meets itself, [..., N]; a view."""
        return values.diagonal(self.generated.start, -2, -1)

    def distances(self) -> Tensor:
        """From each generated vector to each column, [L, C, N, M]; 0 for padding."""
        locations, classes, _, dims = self.own.shape
        shape = (locations, classes, self.rows, -1)
        rows = self.own[:, :, : self.rows]
        norms = torch.linalg.vector_norm(self.own, dim=-1).square_()  # [L, C, M - U]
        shared_norms = torch.linalg.vector_norm(self.shared, dim=-1).square_()
        by_location = rows.reshape(locations, -1, dims), self.shared.mT
        shared = torch.baddbmm(shared_norms[:, None], *by_location, alpha=-2)
        by_class = rows.flatten(0, 1), self.own.flatten(0, 1).mT
        own = torch.baddbmm(norms.flatten(0, 1)[:, None], *by_class, alpha=-2)
        distance = torch.cat([shared.view(shape), own.view(shape)], -1)
        distance.add_(norms[:, :, : self.rows, None])
        self.diagonal(distance).zero_()  # exactly, whatever rounding says
        distance.clamp_(min=MIN_SQUARE).sqrt_()
        return distance if self.pairs is None else distance.mul_(self.pairs)

    def combine(
        self,
        part: slice,  # of the locations
        coefficients: Tensor,  # [l, C, T, N, M]
        out: Tensor,  # [l, C, T, N, D]
    ) -> None:
        """Sums of the columns' vectors, of all temperatures at once."""
        shared, own = self.shared[part], self.own[part].flatten(0, 1)
        split, dims = shared.shape[1:]
        of_class = coefficients[..., split:].flatten(0, 1).flatten(1, 2)
        torch.bmm(of_class, own, out=out.view(len(own), -1, dims))
        if split:
            of_all = coefficients[..., :split].flatten(1, 3)
            out.view(len(shared), -1, dims).baddbmm_(of_all, shared)


def lay_out(
    samples: Samples,
    unconditional_weight: Tensor,  # [C]
) -> Layout:
    """Columns, their weights, and what is padding."""
    classes, rows, locations, dims = samples.generated.shape
    blocks = samples.blocks()
    sizes = [block.shape[1] for block, _ in blocks]
    ragged = any(count is not None for _, count in blocks)
    exist = torch.cat([_exist(*each) for each in blocks], 1) if ragged else None
    centre = _mean(blocks[0][0], None if exist is None else exist[:, :rows])

    own = centre.new_empty(locations, classes, sum(sizes), dims)
    for (block, _), slot in zip(blocks, own.split(sizes, 2), strict=True):
        torch.sub(block.permute(2, 0, 1, 3), centre[:, None, None], out=slot)
    weight = centre.new_ones(own.shape[1:3])
    if exist is not None:
        own.masked_fill_(~exist[:, :, None], 0)
        weight *= exist
    count = 0 if samples.unconditional is None else len(samples.unconditional)
    shared = centre.new_empty(locations, count, dims)
    if samples.unconditional is not None:
        torch.sub(samples.unconditional.detach().transpose(0, 1), centre[:, None], out=shared)
    first = (classes, count)
    weight = torch.cat([unconditional_weight.detach()[:, None].expand(first).to(weight), weight], 1)
    if exist is not None:
        exist = torch.cat([exist.new_ones(first), exist], 1)
    return Layout(own, shared, weight, rows, sizes[-1], exist)


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
