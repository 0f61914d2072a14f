"""Phase 1: from a prompt to keyframes, in one step from noise.

A sample [C, 1 + K, H, W] is a clip whose frames are the *prompt* and K keyframes. The prompt frame
holds the condition embedding h of the text alone in its first numbers and is always given, so that
objectives, memory banks and step loop are those of refinement: what is missing is all keyframes.

A transformer over patches of noise, modulated by prompt, pseudo-class and guidance, makes them of

    layer       one mask over a still ground, moved to each keyframe by an affine map of its own and
                brought to latents by the pseudo-inverse of a linear picture (motion.py): a digit is
                learnt once, not at every place; it has two colors and an opacity for each moment
    correction  of each latent, which starts at zero
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from braid.common.io import load_model, save_model
from braid.common.rng import normals
from braid.drifting.config import KeyframeNetworkConfig
from braid.drifting.video.corruption import GIVEN_END, MISSING, Corrupted
from braid.drifting.video.features import vanilla
from braid.drifting.video.motion import COLORS, REACH, Decode, Picture, pixel_centers, sampled
from braid.drifting.video.refiner import (
    FREQUENCIES,
    Block,
    guidance_waves,
    normalized,
    patchify,
    positions,
    unpatchify,
)


AFFINE = 2 * 3  # numbers of an affine map


def with_prompt(
    prompts: Tensor,  # [B, d]
    keyframes: Tensor,  # [B, C, K, H, W]
) -> Tensor:
    """Samples [B, C, 1 + K, H, W].

    Raises:
        ValueError: a prompt has more numbers than a latent frame.
    """
    room = keyframes[0, :, 0].numel()
    if prompts.shape[1] > room:
        raise ValueError(
            f"clips.conditions: h has {prompts.shape[1]} numbers, expected at most {room}, those "
            "of a latent frame"
        )
    frame = functional.pad(prompts, (0, room - prompts.shape[1])).view_as(keyframes[:, :, 0])
    return torch.cat([frame[:, :, None], keyframes], 2)


def prompts_of(
    samples: Tensor,  # [B, C, 1 + K, H, W]
    size: int,
) -> Tensor:
    """Their prompts, [B, size]."""
    return samples[:, :, 0].flatten(1)[:, :size]


class FromNoise:
    """The forward process of phase 1: nothing is left of keyframes but noise."""

    levels = 1

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def __call__(
        self,
        samples: Tensor,  # [B, C, 1 + K, H, W]; of keyframes the shape alone counts
        level: Tensor,  # [B]; there is one
        ids: Tensor,  # [B] int64, whose noise each sample gets
        generator: torch.Generator,  # its seed counts
    ) -> Corrupted:
        """Prompts as they are, and noise."""
        keyframes, seed = samples[:, :, 1:], generator.initial_seed()
        noise = normals(seed, "phase 1", ids.to(samples.device), keyframes[0].numel())
        latents = torch.cat([samples[:, :, :1], self.sigma * noise.view_as(keyframes)], 2)
        mask = torch.zeros(len(samples), samples.shape[2], dtype=torch.bool, device=samples.device)
        mask[:, 0] = True
        return Corrupted(latents, mask, torch.where(mask, GIVEN_END, MISSING))


class KeyframeGenerator(nn.Module):
    """x_hat = g(noise, prompt, class, alpha)."""

    def __init__(
        self,
        channels: int,  # of a latent
        height: int,  # of a latent frame
        width: int,
        prompt: int,  # numbers of a prompt
        classes: int,  # pseudo-classes
        sigma: float,  # of the noise that it was trained on
        config: KeyframeNetworkConfig,
    ) -> None:
        """Fresh weights.

        Raises:
            ValueError: heads do not divide dim, or the patch does not divide the frame.
        """
        super().__init__()
        dim, heads, patch = config.dim, config.heads, config.patch
        if dim % heads:
            raise ValueError(
                f"drift.keyframes.network.dim is {dim}, expected a multiple of heads: {heads}"
            )
        if height % patch or width % patch:
            raise ValueError(
                f"drift.keyframes.network.patch is {patch}, expected a divisor of the sides of a "
                f"latent frame, {height} and {width}"
            )
        self.shape = {"channels": channels, "height": height, "width": width}
        self.shape |= {"prompt": prompt, "classes": classes}
        self.sigma, self.config = sigma, config
        self.embed = nn.Linear(channels * patch**2, dim)
        self.prompt = nn.Linear(prompt, dim)
        self.meaning = nn.Sequential(nn.GELU("tanh"), nn.Linear(dim, dim))
        self.class_table = nn.Embedding(classes, dim)
        self.alpha = nn.Sequential(nn.Linear(2 * FREQUENCIES, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, text=False) for _ in range(config.depth))
        self.modulate = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, channels * patch**2)
        for layer in (self.modulate, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        moved = channels, dim, patch, config.detail, config.moments
        self.layer = MovedLayer(*moved) if config.detail else None

    def forward(
        self,
        samples: Tensor,  # [B, C, 1 + K, H, W] prompts and noise
        mask: Tensor,  # [B, 1 + K] true at prompts alone
        confidence: Tensor,  # [B, 1 + K]
        classes: Tensor,  # [B]
        level: Tensor,  # [B]; there is one
        alpha: Tensor,  # [B] guidance, 1: none
        clamp: bool | None = None,  # prompts are always kept
    ) -> Tensor:
        """Prompts and keyframes, [B, C, 1 + K, H, W]."""
        size = self.prompt.in_features
        prompt = math.sqrt(size) * prompts_of(samples, size)
        condition = self.meaning(self.prompt(prompt)) + self.class_table(classes)
        condition = condition + self.alpha(guidance_waves(alpha))
        x = self.embed(patchify(samples[:, :, 1:], self.config.patch))
        x = x + positions(x) + condition[:, None, None, None]
        condition = functional.silu(condition)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulate(condition)[:, None, None, None].chunk(2, dim=-1)
        x = normalized(x) * (1 + scale) + shift
        keyframes = unpatchify(self.out(x), self.config.patch, samples.shape[-2:])
        if self.layer is not None:
            keyframes = keyframes + self.layer(x)
        return torch.cat([samples[:, :, :1], keyframes], 2)

    @property
    def outer_layers(self) -> list[str]:
        """The first and the last layers, which Muon leaves to AdamW."""
        heads = ["layer.of_mask", "layer.of_frame", "layer.of_colors"]
        return ["embed", "prompt", "out", *(heads if self.layer is not None else [])]

    def fit_pictures(
        self,
        clips: Tensor,  # [n, C, T, H, W], a few
        decode: Decode,
    ) -> None:
        """Fit what brings moved pictures to latents to what clips decode to.

        Raises:
            ValueError: they do not show all channels, see `Picture.fit`.
        """
        if self.layer is not None:
            self.layer.fit(clips, decode)


class MovedLayer(nn.Module):
    """A mask over a still ground, moved to each keyframe; zero until pictures are fitted."""

    def __init__(
        self,
        channels: int,
        dim: int,  # of tokens
        patch: int,  # cells a side of a token
        detail: int,  # pixels a side of a cell
        moments: int,  # M, of a latent frame
    ) -> None:
        super().__init__()
        self.detail, self.moments, self.side = detail, moments, detail * patch
        shown = COLORS * detail**2
        self.first = nn.Parameter(torch.zeros(channels, shown))  # of a clip's first frame
        self.later = nn.Parameter(torch.zeros(channels, moments * shown))  # of the others
        self.of_mask = nn.Linear(dim, self.side**2)
        self.of_frame = nn.Linear(dim, moments * (AFFINE + 1))  # and opacity
        self.of_colors = nn.Linear(dim, 2 * COLORS)  # of the ground, and of the object less it
        nn.init.zeros_(self.of_frame.weight)
        nn.init.zeros_(self.of_frame.bias)
        nn.init.constant_(self.of_mask.bias, -1.0)

    @torch.no_grad()
    def fit(
        self,
        clips: Tensor,  # [n, C, T, H, W]
        decode: Decode,
    ) -> None:
        """The pseudo-inverses of the linear pictures of first and later frames."""
        picture = Picture(len(self.first), self.detail, self.moments).to(clips.device)
        picture.fit(clips, decode)
        self.first.copy_(torch.linalg.pinv(picture.first))
        self.later.copy_(picture.back)

    def forward(
        self,
        tokens: Tensor,  # [B, K, h, w, D]
    ) -> Tensor:
        """Latents [B, C, K, H, W]."""
        batch, frames = tokens.shape[:2]
        size = [self.side * extent for extent in tokens.shape[2:4]]
        logits = unpatchify(self.of_mask(tokens.mean(1, keepdim=True)), self.side, size)
        mask = logits[:, :, 0].float().sigmoid()  # [B, 1, r H, r W]
        poses = self.of_frame(tokens.mean((2, 3))).float().view(batch, frames * self.moments, -1)
        affine, opacity = poses[..., :AFFINE].unflatten(2, (2, 3)), 1 + poses[..., AFFINE:]
        grid = pixel_centers(size[0], size[1], tokens.device)
        homogeneous = functional.pad(grid, (0, 1), value=1.0)
        places = grid + REACH * torch.einsum("bmac,yxc->bmyxa", affine, homogeneous)
        moved = opacity[..., None, None] * sampled(mask, places)  # [B, K M, 1, r H, r W]
        colors = self.of_colors(tokens.mean((1, 2, 3))).float()[:, None, :, None, None]
        ground, ink = colors.chunk(2, dim=2)
        shown = (ground + moved * ink).unflatten(1, (frames, self.moments))
        parts = (self.first, shown[:, :1, -1:]), (self.later, shown[:, 1:])
        return torch.cat([self._latents(*part) for part in parts], 1).transpose(1, 2)

    def _latents(
        self,
        weight: Tensor,  # [C, m 3 r r]
        pictures: Tensor,  # [B, K, m, 3, r H, r W]
    ) -> Tensor:
        """The latent frames of pictures, [B, K, C, H, W]."""
        cells = functional.pixel_unshuffle(pictures.flatten(2, 3), self.detail)
        return (cells.movedim(2, -1) @ weight.T).movedim(-1, 2)
