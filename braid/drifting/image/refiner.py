"""A transformer over patch tokens that completes corrupted images, or makes them, in one step.

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

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid.common.io import load_model, save_model
from braid.drifting.config import ImageRefinerConfig
from braid.drifting.image.corruption import patch_grid, patchify, per_pixel, unpatchify
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
