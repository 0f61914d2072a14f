"""Video to latents and back: the built-in transform, or the Wan VAE.

The built-in clips are encoded and decoded by a fixed orthonormal transform. Latents of the Wan 2.1
VAE (arXiv 2503.20314) need its weights: diffusers' AutoencoderKLWan takes them denormalized,
z * std + mean, and gives frames in [-1, 1]. Without it there is a preview: the three principal
components of example latents as colors. Every decoder has a name, so that a figure can say which
one was used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct
from torch import Tensor
from torch.nn.functional import conv3d

from braid.common.torchvision import mend_torchvision

TRANSFORM = "space_time_transform"  # the codec of built-in clips
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
    if codec == TRANSFORM:
        return Decoder("space-time transform", decode)
    if codec != WAN:
        raise ValueError(f"codec is {codec!r}, expected {TRANSFORM} or {WAN}")
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
    rest = frames[:, :, 1:].repeat_interleave(TIME_STRIDE, dim=2)
    return torch.cat([frames[:, :, :1], rest], dim=2)


def _wan(folder: Path) -> Callable[[Tensor], Tensor]:
    vae = load_wan(folder)
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (WAN_MEAN, WAN_STD))

    def video(latents: Tensor) -> Tensor:
        raw = latents * std.to(latents) + mean.to(latents)
        clips = [vae.to(raw.device).decode(clip).sample for clip in raw.split(1)]  # memory
        return torch.cat(clips) / 2 + 0.5

    return video


def load_wan(folder: Path) -> Any:
    """The AutoencoderKLWan of a folder, frozen.

    Raises:
        ValueError: diffusers is not installed, or the folder holds no such model.
    """
    """An AutoencoderKLWan.

    Raises:
        ValueError: diffusers is not installed, or the folder holds no such model.
    """
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


# ---- A fixed orthonormal transform with the Wan VAE's geometry -----------------------------------
# The Wan VAE makes 16 channels of every 4 frames of 8 x 8 pixels, but of the first frame alone, so
# that 4 (T - 1) + 1 frames become T latent frames. So does this transform, with rows of a discrete
# cosine transform over color, time, height and width in place of a network. The rows of a block are
# orthonormal, hence decoding is the transpose, and encoding a decoded clip gives its latents back.
#
# The first frame counts as four, which makes a still picture's latents alike in all frames; four of
# its channels hold finer detail where the others hold change over time. Latents are
# (z - mean) / std, by channel, as Wan's are.

TIME_STRIDE, SPACE_STRIDE = 4, 8
# The frequency of each channel in (color, time, height, width): the most energetic ones of the
# built-in clips. Colors are, by frequency: lightness, red - blue, green against both.
ROWS = (
    (0, 0, 0, 0),
    (1, 0, 0, 0),
    (2, 0, 0, 0),
    (0, 0, 0, 1),
    (0, 0, 1, 0),
    (0, 0, 1, 1),
    (0, 0, 0, 2),
    (0, 0, 2, 0),
    (1, 0, 0, 1),
    (1, 0, 1, 0),
    (2, 0, 0, 1),
    (2, 0, 1, 0),
    (0, 1, 0, 0),
    (0, 1, 0, 1),
    (0, 1, 1, 0),
    (1, 1, 0, 0),
)
DETAIL_ROWS = ((0, 0, 1, 2), (0, 0, 2, 1), (1, 0, 0, 2), (1, 0, 1, 1))  # first frame's last four
CHANNELS = len(ROWS)
_FIRST_WEIGHT = TIME_STRIDE**0.5  # one frame for four
# Over the built-in clips at seed 0.
MEAN = (5.69, -0.922, 0.514, *[0.0] * 13)
STD = (
    *(3.63, 1.87, 1.21, 0.897, 0.792, 0.431, 0.400, 0.352),
    *(0.473, 0.413, 0.294, 0.259, 0.443, 0.306, 0.278, 0.248),
)


def encode(
    video: Tensor,  # [B, 3, F, h, w] in [0, 1], F = 4 (T - 1) + 1
) -> Tensor:
    """Normalized latents, [B, 16, T, h / 8, w / 8].

    Raises:
        ValueError: a size that does not divide into blocks.
    """
    frames, height, width = video.shape[2:]
    if frames == 1 or (frames - 1) % TIME_STRIDE or height % SPACE_STRIDE or width % SPACE_STRIDE:
        raise ValueError(
            f"video is {frames} frames of {height}x{width}, expected 4 n + 1 frames, n > 0, "
            f"of sides divisible by {SPACE_STRIDE}"
        )
    first, rest = (rows.to(video) for rows in _BLOCKS)
    raw = torch.cat(
        [
            _FIRST_WEIGHT * conv3d(video[:, :, :1], first, stride=first.shape[2:]),
            conv3d(video[:, :, 1:], rest, stride=rest.shape[2:]),
        ],
        dim=2,
    )
    return (raw - _per_channel(MEAN, raw)) / _per_channel(STD, raw)


def decode(
    latents: Tensor,  # [B, 16, T, H, W]
) -> Tensor:
    """The video with these latents and no other component, [B, 3, 4 (T - 1) + 1, 8 H, 8 W]."""
    raw = latents * _per_channel(STD, latents) + _per_channel(MEAN, latents)
    first, rest = (rows.to(latents) for rows in _BLOCKS)
    parts = _spread(raw[:, :, :1] / _FIRST_WEIGHT, first), _spread(raw[:, :, 1:], rest)
    return torch.cat(parts, dim=2)


def _spread(raw: Tensor, rows: Tensor) -> Tensor:
    """Blocks of pixels from channels, [B, 3, t T, 8 H, 8 W]: a strided transposed convolution.

    As one product of matrices it takes a third of `conv_transpose3d`'s time, for the same bits.
    """
    cells = raw.movedim(1, -1)  # [B, T, H, W, 16]
    blocks = (cells @ rows.flatten(1)).unflatten(-1, rows.shape[1:])  # [..., 3, t, 8, 8]
    return blocks.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _blocks() -> tuple[Tensor, Tensor]:
    """The orthonormal rows of a first frame [16, 3, 1, 8, 8] and of others [16, 3, 4, 8, 8]."""
    first_rows = [*ROWS[: -len(DETAIL_ROWS)], *DETAIL_ROWS]
    return _products(first_rows, 1), _products(ROWS, TIME_STRIDE)


def _products(rows: Sequence[tuple[int, ...]], frames: int) -> Tensor:
    waves = [_cosines(n) for n in (3, frames, SPACE_STRIDE, SPACE_STRIDE)]
    products = [
        np.einsum("c,t,h,w->cthw", *(wave[k] for wave, k in zip(waves, row, strict=True)))
        for row in rows
    ]
    return torch.from_numpy(np.stack(products)).float()


def _cosines(size: int) -> NDArray[np.float64]:
    """The orthonormal DCT-II: row k is the wave of frequency k, [size, size]."""
    return dct(np.eye(size), axis=0, norm="ortho")


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1, 1)


_BLOCKS = _blocks()
