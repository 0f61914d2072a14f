"""phi: what the drift of a clip is computed in, groups of vectors from a frozen latent MAE.

For every map of the encoder the families of Deng et al. 2026 (arXiv 2602.04770, A.5) carried from
images to clips, the ones beside `location`, `clip` and `patch` being what time adds:

    family    groups                     vectors of a map [D, T, H, W]
    location  location                   the map at T H W places, or as many as `locations`
    clip      clip_mean, clip_std        1: over time and space
    frame     frame_mean, frame_std      T: over space
    patch2    patch2_mean, patch2_std    T H/2 W/2: over windows of 2x2 in a frame
    patch4    patch4_mean, patch4_std    T H/4 W/4: over windows of 4x4
    motion    motion_mean, motion_std    T - 1: over space, of the step from frame to frame
    rms       rms                        1 for the clip itself, not for maps

A group is called `<map>/<group>`; its vectors share the scales of the loss. Windows stay within a
frame because refinement changes some frames and not others, and what all frames are averaged over
hides that. Motion is not averaged over time either: the mean step would be the last frame less the
first. What a small map would only repeat is left out (a window no smaller than the frame, a frame
that is all of the clip); of more than `locations` vectors in a group that many are kept, spread
evenly. Statistics are in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from braid.drifting.video.refiner import patchify

EPSILON = 1e-6  # below every square root
FAMILIES = ("location", "clip", "frame", "patch2", "patch4", "motion", "rms")
GOLDEN = (math.sqrt(5) - 1) / 2

Groups = Iterator[tuple[str, Tensor]]  # name, [B, L, D]


class Encoder(Protocol):
    """What ClipFeatures needs of a network: a module with maps."""

    def encode(self, clips: Tensor) -> dict[str, Tensor]:
        """Maps [B, D, T', H', W'] by name, of clips [B, C, T, H, W]."""

    def freeze(self) -> Self:
        """This network with weights that take no gradient."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""


class ClipFeatures(nn.Module):
    """Clips to groups of vectors; gradients pass through to the clips, the MAE stays as it is."""

    def __init__(
        self,
        mae: Encoder,  # a latent MAE, or another network
        families: Sequence[str] = FAMILIES,
        locations: int = 64,  # at most, a group
    ) -> None:
        """Freezes the MAE.

        Raises:
            ValueError: no or an unknown family, or no location.
        """
        super().__init__()
        if not families or not set(families) <= set(FAMILIES):
            expected = ", ".join(FAMILIES)
            raise ValueError(f"features are {list(families)}, expected some of {expected}")
        if locations < 1:
            raise ValueError(f"locations is {locations}, expected 1 or more")
        self.mae, self.locations = mae.freeze(), locations
        self.families = [family for family in FAMILIES if family in families]

    def forward(
        self,
        clips: Tensor,  # [B, C, T, H, W]
    ) -> dict[str, Tensor]:
        """Groups [B, L, D] by name."""
        groups = {}
        if "rms" in self.families:
            mean_square = clips.float().square().mean(dim=(2, 3, 4))
            groups["input/rms"] = (mean_square + EPSILON).sqrt()[:, None]
        of_maps = [_OF_MAP[name] for name in self.families if name in _OF_MAP]
        for layer, values in self.mae.encode(clips).items() if of_maps else ():
            shared = _Map(values.float())
            for family in of_maps:
                for name, vectors in family(shared):
                    groups[f"{layer}/{name}"] = spread(vectors, self.locations)
        return groups

    @torch.no_grad()
    def sizes(
        self,
        shape: tuple[int, int, int, int],  # C, T, H, W of a clip
    ) -> dict[str, tuple[int, int]]:
        """Vectors L and their floats D in each group; a clip has the sum of L * D floats."""
        device = next(self.mae.parameters()).device
        groups = self(torch.zeros(1, *shape, device=device))
        return {name: (vectors.shape[1], vectors.shape[2]) for name, vectors in groups.items()}


def spread(
    vectors: Tensor,  # [B, N, D], in order of time, row, column
    count: int,
) -> Tensor:
    """At most `count` of the vectors, the same ones each time, [B, min(N, count), D].

    Multiples of a stride near the golden section of N, modulo N: evenly spread over the whole
    order, and since the stride has no divisor in common with N, over rows and columns as well.
    """
    total = vectors.shape[1]
    if total <= count:
        return vectors
    stride = round(GOLDEN * total)
    while math.gcd(stride, total) != 1:
        stride += 1
    chosen = (torch.arange(count, device=vectors.device) * stride) % total
    return vectors[:, chosen.sort().values]


class _Map:
    """A map of the encoder and the moments that several families share."""

    def __init__(self, values: Tensor) -> None:
        self.values = values  # [B, D, T, H, W]
        self.many_frames = values.shape[2] > 1
        self.many_places = values[0, 0, 0].numel() > 1

    @cached_property
    def frames(self) -> tuple[Tensor, Tensor]:
        """Mean and mean square of each frame, [B, D, T]."""
        return _moments(self.values)


def _location(layer: _Map) -> Groups:
    yield "location", _vectors(layer.values)


def _clip(layer: _Map) -> Groups:
    if layer.many_frames or layer.many_places:
        mean, square = (moment.mean(dim=2, keepdim=True) for moment in layer.frames)
        yield "clip_mean", _vectors(mean)
        yield "clip_std", _vectors(_std(mean, square))


def _frame(layer: _Map) -> Groups:
    if layer.many_frames and layer.many_places:
        mean, square = layer.frames
        yield "frame_mean", _vectors(mean)
        yield "frame_std", _vectors(_std(mean, square))


def _patch(layer: _Map, side: int) -> Groups:
    if max(layer.values.shape[3:]) <= side:
        return
    frames = layer.values.transpose(1, 2)
    mean, square = (
        F.avg_pool2d(power.flatten(0, 1), side, ceil_mode=True)
        for power in (frames, frames.square())
    )
    for name, pooled in (("mean", mean), ("std", _std(mean, square))):
        yield f"patch{side}_{name}", _vectors(pooled.unflatten(0, frames.shape[:2]).transpose(1, 2))


def _motion(layer: _Map) -> Groups:
    if layer.many_frames:
        mean, square = _moments(layer.values.diff(dim=2))
        yield "motion_mean", _vectors(mean)
        if layer.many_places:
            yield "motion_std", _vectors(_std(mean, square))


_OF_MAP: dict[str, Callable[[_Map], Groups]] = {
    "location": _location,
    "clip": _clip,
    "frame": _frame,
    "patch2": lambda layer: _patch(layer, 2),
    "patch4": lambda layer: _patch(layer, 4),
    "motion": _motion,
}


def _moments(
    values: Tensor,  # [B, D, T, H, W]
) -> tuple[Tensor, Tensor]:
    """Mean and mean square over space, [B, D, T]."""
    return values.mean(dim=(3, 4)), values.square().mean(dim=(3, 4))


def _std(mean: Tensor, square: Tensor) -> Tensor:
    """Standard deviation from a mean and a mean square, at least 1e-3."""
    return ((square - mean.square()).clamp_min(0) + EPSILON).sqrt()


def _vectors(
    values: Tensor,  # [B, D, ...]
) -> Tensor:
    """One vector for each place, [B, N, D]."""
    return values.flatten(2).transpose(1, 2)


# ---- Features without an encoder: the latents themselves (the vanilla branch) -------------------
# tokens  2 x 2 patches of each frame                              T h w vectors of 4 C
# pairs   the patches of one place in two frames that follow each other: what the tokens' single
#         distributions leave out is how a patch moves on             (T - 1) h w vectors of 8 C
# columns the patches of one place in all frames: given frames are part of the vector, so that a
#         clip's neighbors are those that agree with its keyframes there     h w vectors of 4 C T
# clip    the flattened clip, the release's key `global`           one vector of C T H W

TOKEN = 2  # latent pixels a side


def vanilla(families: Sequence[str]) -> Callable[[Tensor], dict[str, Tensor]]:
    """Clips [B, C, T, H, W] to one group [B, L, D] for each family.

    Raises:
        ValueError: no or an unknown family.
    """
    if not families or not set(families) <= set(_FAMILIES):
        raise ValueError(f"vanilla is {list(families)}, expected some of {', '.join(_FAMILIES)}")

    def features(clips: Tensor) -> dict[str, Tensor]:
        return {name: _FAMILIES[name](clips) for name in families}

    return features


def _tokens(clips: Tensor) -> Tensor:
    return _patches(clips).flatten(1, 2)


def _pairs(clips: Tensor) -> Tensor:
    patches = _patches(clips)
    return torch.cat([patches[:, :-1], patches[:, 1:]], dim=-1).flatten(1, 2)


def _columns(clips: Tensor) -> Tensor:
    return _patches(clips).transpose(1, 2).flatten(2)


def _whole(clips: Tensor) -> Tensor:
    return clips.flatten(1)[:, None]


def _patches(clips: Tensor) -> Tensor:
    """[B, T, h w, 4 C] of [B, C, T, H, W], zero-padded to whole patches."""
    return patchify(clips, TOKEN).flatten(2, 3)


_FAMILIES = {"tokens": _tokens, "pairs": _pairs, "columns": _columns, "clip": _whole}
