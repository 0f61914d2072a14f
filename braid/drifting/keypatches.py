"""Patches of images, and which of them are known: nested keypatch levels.

An image is cut into a grid of square patches. Level 0 knows all of them, each coarser level fewer,
and the coarsest one may know none. A patch's *rank*, random and of each image's own, says all of
it: level s knows the patches of rank below K_s, so that what a level knows every finer one knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from braid.drifting.streams import outputs


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
