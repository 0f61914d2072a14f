"""The built-in clips: real handwritten digits in motion on coloured ground, and their prompts.

The digits are scikit-learn's (Alpaydin & Kaynak 1998, UCI: 1,797 images of 8x8 pixels). A prompt
such as «a red seven drifts left, slowly, over black» names digit, ink, motion and ground, and the
video does what it says; handwriting, place, size and shade are left to chance. Splits share no
handwriting: a digit image belongs to one split, and clips draw from their own split's images.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

from braid.clips.decoding.transform import SPACE_STRIDE, TIME_STRIDE, encode
from braid.clips.shards.shards import Layout, write_shard, write_tensor
from braid.common.splits import SPLITS, split_of

# ---- Prompts as rows of numbers: one fixed vector for each word, zero rows after the last ------
# It stands in for umT5's embeddings, which are padded to 512 rows in the same way. A word's vector
# is drawn from a unit Gaussian by a hash of the word, so the same word has the same vector always.

ROWS, WIDTH = 16, 32  # umT5-XXL in Wan2.1: 512, 4096


def embed_prompt(prompt: str) -> Tensor:
    """A prompt's embedding, [ROWS, WIDTH] bfloat16.

    Raises:
        ValueError: the prompt has more than ROWS words.
    """
    words = re.findall(r"\w+", prompt.lower())
    if len(words) > ROWS:
        raise ValueError(f"prompt {prompt!r} has {len(words)} words, expected at most {ROWS}")
    rows = torch.zeros(ROWS, WIDTH)
    rows[: len(words)] = torch.stack([_vector(word) for word in words])
    return rows.bfloat16()


@cache
def _vector(word: str) -> Tensor:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(WIDTH, np.float32))


# ---- The motions that built-in clips show, each beside the words that name it ------------------
# A path runs over time t from 0 to 1. Places are in units of the reach of a digit's middle, x to
# the right and y downwards, as pixels are counted; turns are clockwise to the eye, in radians. Hops
# and swings are back at their start at t = 1/2 and 1, circles and spins look alike there whatever
# their sense, and rushes are uneven: what lies between keyframes is told by words, not by
# keyframes.

REST = {"x": 0.0, "y": 0.0, "turn": 0.0, "size": 1.0, "opacity": 1.0}

Trajectory = Callable[[Tensor], dict[str, Tensor]]  # t [F] to what is not as at rest, each [F]


class Motion(NamedTuple):
    """A family of motions, the words for one of them, and its path."""

    family: str
    words: str
    path: Trajectory


def _line(way: str, travel: float, power: int) -> Trajectory:
    """Along a straight line through the middle, at a speed that grows as t^(power - 1)."""
    axis, sign = {"left": ("x", -1), "right": ("x", 1), "up": ("y", -1), "down": ("y", 1)}[way]
    return lambda t: {axis: sign * travel * (2 * t**power - 1)}


def _hops(axis: str) -> Trajectory:
    """Two hops off the far wall or the floor."""
    return lambda t: {axis: 1 - 2 * (2 * math.pi * t).sin().abs()}


def _circle(sense: int) -> Trajectory:
    """Once around, from the top."""

    def path(t: Tensor) -> dict[str, Tensor]:
        angle = 2 * math.pi * t
        return {"x": sense * 0.8 * angle.sin(), "y": -0.8 * angle.cos()}

    return path


_WAYS = ("left", "right", "up", "down")

MOTIONS = (
    *(Motion("drift", f"drifts {way}, slowly", _line(way, 0.4, 1)) for way in _WAYS),
    *(Motion("drift", f"drifts {way}, quickly", _line(way, 1.0, 1)) for way in _WAYS),
    *(Motion("rush", f"rushes {way}, faster and faster", _line(way, 1.0, 3)) for way in _WAYS),
    Motion("bounce", "bounces up and down", _hops("y")),
    Motion("bounce", "bounces from side to side", _hops("x")),
    Motion("circle", "circles clockwise", _circle(1)),
    Motion("circle", "circles anticlockwise", _circle(-1)),
    Motion("spin", "spins clockwise", lambda t: {"turn": 2 * math.pi * t}),
    Motion("spin", "spins anticlockwise", lambda t: {"turn": -2 * math.pi * t}),
    Motion("swing", "swings to and fro", lambda t: {"turn": 0.9 * (4 * math.pi * t).sin()}),
    Motion("scale", "grows", lambda t: {"size": 0.5 * 2.6**t}),
    Motion("scale", "shrinks", lambda t: {"size": 0.5 * 2.6 ** (1 - t)}),
    Motion("fade", "fades in", lambda t: {"opacity": t**2}),
    Motion("fade", "fades away", lambda t: {"opacity": (1 - t) ** 2}),
)


def pose_table(frames: int) -> Tensor:
    """All motions' poses, [motions, 5, frames]; a row for each name of `REST`."""
    t = torch.linspace(0, 1, frames)
    paths = [motion.path(t) for motion in MOTIONS]
    rows = [[p.get(name, torch.full_like(t, rest)) for name, rest in REST.items()] for p in paths]
    return torch.stack([torch.stack(each) for each in rows])


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


# ---- The built-in clips as shards: moving digits, encoded, beside their prompts and embeddings

LAYOUT: Layout = "cthw"
_CHUNK = 8  # clips filmed at a time; many more would not fit a processor's cache


def write_digit_shards(
    folder: Path,
    *,
    clips: int,
    per_shard: int,
    latent_frames: int,
    latent_size: int,
    shares: tuple[float, float],
    seed: int,
) -> list[Path]:
    """Film, encode and write the clips; the shards in order.

    Args:
        folder: where shards are written.
        clips: how many.
        per_shard: clips a shard, at most.
        latent_frames: T of [16, T, S, S]; 4 (T - 1) + 1 video frames.
        latent_size: S, of 8 pixels a side.
        shares: of validation and test clips.
        seed: of all draws.

    Raises:
        ValueError: a split's share is too small to own every handwritten digit.
    """
    handwriting = Handwriting(shares)
    paths = []
    for number, start in enumerate(range(0, clips, per_shard)):
        keys = [f"{key:09d}" for key in range(start, min(start + per_shard, clips))]
        paths.append(folder / f"shard-{number:05d}.tar")
        rng = np.random.default_rng([seed, number])
        write_shard(paths[-1], _members(keys, latent_frames, latent_size, handwriting, shares, rng))
    return paths


def _members(
    keys: Sequence[str],
    latent_frames: int,
    latent_size: int,
    handwriting: Handwriting,
    shares: tuple[float, float],
    rng: np.random.Generator,
) -> Iterator[tuple[str, dict[str, bytes]]]:
    frames = TIME_STRIDE * (latent_frames - 1) + 1
    for start in range(0, len(keys), _CHUNK):
        chunk = keys[start : start + _CHUNK]
        script = write_script(chunk, frames, handwriting, shares, rng)
        latents = encode(film(script, SPACE_STRIDE * latent_size)).bfloat16()
        for key, each, prompt in zip(chunk, latents, script.prompts, strict=True):
            yield (
                key,
                {
                    "latent": write_tensor(each),
                    "embed": write_tensor(embed_prompt(prompt)),
                    "prompt": prompt.encode(),
                },
            )
