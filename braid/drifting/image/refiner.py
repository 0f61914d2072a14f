"""What corrupts images, and a transformer that completes them, or makes them, in one step.

Tokens are the patches of one image. Each block attends over all of them, then mixes channels,
under adaptive layer norms (Peebles and Xie 2023, adaLN). What modulates them is a *style* (Karras
et al. 2019): class, level, guidance alpha and a summary of the whole corrupted image, mixed by a
small network. Where some patches are given the output is z + f(z, style), a correction. Where none
is z is noise; it enters through the summary alone, on tokens that hold nothing but their place:
noise that passed the tokens one by one would be left in the image as grain.

An untrained refiner must generate images that differ more than real ones do. From samples that lie
close together all real ones are as near, so that their drifts agree and the class ends as one
image; samples spread wider than the data shrink into place. Hence `spread`, and embeddings of
class, level and place that start small beside the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid.common.io import load_model, save_model
from braid.common.rng import normals, outputs
from braid.drifting.image.config import ImageRefinerConfig, KeypatchConfig
from braid.drifting.interpolation.interpolation import mean_by_distance, solve_harmonic
from braid.drifting.video.corruption import Corrupted
from braid.drifting.video.refiner import FREQUENCIES, Attention, guidance_waves, normalized

SUMMARY = 8  # numbers that each token adds to the summary of its image
SMALL = 0.5  # standard deviation of new embeddings


class ImageRefiner(nn.Module):
    """x_hat = z + f(z, confidence, class, level, alpha), or f alone where z is all noise."""

    def __init__(
        self,
        shape: tuple[int, int, int],  # C, H, W of an image
        classes: int,  # conditions
        levels: int,  # of corruption, level 0 included
        config: ImageRefinerConfig,
    ) -> None:
        """Fresh weights; `config.spread` widens the last modulation, and the images' differences.

        Raises:
            ValueError: heads do not divide dim, or patches do not tile the image.
        """
        super().__init__()
        dim, heads, patch, style = config.dim, config.heads, config.patch, config.style
        if dim % heads:
            raise ValueError(
                f"image_drift.refiner.dim is {dim}, expected a multiple of heads: {heads}"
            )
        height, width = patch_grid(shape[1:], patch)
        self.sizes = {"shape": list(shape), "classes": classes, "levels": levels}
        self.config = config
        pixels = shape[0] * patch**2
        self.embed = nn.Linear(pixels + 1, dim)
        self.place = nn.Parameter(torch.randn(height * width, dim))
        self.squeeze = nn.Linear(pixels + 1, SUMMARY)
        self.summary = nn.Linear(height * width * SUMMARY, style)
        self.class_table = nn.Embedding(classes, style)
        self.level_table = nn.Embedding(levels, style)
        self.alpha = _network(2 * FREQUENCIES, style, style)
        self.mix = _network(style, 2 * style)
        self.blocks = nn.ModuleList(_Block(dim, heads, style) for _ in range(config.depth))
        self.modulate = nn.Linear(style, 2 * dim)
        self.out = nn.Linear(dim, pixels)
        with torch.no_grad():
            self.modulate.weight.mul_(config.spread)
            for embedding in (self.class_table.weight, self.level_table.weight, self.place):
                embedding.mul_(SMALL)

    def require(
        self,
        shape: tuple[int, int, int],  # C, H, W
        classes: int,
        levels: int,
    ) -> None:
        """Refuse images that it was not made for.

        Raises:
            ValueError: they are of another shape, number of classes or of levels.
        """
        own, expected = tuple(self.sizes.values()), (list(shape), classes, levels)
        if own != expected:
            raise ValueError(
                f"the refiner is of images {own[0]} of {own[1]} classes at {own[2]} levels, "
                f"expected {expected[0]}, {expected[1]} and {expected[2]}"
            )

    def forward(
        self,
        images: Tensor,  # [B, C, H, W] corrupted
        mask: Tensor,  # [B, h, w] true at given patches
        confidence: Tensor,  # [B, h, w] how far each patch can be trusted, 0 to 1
        classes: Tensor,  # [B]
        level: Tensor,  # [B]
        alpha: Tensor,  # [B] guidance, 1: none
        clamp: bool | None = None,  # keep given patches bit for bit; None: as configured
    ) -> Tensor:
        """The refined images, [B, C, H, W]."""
        patch = self.config.patch
        patches = torch.cat([patchify(images, patch), confidence[:, None]], dim=1)
        tokens = patches.flatten(2).mT  # [B, h w, C p p + 1]
        style = self.style(tokens, classes, level, alpha)
        completes = mask.flatten(1).any(1)[:, None, None]  # some are given: z is not all noise
        x = self.embed(torch.where(completes, tokens, 0)) + self.place
        for block in self.blocks:
            x = block(x, style)
        shift, scale = self.modulate(style)[:, None].chunk(2, dim=-1)
        x = self.out(normalized(x) * (1 + scale) + shift)
        correction = unpatchify(x.mT.unflatten(2, mask.shape[1:]), patch)
        refined = torch.where(completes[..., None], images, 0) + correction
        if self.config.keep_anchors_fixed if clamp is None else clamp:
            refined = torch.where(per_pixel(mask, patch), images, refined)
        return refined

    def style(self, tokens: Tensor, classes: Tensor, level: Tensor, alpha: Tensor) -> Tensor:
        """What modulates the blocks, [B, style]."""
        style = normalized(self.summary(self.squeeze(tokens).flatten(1)))
        style = style + self.class_table(classes) + self.level_table(level)
        style = style + self.alpha(guidance_waves(alpha))
        return functional.silu(normalized(style + self.mix(normalized(style))))


class _Block(nn.Module):
    """Attention over the tokens and a two-layer network, each modulated and gated."""

    def __init__(self, dim: int, heads: int, style: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.mix = _network(dim, 4 * dim)
        self.modulate = nn.Linear(style, 6 * dim)

    def forward(
        self,
        x: Tensor,  # [B, N, D]
        style: Tensor,  # [B, style]
    ) -> Tensor:
        """The updated tokens."""
        modulation = self.modulate(style)[:, None].chunk(6, dim=-1)
        shift, scale, gate = modulation[:3]
        x = x + gate * self.attention(normalized(x) * (1 + scale) + shift)
        shift, scale, gate = modulation[3:]
        return x + gate * self.mix(normalized(x) * (1 + scale) + shift)


def _network(inputs: int, hidden: int, outputs: int | None = None) -> nn.Sequential:
    """Two layers; as many outputs as inputs unless `outputs` says otherwise."""
    last = nn.Linear(hidden, outputs or inputs)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), last)


def save_image_refiner(folder: Path, refiner: ImageRefiner) -> None:
    """Write `model.safetensors` and `config.json`."""
    save_model(folder, refiner, {**refiner.sizes, **refiner.config.model_dump()})


def load_image_refiner(folder: Path) -> ImageRefiner:
    """Read a refiner.

    Raises:
        ValueError: a file is missing or broken; the message names the folder.
    """

    def build(shape: list[int], classes: int, levels: int, **config: Any) -> ImageRefiner:
        channels, height, width = shape
        return ImageRefiner(
            (channels, height, width), classes, levels, ImageRefinerConfig(**config)
        )

    return load_model(folder, build, "refiner of images")[1].eval()


# ---- The forward process -------------------------------------------------------------------------
# An image is cut into a grid of square patches: keep some, interpolate the others, add noise.
#
#     given patch                        its pixels, bit for bit
#     missing, some others are given     interpolated on the patch grid, + sigma * white noise
#     missing, none is given             white noise of unit variance: generation from nothing
#
# At level 0 all patches are given, at each coarser level fewer, and at the coarsest perhaps none. A
# patch's *rank*, random and of each image's own, says all of it: at level s the patches of rank
# below K_s are given, so that what is given at a level is given at every finer one. As for clips
# all randomness of an image is a function of (the generator's seed, the image's id).


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
