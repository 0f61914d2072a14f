"""Features without an encoder: the latents themselves (the vanilla branch).

tokens  2 x 2 patches of each frame                              T h w vectors of 4 C
pairs   the patches of one place in two frames that follow each other: what the tokens' single
        distributions leave out is how a patch moves on             (T - 1) h w vectors of 8 C
clip    the flattened clip, the release's key `global`           one vector of C T H W
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

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


def _clip(clips: Tensor) -> Tensor:
    return clips.flatten(1)[:, None]


def _patches(clips: Tensor) -> Tensor:
    """[B, T, h w, 4 C] of [B, C, T, H, W], zero-padded to whole patches."""
    height, width = clips.shape[-2:]
    padded = functional.pad(clips, (0, -width % TOKEN, 0, -height % TOKEN))
    cut = padded.unflatten(-1, (-1, TOKEN)).unflatten(-3, (-1, TOKEN))  # [B, C, T, h, 2, w, 2]
    return cut.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(2, 3)


_FAMILIES = {"tokens": _tokens, "pairs": _pairs, "clip": _clip}
