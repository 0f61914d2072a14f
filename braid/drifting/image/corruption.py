"""The forward process on images: keep some patches, interpolate the others, add noise.

    given patch                        its pixels, bit for bit
    missing, some others are given     their interpolation on the patch grid + sigma * white noise
    missing, none is given             white noise of unit variance: generation starts from nothing

An image is cut into a grid of square patches. At level 0 all of them are given, at each coarser
level fewer, and at the coarsest perhaps none. A patch's *rank*, random and of each image's own,
says all of it: at level s the patches of rank below K_s are given, so that what is given at a level
is given at every finer one.

As for clips all randomness of an image is a function of (the generator's seed, the image's id).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from braid.common.rng import normals, outputs
from braid.drifting.config import KeypatchConfig
from braid.drifting.interpolation.interpolation import mean_by_distance, solve_harmonic
from braid.drifting.video.corruption import Corrupted


def patchify(
    images: Tensor,  # [B, C, H, W]
    patch: int,  # pixels a side
) -> Tensor:
    """The grid of patches, [B, C p p, h, w].

    Raises:
        ValueError: the image is no whole number of patches.
    """
    patch_grid(images.shape[-2:], patch)
    return functional.pixel_unshuffle(images, patch)


def unpatchify(
    patches: Tensor,  # [B, C p p, h, w]
    patch: int,
) -> Tensor:
    """The images that were cut, [B, C, H, W]."""
    return functional.pixel_shuffle(patches, patch)


def patch_grid(size: Sequence[int], patch: int) -> tuple[int, int]:
    """Rows and columns of patches in an image of H, W pixels.

    Raises:
        ValueError: the image is no whole number of patches.
    """
    height, width = size
    if patch < 1 or height % patch or width % patch:
        raise ValueError(
            f"image_drift.refiner.patch is {patch}, "
            f"expected a divisor of an image's {height} x {width}"
        )
    return height // patch, width // patch


def level_counts(given: Sequence[int], patches: int) -> list[int]:
    """How many of an image's patches are given at each level, from level 0, where all are.

    Raises:
        ValueError: the counts do not descend from below `patches` to 0 or more.
    """
    counts = [patches, *given]
    descends = all(finer > coarser for finer, coarser in pairwise(counts))
    if len(counts) < 2 or not descends or counts[-1] < 0:
        raise ValueError(
            f"image_drift.corruption.given is {list(given)}, expected numbers that descend from "
            f"below {patches}, the patches of an image, to 0 or more"
        )
    return counts


def nested_masks(
    counts: Sequence[int],  # given patches at each level, of `level_counts`
    grid: tuple[int, int],  # h, w
    ids: Tensor,  # [B] int64, whose random numbers each image gets
    seed: int,
) -> Tensor:
    """The patches that are given at each level, [levels, B, h, w] bool."""
    ranks = outputs(seed, "keypatches", ids, counts[0]).argsort(dim=1, stable=True)
    masks = ranks < torch.tensor(counts, device=ids.device)[:, None, None]
    return masks.unflatten(-1, grid)


def per_pixel(
    mask: Tensor,  # [B, h, w]
    patch: int,
) -> Tensor:
    """What holds of patches, for their pixels: [B, 1, H, W]."""
    return mask.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)[:, None]


class KeypatchCorruption:
    """Keypatches, interpolation and noise for images of H, W pixels.

    Raises:
        ValueError: patches do not tile the image, or impossible counts of given ones.
    """

    def __init__(
        self,
        size: Sequence[int],  # H, W
        patch: int,  # pixels a side
        config: KeypatchConfig,
    ) -> None:
        self.size, self.patch, self.config = tuple(size), patch, config
        self.grid = patch_grid(size, patch)
        self.counts = level_counts(config.given, self.grid[0] * self.grid[1])

    @property
    def levels(self) -> int:
        """The coarsest level."""
        return len(self.counts) - 1

    def __call__(
        self,
        images: Tensor,  # [B, C, H, W]
        level: Tensor,  # [B] int64, 0 (all is given) to `levels`
        ids: Tensor,  # [B] int64, whose random numbers each image gets
        generator: torch.Generator,  # its seed counts, its state is neither read nor moved
    ) -> Corrupted:
        """Corrupt images, each at its own level.

        Raises:
            ValueError: images of another size.
        """
        mask = self.mask(level.to(images.device), ids.to(images.device), generator)
        return self.impute(images, mask, ids, generator)

    def mask(
        self,
        level: Tensor,  # [B] int64
        ids: Tensor,  # [B] int64
        generator: torch.Generator,
    ) -> Tensor:
        """The patches of images that are given at their levels, [B, h, w] bool."""
        masks = nested_masks(self.counts, self.grid, ids, generator.initial_seed())
        return masks[level, torch.arange(len(ids), device=ids.device)]

    def impute(
        self,
        images: Tensor,  # [B, C, H, W]; missing patches are not read
        mask: Tensor,  # [B, h, w] bool, True: given
        ids: Tensor,  # [B] int64
        generator: torch.Generator,  # of the noise
    ) -> Corrupted:
        """Fill in what is missing, noise and all; what is given stays bit for bit.

        Raises:
            ValueError: images of another size.
        """
        filled = self.interpolate(images, mask)
        white = normals(
            generator.initial_seed(), "noise", ids.to(images.device), images[0].numel()
        ).view_as(images)
        nothing = ~mask.flatten(1).any(1)[:, None, None, None]
        noisy = torch.where(nothing, white, filled + self.config.noise * white)
        return Corrupted(
            torch.where(per_pixel(mask, self.patch), images, noisy), mask, mask.float()
        )

    def interpolate(
        self,
        images: Tensor,  # [B, C, H, W]; missing patches are not read
        mask: Tensor,  # [B, h, w] bool
    ) -> Tensor:
        """Images whose missing patches are interpolated from the given ones; 0 without any.

        Raises:
            ValueError: images of another size.
        """
        if images.ndim != 4 or tuple(images.shape[2:]) != self.size:
            raise ValueError(
                f"image_drift.corruption: expected images [B, C, {self.size[0]}, {self.size[1]}], "
                f"got {list(images.shape)}"
            )
        given = per_pixel(mask, self.patch)
        patches = patchify(torch.where(given, images, 0), self.patch)
        sources = mask | ~mask.flatten(1).any(1)[:, None, None]  # none given: keep the zeros
        filled = mean_by_distance(patches, sources)
        if self.config.interpolator == "harmonic":
            filled = solve_harmonic(patches, sources, filled, self.config)
        return torch.where(given, images, unpatchify(filled, self.patch))
