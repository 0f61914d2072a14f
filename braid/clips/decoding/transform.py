"""Video to latents and back by a fixed orthonormal transform with the Wan VAE's geometry.

The Wan 2.1 VAE (Wan et al. 2025, arXiv 2503.20314) makes 16 channels of every 4 frames of 8 x 8
pixels, but of the first frame alone, so that 4 (T - 1) + 1 frames become T latent frames. So does
this transform, with rows of a discrete cosine transform over color, time, height and width in
place of a network. The rows of a block are orthonormal, hence decoding is the transpose, and
encoding a decoded clip gives its latents back.

The first frame counts as four, which makes a still picture's latents alike in all frames; four of
its channels hold finer detail where the others hold change over time. Latents are (z - mean) /
std, by channel, as Wan's are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct
from torch import Tensor
from torch.nn.functional import conv3d

NAME = "space_time_transform"
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
