"""A transformer over patch tokens that completes corrupted images, or makes them, in one step.

Tokens are the patches of one image. Each block attends over all of them, then mixes channels,
under adaptive layer norms (Peebles and Xie 2023, adaLN). What modulates them is a *style* (Karras
et al. 2019): class, level, guidance alpha and a summary of the whole corrupted image, mixed by a
small network. Where some patches are known the output is z + f(z, style), a correction. Where none
is known z is noise; it enters through the summary alone, on tokens that know only their place:
noise that passed the tokens one by one would be left in the image as grain.

An untrained refiner must make images that differ more than real ones do. Seen from samples that
lie close together all real ones are as near, so that their drifts agree and the class ends as one
image; samples spread wider than the data shrink into place. Hence `spread`, and embeddings of
class, level and place that start small beside the noise.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid.common.io import load_model, save_model
from braid.drifting.image.corruption import patch_grid, patchify, per_pixel, unpatchify
from braid.drifting.video.refiner import FREQUENCIES, Attention, guidance_waves, normalised

SUMMARY = 8  # numbers that each token adds to the summary of its image
SMALL = 0.5  # standard deviation of new embeddings


class ImageRefiner(nn.Module):
    """x_hat = z + f(z, confidence, class, level, alpha), or f alone where z is all noise."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        levels: int,
        *,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        style: int,
        spread: float,
        keep_anchors_fixed: bool,
    ) -> None:
        """Make a refiner.

        Args:
            shape: C, H, W of an image.
            classes: conditions.
            levels: how many corruption levels there are, level 0 included.
            patch: pixels per side of a token.
            style: width of the style.
            spread: how many times wider than usual the last modulation starts, and with it the
                differences between images.
            keep_anchors_fixed: whether known patches are returned bit for bit.

        Raises:
            ValueError: heads do not divide dim, or patches do not tile the image.
        """
        super().__init__()
        if dim % heads:
            raise ValueError(
                f"image_refiner.dim is {dim}, expected a multiple of image_refiner.heads {heads}"
            )
        height, width = patch_grid(shape[1:], patch)
        self.patch, self.keep_anchors_fixed = patch, keep_anchors_fixed
        self.config = {
            **{"shape": list(shape), "classes": classes, "levels": levels, "patch": patch},
            **{"dim": dim, "depth": depth, "heads": heads, "style": style, "spread": spread},
            "keep_anchors_fixed": keep_anchors_fixed,
        }
        pixels = shape[0] * patch**2
        self.embed = nn.Linear(pixels + 1, dim)
        self.place = nn.Parameter(torch.randn(height * width, dim))
        self.squeeze = nn.Linear(pixels + 1, SUMMARY)
        self.summary = nn.Linear(height * width * SUMMARY, style)
        self.class_table = nn.Embedding(classes, style)
        self.level_table = nn.Embedding(levels, style)
        self.alpha = _network(2 * FREQUENCIES, style, style)
        self.mix = _network(style, 2 * style)
        self.blocks = nn.ModuleList(_Block(dim, heads, style) for _ in range(depth))
        self.modulate = nn.Linear(style, 2 * dim)
        self.out = nn.Linear(dim, pixels)
        with torch.no_grad():
            self.modulate.weight.mul_(spread)
            for each in (self.class_table.weight, self.level_table.weight, self.place):
                each.mul_(SMALL)

    def forward(
        self,
        images: Tensor,  # [B, C, H, W] corrupted
        mask: Tensor,  # [B, h, w] true at known patches
        confidence: Tensor,  # [B, h, w] how far each patch can be trusted, 0 to 1
        classes: Tensor,  # [B]
        level: Tensor,  # [B]
        alpha: Tensor,  # [B] guidance, 1: none
    ) -> Tensor:
        """The refined images, [B, C, H, W]."""
        patches = torch.cat([patchify(images, self.patch), confidence[:, None]], dim=1)
        tokens = patches.flatten(2).mT  # [B, h w, C p p + 1]
        style = self.style(tokens, classes, level, alpha)
        told = mask.flatten(1).any(1)[:, None, None]  # something: z is not all noise
        x = self.embed(torch.where(told, tokens, 0)) + self.place
        for block in self.blocks:
            x = block(x, style)
        shift, scale = self.modulate(style)[:, None].chunk(2, dim=-1)
        x = self.out(normalised(x) * (1 + scale) + shift)
        made = unpatchify(x.mT.unflatten(2, mask.shape[1:]), self.patch)
        refined = torch.where(told[..., None], images, 0) + made
        if self.keep_anchors_fixed:
            refined = torch.where(per_pixel(mask, self.patch), images, refined)
        return refined

    def style(self, tokens: Tensor, classes: Tensor, level: Tensor, alpha: Tensor) -> Tensor:
        """What modulates the blocks, [B, style]."""
        style = normalised(self.summary(self.squeeze(tokens).flatten(1)))
        style = style + self.class_table(classes) + self.level_table(level)
        style = style + self.alpha(guidance_waves(alpha))
        return functional.silu(normalised(style + self.mix(normalised(style))))


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
        x = x + gate * self.attention(normalised(x) * (1 + scale) + shift)
        shift, scale, gate = modulation[3:]
        return x + gate * self.mix(normalised(x) * (1 + scale) + shift)


def _network(inputs: int, hidden: int, outputs: int | None = None) -> nn.Sequential:
    """Two layers; as many outputs as inputs unless told otherwise."""
    last = nn.Linear(hidden, outputs or inputs)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), last)


def save_image_refiner(folder: Path, refiner: ImageRefiner) -> None:
    """Write the refiner."""
    save_model(folder, refiner, refiner.config)


def load_image_refiner(folder: Path) -> ImageRefiner:
    """Read a refiner.

    Raises:
        ValueError: a file is missing or broken; the message names the folder.
    """
    return load_model(folder, ImageRefiner, "refiner of images")[1].eval()
