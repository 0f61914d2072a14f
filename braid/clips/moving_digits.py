"""The built-in clips: real handwritten digits in motion on coloured ground, and their prompts.

The digits are scikit-learn's (Alpaydin & Kaynak 1998, UCI: 1,797 images of 8x8 pixels). A prompt
such as «a red seven drifts left, slowly, over black» names digit, ink, motion and ground, and the
video does what it says; handwriting, place, size and shade are left to chance. Splits share no
handwriting: a digit image belongs to one split, and clips draw from their own split's images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from braid.clips.motions import MOTIONS, pose_table
from braid.splits import SPLITS, split_of

INKS = {
    "red": (0.90, 0.20, 0.15),
    "yellow": (0.95, 0.85, 0.20),
    "green": (0.20, 0.80, 0.30),
    "blue": (0.25, 0.50, 1.00),
    "white": (0.95, 0.95, 0.95),
}
GROUNDS = {"black": (0.05, 0.05, 0.05), "navy": (0.08, 0.08, 0.35), "grey": (0.32, 0.32, 0.32)}
NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_TEXTURE = 32  # pixels a side of a digit before it is placed
_BOLDNESS = 1.3
_HALF = 0.5  # of a digit's side, where the frame's is 1
_REACH = 0.44  # of a digit's middle from the frame's, at a path's end
_JITTER = {"place": 0.06, "turn": 0.1, "size": 0.08, "shade": 0.06, "path": 0.1}  # half-widths


@dataclass(frozen=True)
class Script:
    """What is seen in each of N clips."""

    prompts: list[str]
    textures: Tensor  # [N, 32, 32] opacity of the digit
    poses: Tensor  # [N, 5, F] x, y, turn, size, opacity
    ink: Tensor  # [N, 3] in [0, 1]
    ground: Tensor  # [N, 3] in [0, 1]


class Handwriting:
    """The digit images, each owned by one split."""

    def __init__(self, shares: tuple[float, float]) -> None:
        """``shares`` are those of validation and test clips."""
        data = load_digits()
        framed = pad(torch.from_numpy(data.images / 16).float()[:, None], (1, 1, 1, 1))
        fine = interpolate(framed, (_TEXTURE, _TEXTURE), mode="bicubic")[:, 0]
        self.textures = (_BOLDNESS * fine).clamp(0, 1)
        owners = np.array([split_of(f"digit {i}", *shares) for i in range(len(fine))])
        self._images = {
            (split, digit): np.flatnonzero((owners == split) & (data.target == digit))
            for split in SPLITS
            for digit in range(10)
        }

    def draw(self, split: str, digit: int, place: float) -> int:
        """The image at ``place`` of [0, 1) among a split's images of a digit.

        Raises:
            ValueError: the split owns no image of the digit.
        """
        images = self._images[split, digit]
        if not len(images):
            raise ValueError(f"the {split} split is too small to own a handwritten {digit}")
        return int(images[int(place * len(images))])


def write_script(
    keys: Sequence[str],
    frames: int,
    handwriting: Handwriting,
    shares: tuple[float, float],
    rng: np.random.Generator,
) -> Script:
    """Choose what is seen in the clips called ``keys``, of ``frames`` frames each."""
    count = len(keys)
    motions, digits, inks, grounds = (
        rng.integers(size, size=count) for size in (len(MOTIONS), 10, len(INKS), len(GROUNDS))
    )
    images = [
        handwriting.draw(split_of(key, *shares), digit, place)
        for key, digit, place in zip(keys, digits, rng.random(count), strict=True)
    ]
    words = [list(INKS), NUMERALS, [motion.words for motion in MOTIONS], list(GROUNDS)]
    chosen = zip(inks, digits, motions, grounds, strict=True)
    prompts = [
        "a {} {} {}, over {}".format(*(each[i] for each, i in zip(words, which, strict=True)))
        for which in chosen
    ]
    return Script(
        prompts,
        handwriting.textures[images],
        _jittered(pose_table(frames)[motions], rng),
        _shaded(np.array(list(INKS.values()))[inks], rng),
        _shaded(np.array(list(GROUNDS.values()))[grounds], rng),
    )


def film(
    script: Script,
    size: int,
) -> Tensor:
    """The clips' frames, [N, 3, F, size, size] in [0, 1]."""
    count, _, frames = script.poses.shape
    pixel = (torch.arange(size) + 0.5) * (2 / size) - 1
    grid = _seen_at(script.poses, pixel).reshape(count, frames * size, size, 2)
    cover = grid_sample(script.textures[:, None], grid, align_corners=False)
    cover = cover.view(count, 1, frames, size, size) * script.poses[:, 4, None, :, None, None]
    ink, ground = (each[:, :, None, None, None] for each in (script.ink, script.ground))
    return torch.addcmul(ground, cover, ink - ground)


def _seen_at(
    poses: Tensor,  # [N, 5, F]
    pixel: Tensor,  # [S] middles of pixels, the frame from -1 to 1
) -> Tensor:
    """The place on a digit's texture that each pixel sees, [N, F, S, S, 2] as (x, y)."""
    x, y, turn, size, _ = poses[..., None, None].unbind(1)
    cos, sin = turn.cos() / (_HALF * size), turn.sin() / (_HALF * size)
    dx, dy = pixel - _REACH * x, pixel[:, None] - _REACH * y
    return torch.stack([cos * dx + sin * dy, cos * dy - sin * dx], -1)


def _jittered(
    table: Tensor,  # [N, 5, F]
    rng: np.random.Generator,
) -> Tensor:
    """Each clip's poses, a little off in place, size, angle and extent, [N, 5, F]."""

    def around(middle: float, name: str) -> Tensor:
        half = _JITTER[name]
        draw = rng.uniform(middle - half, middle + half, (len(table), 1))
        return torch.from_numpy(draw.astype(np.float32))

    x, y, turn, size, opacity = table.unbind(1)
    path = around(1, "path")
    x = path * x + around(0, "place") / _REACH
    y = path * y + around(0, "place") / _REACH
    turn = path * turn + around(0, "turn")
    return torch.stack([x, y, turn, size * around(1, "size"), opacity], 1)


def _shaded(colours: NDArray[np.float64], rng: np.random.Generator) -> Tensor:
    """Colours [N, 3], each a little off."""
    shade = rng.uniform(-_JITTER["shade"], _JITTER["shade"], colours.shape)
    return torch.from_numpy(np.clip(colours + shade, 0, 1).astype(np.float32))
