"""The built-in clips: real handwritten digits moving over a colored background, with prompts.

The digits are scikit-learn's (Alpaydin & Kaynak 1998, UCI: 1,797 images of 8x8 pixels). A prompt
such as «a red seven drifts left, slowly, over black» names ink, digit, motion and background of the
video; handwriting, position, size and shade are random. Splits have no handwriting in common: a
digit image belongs to one split, and clips draw from the images of their own split.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
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

from braid.clips.codec.codec import SPACE_STRIDE, TIME_STRIDE, encode
from braid.clips.config import DigitsConfig
from braid.clips.shards.dataset import Layout, write_shard, write_tensor
from braid.data.splits import SPLITS, split_of
from braid.training.distributed import shared_files

# ---- Text embeddings: one fixed vector for each word of a prompt, zero rows after the last ------
# They stand in for umT5's embeddings, which are padded to 512 rows in the same way. The vector of a
# word is drawn from a unit Gaussian by a hash of the word, so it is the same in every clip.

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


# ---- Motions, each with the phrase that names it in a prompt -------------------------------------
# A trajectory runs over time t from 0 to 1. Positions are in units of the reach of a digit's
# center, x to the right and y downwards, as pixels are counted; turns are clockwise on the screen,
# in radians. Hops and swings are back at their start at t = 1/2 and 1, circles and spins look alike
# there in either direction, and rushes are uneven: the text, not the keyframes, determines what
# lies between keyframes.

REST = {"x": 0.0, "y": 0.0, "turn": 0.0, "size": 1.0, "opacity": 1.0}

Trajectory = Callable[[Tensor], dict[str, Tensor]]  # t [F] to what differs from rest, each [F]


class Motion(NamedTuple):
    """A family of motions, the phrase for one of them, and its trajectory."""

    family: str
    phrase: str
    trajectory: Trajectory


def _line(direction: str, travel: float, power: int) -> Trajectory:
    """Along a straight line through the center, at a speed that grows as t^(power - 1)."""
    axis, sign = _DIRECTIONS[direction]
    return lambda t: {axis: sign * travel * (2 * t**power - 1)}


def _hops(axis: str) -> Trajectory:
    """Two hops off the far wall or the floor."""
    return lambda t: {axis: 1 - 2 * (2 * math.pi * t).sin().abs()}


def _circle(sign: int) -> Trajectory:
    """Once around, from the top; clockwise for +1."""

    def trajectory(t: Tensor) -> dict[str, Tensor]:
        angle = 2 * math.pi * t
        return {"x": sign * 0.8 * angle.sin(), "y": -0.8 * angle.cos()}

    return trajectory


_DIRECTIONS = {"left": ("x", -1), "right": ("x", 1), "up": ("y", -1), "down": ("y", 1)}

MOTIONS = (
    *(Motion("drift", f"drifts {to}, slowly", _line(to, 0.4, 1)) for to in _DIRECTIONS),
    *(Motion("drift", f"drifts {to}, quickly", _line(to, 1.0, 1)) for to in _DIRECTIONS),
    *(Motion("rush", f"rushes {to}, faster and faster", _line(to, 1.0, 3)) for to in _DIRECTIONS),
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
    moved = [motion.trajectory(t) for motion in MOTIONS]
    poses = [[m.get(name, torch.full_like(t, rest)) for name, rest in REST.items()] for m in moved]
    return torch.stack([torch.stack(pose) for pose in poses])


# ---- Scenes: what is in each clip, drawn at random, and its frames -------------------------------

INKS = {
    "red": (0.90, 0.20, 0.15),
    "yellow": (0.95, 0.85, 0.20),
    "green": (0.20, 0.80, 0.30),
    "blue": (0.25, 0.50, 1.00),
    "white": (0.95, 0.95, 0.95),
}
BACKGROUNDS = {"black": (0.05, 0.05, 0.05), "navy": (0.08, 0.08, 0.35), "grey": (0.32, 0.32, 0.32)}
NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_TEXTURE = 32  # pixels a side of a digit before it is placed
_BOLDNESS = 1.3
_HALF = 0.5  # of a digit's side, where the frame's is 1
_REACH = 0.44  # of a digit's center from the frame's, at the end of a trajectory
_JITTER = {"position": 0.06, "turn": 0.1, "size": 0.08, "shade": 0.06, "extent": 0.1}  # half-widths


@dataclass(frozen=True)
class Scenes:
    """What is in each of N clips."""

    keys: Sequence[str]
    prompts: Sequence[str]
    textures: Tensor  # [N, 32, 32] opacity of the digit
    poses: Tensor  # [N, 5, F] x, y, turn, size, opacity
    ink: Tensor  # [N, 3] in [0, 1]
    background: Tensor  # [N, 3] in [0, 1]


class Handwriting:
    """The digit images, each of one split."""

    def __init__(self, fractions: tuple[float, float]) -> None:
        """``fractions`` are those of validation and test clips."""
        data = load_digits()
        framed = pad(torch.from_numpy(data.images / 16).float()[:, None], (1, 1, 1, 1))
        fine = interpolate(framed, (_TEXTURE, _TEXTURE), mode="bicubic")[:, 0]
        self.textures = (_BOLDNESS * fine).clamp(0, 1)
        splits = np.array([split_of(f"digit {i}", *fractions) for i in range(len(fine))])
        self._images = {
            (split, digit): np.flatnonzero((splits == split) & (data.target == digit))
            for split in SPLITS
            for digit in range(10)
        }

    def image(self, split: str, digit: int, quantile: float) -> int:
        """The image at ``quantile``, in [0, 1), of a split's images of a digit.

        Raises:
            ValueError: the split has no image of the digit.
        """
        images = self._images[split, digit]
        if not len(images):
            raise ValueError(f"the {split} split is too small to have a handwritten {digit}")
        return int(images[int(quantile * len(images))])


def draw_scenes(
    keys: Sequence[str],
    frames: int,
    handwriting: Handwriting,
    fractions: tuple[float, float],
    rng: np.random.Generator,
) -> Scenes:
    """Draw the scenes of the clips called ``keys``, of ``frames`` frames each."""
    count = len(keys)
    motions, digits, inks, backgrounds = (
        rng.integers(size, size=count) for size in (len(MOTIONS), 10, len(INKS), len(BACKGROUNDS))
    )
    images = [
        handwriting.image(split_of(key, *fractions), digit, quantile)
        for key, digit, quantile in zip(keys, digits, rng.random(count), strict=True)
    ]
    names = list(INKS), NUMERALS, [motion.phrase for motion in MOTIONS], list(BACKGROUNDS)
    prompts = [
        "a {} {} {}, over {}".format(*(name[i] for name, i in zip(names, scene, strict=True)))
        for scene in zip(inks, digits, motions, backgrounds, strict=True)
    ]
    return Scenes(
        keys,
        prompts,
        handwriting.textures[images],
        _jittered(pose_table(frames)[motions], rng),
        _shaded(np.array(list(INKS.values()))[inks], rng),
        _shaded(np.array(list(BACKGROUNDS.values()))[backgrounds], rng),
    )


def render(
    scenes: Scenes,
    size: int,
) -> Tensor:
    """The frames of the clips, [N, 3, F, size, size] in [0, 1]."""
    count, _, frames = scenes.poses.shape
    pixel = (torch.arange(size) + 0.5) * (2 / size) - 1
    grid = _texture_coordinates(scenes.poses, pixel).reshape(count, frames * size, size, 2)
    cover = grid_sample(scenes.textures[:, None], grid, align_corners=False)
    cover = cover.view(count, 1, frames, size, size) * scenes.poses[:, 4, None, :, None, None]
    ink, background = (color[:, :, None, None, None] for color in (scenes.ink, scenes.background))
    return torch.addcmul(background, cover, ink - background)


def _texture_coordinates(
    poses: Tensor,  # [N, 5, F]
    pixel: Tensor,  # [S] centers of pixels, the frame from -1 to 1
) -> Tensor:
    """The point of a digit's texture at each pixel, [N, F, S, S, 2] as (x, y)."""
    x, y, turn, size, _ = poses[..., None, None].unbind(1)
    cos, sin = turn.cos() / (_HALF * size), turn.sin() / (_HALF * size)
    dx, dy = pixel - _REACH * x, pixel[:, None] - _REACH * y
    return torch.stack([cos * dx + sin * dy, cos * dy - sin * dx], -1)


