"""The forward process on images: keep some patches, interpolate the others, add noise.

    known patch                      its pixels, bit for bit
    unknown, some others are known   their interpolation on the patch grid + sigma * white noise
    unknown, none is known           white noise of unit variance: generation starts from nothing

As for clips all randomness of an image is a function of (the generator's seed, the image's id).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from braid.drifting.corruption import Corrupted
from braid.drifting.harmonic import harmonic, inverse_distance
from braid.drifting.keypatches import (
    level_counts,
    nested_masks,
    patch_grid,
    patchify,
    per_pixel,
    unpatchify,
)
from braid.drifting.streams import normals

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
