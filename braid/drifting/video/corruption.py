"""The forward process of the drifting strand: keep keyframes, interpolate the rest, add noise.

All randomness of a clip is a function of (the generator's seed, the clip's id), see rng.py:
corrupting clips 0 to 63 in one call gives the bytes of two calls of 32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from braid.common.rng import normals, outputs, uniforms
from braid.drifting.config import CorruptionConfig, MazeCorruptionConfig
from braid.drifting.interpolation.interpolation import interpolate
from braid.drifting.interpolation.keyframes import (
    even_ranks,
    frames_at,
    greedy_ranks,
    level_counts,
    masks_of,
    neighbors,
    nested_masks,
    random_ranks,
)

WAVES = 3  # of a bridge, at most
GIVEN_END, GIVEN, REPLACED, MISSING = 1.0, 0.95, 0.5, 0.0  # confidence of a frame


class Corrupted(NamedTuple):
    """Corrupted clips, and what is known of each frame."""

    latents: Tensor  # [B, C, T, H, W]
    mask: Tensor  # [B, T] bool, True: a keyframe that is as it should be
    confidence: Tensor  # [B, T] float32: 1 kept end, .95 keyframe, .5 proposed one, 0


class ForwardProcess(Protocol):
    """What corrupts clips or images, each at its own level, as `Corruption` does."""

    @property
    def levels(self) -> int:
        """The coarsest level."""

    @property
    def __call__(self) -> Callable[..., Corrupted]:
        """Of samples, levels, ids and a generator."""


class Corruption:
    """Keyframes, interpolation and noise for clips of T frames.

    Raises:
        ValueError: too few frames for that many levels or keyframes.
    """

    def __init__(self, frames: int, config: CorruptionConfig | MazeCorruptionConfig) -> None:
        self.frames, self.config = frames, config
        self.counts = level_counts(frames, config)

    @property
    def levels(self) -> int:
        """The coarsest level."""
        return len(self.counts) - 1

    @property
    def coarsest(self) -> Tensor:
        """The evenly placed keyframes of the coarsest level, [K]."""
        return nested_masks(1, self.frames, self.counts)[-1, 0].nonzero().flatten()

    def __call__(
        self,
        latents: Tensor,  # [B, C, T, H, W]
        level: Tensor,  # [B] int64, 0 (all frames are kept) to `levels`
        ids: Tensor,  # [B] int64, whose random numbers each clip gets
        generator: torch.Generator,  # its seed counts, its state is neither read nor moved
        anchors: Tensor | None = None,  # [B, C, T, H, W], phase-1 frames
    ) -> Corrupted:
        """Corrupt clips, each at its own level.

        Raises:
            ValueError: another number of frames, or anchors are missing where they are drawn.
        """
        self._check(latents)
        seed, ids = generator.initial_seed(), ids.to(latents.device)
        mask = self.mask(latents, level.to(latents.device), ids, generator)
        replaced = self._replaced(mask, ids, seed)
        source = latents
        if self.config.student_replace_prob > 0:
            if anchors is None:
                raise ValueError(
                    f"{self.config.section}.student_replace_prob is positive, but there are no "
                    "anchors"
                )
            source = torch.where(replaced[:, None, :, None, None], anchors, latents)
        filled = interpolate(source, mask, self.config)
        noisy = self._noisy_keyframes(mask)
        filled = self._add_noise(filled, mask, ids, seed, noisy)
        # A keyframe with noise or from an anchor is a proposal: it is neither kept nor left out of
        # an error.
        proposed = replaced | noisy
        return Corrupted(filled, mask & ~proposed, _confidence(mask, proposed))

    def mask(
        self,
        latents: Tensor,  # [B, C, T, H, W], read where keyframes are selected
        level: Tensor,  # [B] int64
        ids: Tensor,  # [B] int64
        generator: torch.Generator,
    ) -> Tensor:
        """The keyframes of clips at their levels, [B, T] bool."""
        if self.config.placement == "even":
            ranks = even_ranks(self.frames, self.counts).to(ids.device).expand(len(ids), -1)
        elif self.config.placement == "selected":
            ranks = greedy_ranks(latents, self.counts[1])
        else:
            ranks = random_ranks(
                outputs(generator.initial_seed(), "keyframes", ids, self.frames - 2)
            )
        return masks_of(ranks, self.counts)[level, torch.arange(len(ids), device=ids.device)]

    def finer(
        self,
        latents: Tensor,  # [B, C, T, H, W]
        level: Tensor,  # [B] int64, from 1
        ids: Tensor,  # [B] int64
        generator: torch.Generator,
    ) -> Tensor:
        """Clips as they are one level finer, interpolated and without noise, [B, C, T, H, W]."""
        level, ids = (values.to(latents.device) for values in (level, ids))
        return interpolate(latents, self.mask(latents, level - 1, ids, generator), self.config)

    def impute(
        self,
        latents: Tensor,  # [B, C, T, H, W]; missing frames are not read
        mask: Tensor,  # [B, T] bool, True: given
        ids: Tensor | None = None,  # [B] int64, needed for noise, as is the generator
        generator: torch.Generator | None = None,
    ) -> Corrupted:
        """Fill in what is not given, with the training's noise there; the given stays bit for bit.

        Raises:
            ValueError: another number of frames, a clip of which nothing is given, or noise
                without ids and a generator.
        """
        self._check(latents)
        filled = interpolate(latents, mask, self.config)
        if self.config.noise != "none":
            if ids is None or generator is None:
                raise ValueError(
                    f"{self.config.section}.noise is {self.config.noise}: expected ids and a "
                    "generator"
                )
            seed, ids = generator.initial_seed(), ids.to(latents.device)
            filled = self._add_noise(filled, mask, ids, seed, torch.zeros_like(mask))
        return Corrupted(filled, mask, _confidence(mask, torch.zeros_like(mask)))

    def _check(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[2] != self.frames:
            raise ValueError(
                f"corruption: expected latents [B, C, {self.frames}, H, W], "
                f"got {list(latents.shape)}"
            )

    def _replaced(self, mask: Tensor, ids: Tensor, seed: int) -> Tensor:
        """The interior keyframes whose place an anchor takes, [B, T] bool."""
        replaced = uniforms(seed, "anchors", ids, self.frames) < self.config.student_replace_prob
        replaced[:, [0, -1]] = False
        return replaced & mask

    def _noisy_keyframes(self, mask: Tensor) -> Tensor:
        """The interior keyframes that get noise, [B, T] bool: all or none."""
        amplitude = self.config.sigma * self.config.keyframe_noise
        noisy = mask & (self.config.noise in ("gauss", "dist") and amplitude > 0)
        noisy[:, [0, -1]] = False
        return noisy

    def _add_noise(
        self, clips: Tensor, mask: Tensor, ids: Tensor, seed: int, noisy: Tensor
    ) -> Tensor:
        """Noise of each frame's own amplitude; frames of amplitude 0 keep their bits."""
        if self.config.noise == "none":
            return clips
        on_keyframes = self.config.keyframe_noise * noisy
        fraction = torch.where(mask, on_keyframes, self._noise_fraction(mask))
        white = normals(seed, "noise", ids, clips[0].numel()).view_as(clips)
        if self.config.noise == "bridge":
            return clips + self.config.sigma * bridge(white, mask)
        scale = (self.config.sigma * fraction)[:, None, :, None, None]
        return torch.where(scale > 0, clips + scale * white, clips)

    def _noise_fraction(self, mask: Tensor) -> Tensor:
        """The fraction of sigma that a missing frame gets, [B, T]."""
        if self.config.noise == "gauss":
            return torch.ones(mask.shape, device=mask.device)
        around = neighbors(mask)
        nearest = torch.minimum(around.fraction, 1 - around.fraction)
        return torch.where(around.gap > 0, 2 * nearest, 1)  # 1 beyond the outermost keyframes