def _jittered(
    table: Tensor,  # [N, 5, F]
    rng: np.random.Generator,
) -> Tensor:
    """Each clip's poses, a little off in extent, position, angle and size, [N, 5, F]."""

    def around(center: float, name: str) -> Tensor:
        half = _JITTER[name]
        draw = rng.uniform(center - half, center + half, (len(table), 1))
        return torch.from_numpy(draw.astype(np.float32))

    x, y, turn, size, opacity = table.unbind(1)
    extent = around(1, "extent")
    x = extent * x + around(0, "position") / _REACH
    y = extent * y + around(0, "position") / _REACH
    turn = extent * turn + around(0, "turn")
    return torch.stack([x, y, turn, size * around(1, "size"), opacity], 1)


def _shaded(colors: NDArray[np.float64], rng: np.random.Generator) -> Tensor:
    """Colors [N, 3], each a little off."""
    shade = rng.uniform(-_JITTER["shade"], _JITTER["shade"], colors.shape)
    return torch.from_numpy(np.clip(colors + shade, 0, 1).astype(np.float32))


# ---- What the prompts say, as numbers ------------------------------------------------------------

WORDS: dict[str, tuple[str, ...]] = {
    "digit": NUMERALS,
    "ink": tuple(INKS),
    "ground": tuple(BACKGROUNDS),
    "motion": tuple(motion.phrase for motion in MOTIONS),
}
FAMILIES = tuple(dict.fromkeys(motion.family for motion in MOTIONS))
_PROMPT = re.compile(
    "a {ink} {digit} {motion}, over {ground}".format(
        **{kind: f"(?P<{kind}>{'|'.join(map(re.escape, words))})" for kind, words in WORDS.items()}
    )
)


