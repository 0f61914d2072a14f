"""The forward process on images: keep some patches, interpolate the others, add noise.

    known patch                      its pixels, bit for bit
    unknown, some others are known   their interpolation on the patch grid + sigma * white noise
    unknown, none is known           white noise of unit variance: generation starts from nothing

As for clips all randomness of an image is a function of (the generator's seed, the image's id).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from braid.common.rng import normals, outputs
from braid.drifting.interpolation.harmonic import harmonic, inverse_distance
from braid.drifting.video.corruption import Corrupted

# ---- Patches of images, and which of them are known: nested keypatch levels --------------------
# An image is cut into a grid of square patches. Level 0 knows all of them, each coarser level
# fewer, and the coarsest one may know none. A patch's *rank*, random and of each image's own, says
# all of it: level s knows the patches of rank below K_s, so that what a level knows every finer one
# knows.


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
            f"image_refiner.patch is {patch}, expected a divisor of an image's {height} x {width}"
        )
    return height // patch, width // patch


def level_counts(known: Sequence[int], patches: int) -> list[int]:
    """How many of an image's patches each level knows, from level 0, which knows all.

    Raises:
        ValueError: the counts do not descend from below `patches` to 0 or more.
    """
    counts = [patches, *known]
    descends = all(finer > coarser for finer, coarser in pairwise(counts))
    if len(counts) < 2 or not descends or counts[-1] < 0:
        raise ValueError(
            f"image_corruption.known is {list(known)}, expected numbers that descend from below "
            f"{patches}, the patches of an image, to 0 or more"
        )
    return counts


def nested_masks(
    counts: Sequence[int],  # known patches at each level, of `level_counts`
    grid: tuple[int, int],  # h, w
    ids: Tensor,  # [B] int64, whose random numbers each image gets
    seed: int,
) -> Tensor:
    """The patches that each level knows, [levels, B, h, w] bool."""
    ranks = outputs(seed, "keypatches", ids, counts[0]).argsort(dim=1, stable=True)
    masks = ranks < torch.tensor(counts, device=ids.device)[:, None, None]
    return masks.unflatten(-1, grid)


def per_pixel(
    mask: Tensor,  # [B, h, w]
    patch: int,
) -> Tensor:
    """What holds of patches, for their pixels: [B, 1, H, W]."""
    return mask.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)[:, None]


METHODS = ("inverse_distance", "harmonic")


class KeypatchCorruption:
    """Keypatches, interpolation and noise for images of H, W pixels.

    Raises:
        ValueError: patches do not tile the image, impossible counts, or no such interpolator.
    """

    def __init__(
        self,
        size: Sequence[int],  # H, W
        patch: int,  # pixels a side
        *,
        known: Sequence[int],  # patches at levels 1, 2, ...; level 0 knows all
        interpolator: str = "inverse_distance",
        sigma_feature: float = 1.0,  # harmonic
        sigma_space: float = 0.5,  # harmonic
        lambda_reg: float = 1e-3,  # harmonic
        noise: float = 0.0,  # standard deviation on interpolated patches
    ) -> None:
        if interpolator not in METHODS:
            raise ValueError(
                f"image_corruption.interpolator is {interpolator!r}, "
                f"expected one of {', '.join(METHODS)}"
            )
        self.size, self.patch, self.noise = tuple(size), patch, noise
        self.grid = patch_grid(size, patch)
        self.counts = level_counts(known, self.grid[0] * self.grid[1])
        self.interpolator = interpolator
        self.settings = {
            "sigma_feature": sigma_feature,
            "sigma_space": sigma_space,
            "lambda_reg": lambda_reg,
        }

    @property
    def levels(self) -> int:
        """The coarsest level."""
        return len(self.counts) - 1

    def __call__(
        self,
        images: Tensor,  # [B, C, H, W]
        level: Tensor,  # [B] int64, 0 (all is known) to `levels`
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
        """The patches that images know at their levels, [B, h, w] bool."""
        masks = nested_masks(self.counts, self.grid, ids, generator.initial_seed())
        return masks[level, torch.arange(len(ids), device=ids.device)]

    def impute(
        self,
        images: Tensor,  # [B, C, H, W]; unknown patches are not read
        mask: Tensor,  # [B, h, w] bool, True: known
        ids: Tensor,  # [B] int64
        generator: torch.Generator,  # of the noise
    ) -> Corrupted:
        """Fill in what is not known, noise and all; the known stays bit for bit.

        Raises:
            ValueError: images of another size.
        """
        filled = self.interpolate(images, mask)
        white = normals(
            generator.initial_seed(), "noise", ids.to(images.device), images[0].numel()
        ).view_as(images)
        nothing = ~mask.flatten(1).any(1)[:, None, None, None]
        noisy = torch.where(nothing, white, filled + self.noise * white)
        return Corrupted(
            torch.where(per_pixel(mask, self.patch), images, noisy), mask, mask.float()
        )

    def interpolate(
        self,
        images: Tensor,  # [B, C, H, W]; unknown patches are not read
        mask: Tensor,  # [B, h, w] bool
    ) -> Tensor:
        """Images whose unknown patches are made from the known ones; 0 where there is none.

        Raises:
            ValueError: images of another size.
        """
        if images.ndim != 4 or tuple(images.shape[2:]) != self.size:
            raise ValueError(
                f"image_corruption: expected images [B, C, {self.size[0]}, {self.size[1]}], "
                f"got {list(images.shape)}"
            )
        known = per_pixel(mask, self.patch)
        patches = patchify(torch.where(known, images, 0), self.patch)
        given = mask | ~mask.flatten(1).any(1)[:, None, None]  # nothing known: keep the zeros
        filled = inverse_distance(patches, given)
        if self.interpolator == "harmonic":
            filled = harmonic(patches, given, filled, **self.settings)
        return torch.where(known, images, unpatchify(filled, self.patch))
