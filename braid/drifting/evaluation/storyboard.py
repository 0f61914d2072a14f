"""From a storyboard, a few given latent frames and a prompt, to the start of a full clip.

A storyboard file is a `.safetensors` with `latents` [C, T, H, W], of which only the given frames
are read, and `embedding` [L, D], the prompt's text embedding with zero rows as padding. Without
an embedding the class is that of the keyframes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from braid.drifting.config import StoryboardConfig
from braid.drifting.video.corruption import Corrupted, Corruption


class Clips(Protocol):
    """A data set of clips, frames of which may serve as a storyboard."""

    def indices(self, split: str) -> NDArray[np.int64]:
        """The clips of a split."""

    def latents(self, indices: NDArray[np.int64]) -> Tensor:
        """Their latents, [B, C, T, H, W]."""

    def texts(self, indices: NDArray[np.int64]) -> Tensor:
        """Their text embeddings, [B, L, D]."""


def open_storyboard(config: StoryboardConfig, clips: Clips) -> tuple[Tensor, Tensor | None]:
    """Latents [1, C, T, H, W] and text [1, L, D] of a file, or of one of the held-out clips.

    A file may have no text.

    Raises:
        ValueError: the file cannot be read, or there is no such held-out clip.
    """
    if config.source.endswith(".safetensors"):
        return load_storyboard(Path(config.source))
    return held_out_clip(clips, config.clip)


def held_out_clip(clips: Clips, number: int) -> tuple[Tensor, Tensor]:
    """Latents [1, C, T, H, W] and text [1, L, D] of a held-out clip.

    Raises:
        ValueError: there is no such clip.
    """
    held_out = clips.indices("test")
    if not 0 <= number < len(held_out):
        raise ValueError(f"held-out clips: clip is {number}, expected below {len(held_out)}")
    chosen = held_out[number : number + 1]
    return clips.latents(chosen), clips.texts(chosen)


def load_storyboard(path: Path) -> tuple[Tensor, Tensor | None]:
    """Latents [1, C, T, H, W] and, where there is one, text embedding [1, L, D] of a file.

    Raises:
        ValueError: the file is missing or broken, or a tensor is missing or of another shape.
    """
    try:
        stored = load(path.read_bytes())
        latents = stored["latents"].float()
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path}: expected safetensors with latents ({error})") from None
    if latents.ndim != 4:
        raise ValueError(f"{path}: expected latents [C, T, H, W], got {list(latents.shape)}")
    if "embedding" not in stored:
        return latents[None], None
    embedding = stored["embedding"].float()
    if embedding.ndim != 2:
        raise ValueError(f"{path}: expected embedding [L, D], got {list(embedding.shape)}")
    return latents[None], embedding[None]


def given_frames(keyframes: Sequence[int], frames: int) -> Tensor:
    """The mask [1, T] of a storyboard's keyframes.

    Raises:
        ValueError: fewer than two keyframes, or one that the clip does not have.
    """
    if len(set(keyframes)) < 2 or not all(0 <= frame < frames for frame in keyframes):
        raise ValueError(
            f"keyframes are {list(keyframes)}, expected two or more of 0 to {frames - 1}"
        )
    mask = torch.zeros(1, frames, dtype=torch.bool)
    mask[0, list(keyframes)] = True
    return mask


def impute_given(
    latents: Tensor,  # [1, C, T, H, W]
    mask: Tensor,  # [1, T]
    corruption: Corruption,
    generator: torch.Generator,
) -> Corrupted:
    """The refiner's start; frames that are not given are not read.

    Raises:
        ValueError: a given frame is not finite, or the clip has another number of frames.
    """
    if not latents.movedim(2, 1)[mask].isfinite().all():
        raise ValueError("a given latent frame holds NaN or infinite values")
    return corruption.impute(latents, mask, torch.zeros(1, dtype=torch.long), generator)


def level_of(keyframes: int, counts: Sequence[int]) -> int:
    """The training level whose number of keyframes is nearest; the coarser of two."""
    levels = range(1, len(counts))
    return min(levels, key=lambda level: (abs(counts[level] - keyframes), -level))