def read_words(prompts: Sequence[str]) -> dict[str, Tensor] | None:
    """Numbers of each clip's word of each kind, [n], and as `family` of its motion's family.

    None if a prompt is not one of the built-in ones.
    """
    matches = [match for match in map(_PROMPT.fullmatch, prompts) if match]
    if len(matches) < len(prompts):
        return None
    numbers = {
        kind: torch.tensor([words.index(match[kind]) for match in matches])
        for kind, words in WORDS.items()
    }
    family_of = torch.tensor([FAMILIES.index(motion.family) for motion in MOTIONS])
    return {**numbers, "family": family_of[numbers["motion"]]}


# ---- The clips as shards: encoded frames, text embeddings and prompts ----------------------------

LAYOUT: Layout = "cthw"
_CHUNK = 8  # clips rendered at a time; many more would not fit a processor's cache


def write_digit_shards(
    folder: Path,
    config: DigitsConfig,
    *,
    fractions: tuple[float, float],
    seed: int,
    scratch: Path,
) -> list[Path]:
    """Render, encode and write the clips; the shards in order.

    Several processes share the shards, and the first puts them into the folder. One that a killed
    run left in its scratch folder is not made again.

    Args:
        folder: where shards are written.
        config: how many clips there are, and how large.
        fractions: of validation and test clips.
        seed: of all draws.
        scratch: of finished shards of the same settings, which all processes see.

    Raises:
        ValueError: a split is too small to have every handwritten digit.
    """
    handwriting = Handwriting(fractions)
    frames = TIME_STRIDE * (config.latent_frames - 1) + 1
    size = SPACE_STRIDE * config.latent_size
    starts = range(0, config.clips, config.per_shard)
    names = [f"shard-{number:05d}.tar" for number in range(len(starts))]

    def write(number: int, path: Path) -> None:
        end = min(starts[number] + config.per_shard, config.clips)
        keys = [f"{key:09d}" for key in range(starts[number], end)]
        rng = np.random.default_rng([seed, number])
        scenes = (
            draw_scenes(keys[first : first + _CHUNK], frames, handwriting, fractions, rng)
            for first in range(0, len(keys), _CHUNK)
        )
        write_shard(path, _encoded(scenes, size))

    return shared_files(names, write, folder, scratch, "moving digits", "shard")


def _encoded(chunks: Iterable[Scenes], size: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The key of every clip, and its members by kind."""
    for scenes in chunks:
        latents = encode(render(scenes, size)).bfloat16()
        for key, latent, prompt in zip(scenes.keys, latents, scenes.prompts, strict=True):
            embedding = write_tensor(embed_prompt(prompt))
            members = {"latent": write_tensor(latent), "embed": embedding}
            yield key, members | {"prompt": prompt.encode()}
