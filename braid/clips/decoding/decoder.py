"""Frames from latents, by whatever decoder the latents and the machine allow.

The built-in clips are decoded by their own transform. Latents of the Wan 2.1 VAE (arXiv 2503.20314)
need its weights: diffusers' AutoencoderKLWan takes them denormalized, z * std + mean, and gives
frames in [-1, 1]. Without it there is a preview: the three principal components of example latents
as colors. Every decoder has a name, so that a figure can say which one was used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.clips.decoding import transform
from braid.common.torchvision import mend_torchvision

WAN = "wan"  # the codec of real clips
# Of the Wan 2.1 VAE's 16 channels, from its configuration.
WAN_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
WAN_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
_EXAMPLES = 256  # clips that a preview's colors are fitted to
_CONTRAST = 2.0  # standard deviations of a principal component on either side of gray


@dataclass(frozen=True)
class Decoder:
    """Latents [B, 16, T, H, W] to frames [B, 4 (T - 1) + 1, h, w, 3] in [0, 1]."""

    name: str
    _video: Callable[[Tensor], Tensor]  # to [B, 3, F, h, w]

    @torch.no_grad()
    def __call__(
        self,
        latents: Tensor,  # [B, 16, T, H, W]
    ) -> Tensor:
        """The frames."""
        return self._video(latents).clamp(0, 1).permute(0, 2, 3, 4, 1)


def decoder(
    codec: str,
    examples: Tensor,  # [N, 16, T, H, W] that a preview's colors are fitted to
    wan_vae: Path | None = None,
) -> Decoder:
    """The decoder of latents of a ``codec``, as `Clips.codec` names it.

    Args:
        codec: ``space_time_transform`` or ``wan``.
        examples: latents of the data set.
        wan_vae: folder of an AutoencoderKLWan, for latents of the Wan VAE; without it they get
            the preview, at h = H and w = W.

    Raises:
        ValueError: another codec; diffusers is not installed, or the folder holds no such model.
    """
    if codec == transform.NAME:
        return Decoder("space-time transform", transform.decode)
    if codec != WAN:
        raise ValueError(f"codec is {codec!r}, expected {transform.NAME} or {WAN}")
    if wan_vae is None:
        return Decoder("linear preview, not the VAE", _preview(examples))
    return Decoder("Wan VAE", _wan(wan_vae))


class Clips(Protocol):
    """A data set of clips."""

    @property
    def codec(self) -> str:
        """What encoded them."""

    def indices(self, split: str) -> NDArray[np.int64]:
        """The clips of a split."""

    def latents(self, indices: NDArray[np.int64]) -> Tensor:
        """Their latents, [B, C, T, H, W]."""


def decoder_of(clips: Clips, wan_vae: Path | None) -> Decoder:
    """The decoder of a data set's clips."""
    return decoder(clips.codec, clips.latents(clips.indices("train")[:_EXAMPLES]), wan_vae)


def _preview(
    examples: Tensor,  # [N, C, T, H, W]
) -> Callable[[Tensor], Tensor]:
    """The first three principal components of latent cells as red, green and blue."""
    cells = examples.movedim(1, -1).flatten(0, -2).double().cpu()
    mean = cells.mean(0)
    variance, axes = torch.linalg.eigh(torch.cov(cells.T))
    axes, deviation = axes[:, -3:].flip(1), variance[-3:].flip(0).clamp_min(1e-12).sqrt()
    axes = axes * axes.sum(0).sign()  # eigenvectors come with either sign
    rows = (axes / (2 * _CONTRAST * deviation)).T.to(examples)  # [3, C]
    offset = 0.5 - rows @ mean.to(examples)

    def video(latents: Tensor) -> Tensor:
        colors = torch.einsum("pc,bcthw->bpthw", rows.to(latents), latents)
        colors = colors + offset.to(latents).view(-1, 1, 1, 1)
        return _repeated(colors)

    return video


def _repeated(
    frames: Tensor,  # [B, C, T, H, W]
) -> Tensor:
    """The first frame once and each of the others four times, [B, C, 4 (T - 1) + 1, H, W]."""
    rest = frames[:, :, 1:].repeat_interleave(transform.TIME_STRIDE, dim=2)
    return torch.cat([frames[:, :, :1], rest], dim=2)


def _wan(folder: Path) -> Callable[[Tensor], Tensor]:
    vae = _load_wan(folder)
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (WAN_MEAN, WAN_STD))

    def video(latents: Tensor) -> Tensor:
        raw = latents * std.to(latents) + mean.to(latents)
        clips = [vae.to(raw.device).decode(clip).sample for clip in raw.split(1)]  # memory
        return torch.cat(clips) / 2 + 0.5

    return video


def _load_wan(folder: Path) -> Any:
    if not folder.is_dir():
        raise ValueError(f"clips.wan_vae: {folder}: no such folder")
    mend_torchvision()  # which diffusers imports
    try:
        from diffusers import AutoencoderKLWan
    except ImportError:
        raise ValueError(
            "clips.wan_vae needs diffusers: pip install -e '.[wan]'; or none for a preview"
        ) from None
    options = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
    try:
        vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"clips.wan_vae: {folder}: no AutoencoderKLWan ({error})") from None
    return vae.eval().requires_grad_(False)
