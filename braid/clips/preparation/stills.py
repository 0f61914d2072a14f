"""Keyframes from pictures: the built-in clips' latents of a picture that stands still."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from braid.clips.decoding.transform import NAME, SPACE_STRIDE, TIME_STRIDE, encode


def still_latents(
    pictures: Sequence[Path],
    frames: Sequence[int],  # latent frame of each picture
    codec: str,  # of the clips that the latents are to be like
    shape: tuple[int, int, int, int],  # of those clips, C, T, H, W
) -> Tensor:  # [1, C, T, H, W]
    """Latents with the pictures at their frames; what the other frames hold means nothing.

    A picture is cropped to the clips' sides around its center, and stands still for all video
    frames of its latent frame.

    Raises:
        ValueError: not a frame for each picture, a file is no picture, or the clips' latents are
            not the built-in ones, which alone can be made here.
    """
    if codec != NAME:
        raise ValueError(f"pictures: latents of the codec {codec} cannot be made here; give a file")
    _, count, height, width = shape
    if len(frames) != len(pictures) or not all(0 <= frame < count for frame in frames):
        raise ValueError(
            f"{len(pictures)} pictures at frames {list(frames)}, "
            f"expected a frame of 0 to {count - 1} for each"
        )
    size = (width * SPACE_STRIDE, height * SPACE_STRIDE)
    video = torch.zeros(1, 3, TIME_STRIDE * (count - 1) + 1, size[1], size[0])
    for path, frame in zip(pictures, frames, strict=True):
        first = max(0, TIME_STRIDE * (frame - 1) + 1)
        video[0, :, first : TIME_STRIDE * frame + 1] = _read(path, size)[:, None]
    return encode(video)


def _read(path: Path, size: tuple[int, int]) -> Tensor:
    """Colors in [0, 1], [3, h, w]."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable picture ({error})") from None
    fitted = ImageOps.fit(upright, size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(fitted).copy()).movedim(-1, 0) / 255
