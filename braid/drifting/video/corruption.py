"""The forward process of the drifting strand: keep keyframes, interpolate the rest, add noise.

All randomness of a clip is a function of (the generator's seed, the clip's id), see streams.py:
corrupting clips 0 to 63 in one call gives the bytes of two calls of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from braid.common.rng import normals, outputs, uniforms
from braid.drifting.interpolation.interpolation import METHODS, interpolate
from braid.drifting.interpolation.keyframes import (
    even_ranks,
    level_counts,
    masks_of,
    neighbours,
    nested_masks,
    random_ranks,
)

GIVEN_END, GIVEN, REPLACED, MISSING = 1.0, 0.95, 0.5, 0.0  # confidence of a frame


class Corrupted(NamedTuple):
    """Corrupted clips, and what is known of each frame."""

    latents: Tensor  # [B, C, T, H, W]
    mask: Tensor  # [B, T] bool, True: keyframe
    confidence: Tensor  # [B, T] float32: 1 kept end, .95 keyframe, .5 replaced by an anchor, 0


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
        ValueError: no such schedule, placement, interpolator or noise, or too few frames.
    """

    def __init__(
        self,
        frames: int,
        *,
        levels: int = 2,  # beside level 0, which keeps every frame
        min_keyframes: int = 3,  # at the coarsest level
        schedule: str = "doubling",
        placement: str = "even",  # or random, of each clip's own
        interpolator: str = "linear",
        sigma_feature: float = 1.0,  # harmonic
        sigma_space: float = 0.5,  # harmonic
        lambda_reg: float = 1e-3,  # harmonic
        sinkhorn_temperature: float = 0.05,
        sinkhorn_reach: float = 2.0,  # cells
        dustbin: float = -2.0,  # sinkhorn
        noise: str = "none",  # gauss: on missing frames alike; dist: growing with the distance
        sigma: float = 0.02,  # of the noise, latent units
        keyframe_noise: float = 0.25,  # of sigma, on keyframes
        student_replace_prob: float = 0.0,  # interior keyframes replaced by phase-1 anchors
    ) -> None:
        for key, value, known in (
            ("placement", placement, ("even", "random")),
            ("interpolator", interpolator, tuple(METHODS)),
            ("noise", noise, ("none", "gauss", "dist")),
        ):
            if value not in known:
                expected = ", ".join(known)
                raise ValueError(f"corruption.{key} is {value!r}, expected one of {expected}")
        self.counts = level_counts(frames, min_keyframes, levels, schedule)
        self.frames, self.placement = frames, placement
        self.interpolator = interpolator
        self.settings = {
            "harmonic": {
                "sigma_feature": sigma_feature,
                "sigma_space": sigma_space,
                "lambda_reg": lambda_reg,
            },
            "sinkhorn": {
                "temperature": sinkhorn_temperature,
                "dustbin": dustbin,
                "reach": sinkhorn_reach,
            },
        }.get(interpolator, {})
        self.noise, self.sigma, self.keyframe_noise = noise, sigma, keyframe_noise
        self.student_replace_prob = student_replace_prob

    @property
    def levels(self) -> int:
        """The coarsest level."""
        return len(self.counts) - 1

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
        mask = self.mask(level.to(latents.device), ids, generator)
        replaced = self._replaced(mask, ids, seed)
        source = latents
        if self.student_replace_prob > 0:
            if anchors is None:
                raise ValueError(
                    "corruption.student_replace_prob is positive, but the clips have no anchors"
                )
            source = torch.where(replaced[:, None, :, None, None], anchors, latents)
        filled = interpolate(source, mask, self.interpolator, **self.settings)
        noisy = self._add_noise(filled, mask, ids, seed, self.keyframe_noise)
        return Corrupted(noisy, mask, _confidence(mask, replaced))

    def mask(
        self,
        level: Tensor,  # [B] int64
        ids: Tensor,  # [B] int64
        generator: torch.Generator,
    ) -> Tensor:
        """The keyframes of clips at their levels, [B, T] bool."""
        if self.placement == "even":
            ranks = even_ranks(self.frames, self.counts).to(ids.device).expand(len(ids), -1)
        else:
            ranks = random_ranks(
                outputs(generator.initial_seed(), "keyframes", ids, self.frames - 2)
            )
        return masks_of(ranks, self.counts)[level, torch.arange(len(ids), device=ids.device)]

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
        filled = interpolate(latents, mask, self.interpolator, **self.settings)
        if self.noise != "none":
            if ids is None or generator is None:
                raise ValueError(
                    f"corruption.noise is {self.noise}: expected ids and a generator to draw it"
                )
            seed, ids = generator.initial_seed(), ids.to(latents.device)
            filled = self._add_noise(filled, mask, ids, seed, keyframe_noise=0.0)
        return Corrupted(filled, mask, _confidence(mask, torch.zeros_like(mask)))

    def _check(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[2] != self.frames:
            raise ValueError(
                f"corruption: expected latents [B, C, {self.frames}, H, W], "
                f"got {list(latents.shape)}"
            )

    def _replaced(self, mask: Tensor, ids: Tensor, seed: int) -> Tensor:
        """The interior keyframes whose place an anchor takes, [B, T] bool."""
        replaced = uniforms(seed, "anchors", ids, self.frames) < self.student_replace_prob
        replaced[:, [0, -1]] = False
        return replaced & mask

    def _add_noise(
        self, clips: Tensor, mask: Tensor, ids: Tensor, seed: int, keyframe_noise: float
    ) -> Tensor:
        """Noise of each frame's own amplitude; frames of amplitude 0 keep their bits."""
        if self.noise == "none":
            return clips
        share = torch.where(mask, keyframe_noise, self._share(mask))
        white = normals(seed, "noise", ids, clips[0].numel()).view_as(clips)
        scale = (self.sigma * share)[:, None, :, None, None]
        return torch.where(scale > 0, clips + scale * white, clips)

    def _share(self, mask: Tensor) -> Tensor:
        """The share of sigma that a missing frame gets, [B, T]."""
        if self.noise == "gauss":
            return torch.ones(mask.shape, device=mask.device)
        around = neighbours(mask)
        nearest = torch.minimum(around.fraction, 1 - around.fraction)
        return torch.where(around.gap > 0, 2 * nearest, 1)  # 1 beyond the outermost keyframes


def _confidence(
    mask: Tensor,  # [B, T] bool
    replaced: Tensor,  # [B, T] bool
) -> Tensor:
    """How far a frame can be trusted, [B, T] float32."""
    confidence = torch.where(mask, GIVEN, MISSING)
    confidence[:, [0, -1]] = torch.where(mask[:, [0, -1]], GIVEN_END, MISSING)
    return torch.where(replaced, REPLACED, confidence)


def interpolation_errors(
    latents: Tensor,  # [B, C, T, H, W]
    counts: Sequence[int],  # keyframes at each level, of `level_counts`
    method: str,
    settings: Mapping[str, float],
) -> list[dict[str, float | str]]:
    """Mean squared errors of an interpolator at evenly placed keyframes, a row for each level.

    A row has level (from 1: at level 0 nothing is missing), keyframes, interpolator, mse_missing
    over the missing frames and mse_all over all.
    """
    rows: list[dict[str, float | str]] = []
    for level, mask in enumerate(nested_masks(len(latents), latents.shape[2], counts, None)):
        if level == 0:
            continue
        mask = mask.to(latents.device)
        error = (interpolate(latents, mask, method, **settings) - latents).square().mean((1, 3, 4))
        rows.append(
            {
                "level": level,
                "keyframes": counts[level],
                "interpolator": method,
                "mse_missing": float(error[~mask].mean()),
                "mse_all": float(error.mean()),
            }
        )
    return rows