def as_proposals(start: Corrupted) -> Corrupted:
    """The same with all keyframes but the ends as proposals, which a refiner may move."""
    ends = start.mask.clone()
    ends[:, 1:-1] = False
    confidence = torch.where(start.mask & ~ends, REPLACED, start.confidence)
    return Corrupted(start.latents, ends, confidence)


def bridge(
    white: Tensor,  # [B, C, T, H, W] normal numbers
    mask: Tensor,  # [B, T] bool, True: keyframe
) -> Tensor:
    """Smooth random bends between keyframes, which are 0 there, [B, C, T, H, W].

    The first WAVES terms of the Brownian bridge over each gap (Karhunen and Loeve), as many as it
    has missing frames at most: its variance over a gap of all T frames is nearly
    fraction (1 - fraction), over a shorter one less.
    """
    around, frames = neighbors(mask), mask.shape[1]
    bends = torch.zeros_like(white)
    for wave in range(1, WAVES + 1):
        height = frames_at(white, (around.left + wave).clamp(max=frames - 1))
        shape = (wave * math.pi * around.fraction).sin() * (around.gap / frames).sqrt()
        shape = shape * (wave < around.gap)  # what lies beyond is the next gap's
        scale = (math.sqrt(2) / (wave * math.pi) * shape)[:, None, :, None, None]
        bends = bends + scale.to(white) * height
    return bends


def _confidence(
    mask: Tensor,  # [B, T] bool
    replaced: Tensor,  # [B, T] bool
) -> Tensor:
    """How far a frame can be trusted, [B, T] float32."""
    confidence = torch.where(mask, GIVEN, MISSING)
    confidence[:, [0, -1]] = torch.where(mask[:, [0, -1]], GIVEN_END, MISSING)
    return torch.where(replaced, REPLACED, confidence)
