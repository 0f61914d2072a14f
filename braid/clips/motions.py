"""The motions that built-in clips show, each beside the words that name it.

A path runs over time t from 0 to 1. Places are in units of the reach of a digit's middle, x to the
right and y downwards, as pixels are counted; turns are clockwise to the eye, in radians. Hops and
swings are back at their start at t = 1/2 and 1, circles and spins look alike there whatever their
sense, and rushes are uneven: what lies between keyframes is told by words, not by keyframes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

REST = {"x": 0.0, "y": 0.0, "turn": 0.0, "size": 1.0, "opacity": 1.0}

Path = Callable[[Tensor], dict[str, Tensor]]  # t [F] to what is not as at rest, each [F]


class Motion(NamedTuple):
    """A family of motions, the words for one of them, and its path."""

    family: str
    words: str
    path: Path


def _line(way: str, travel: float, power: int) -> Path:
    """Along a straight line through the middle, at a speed that grows as t^(power - 1)."""
    axis, sign = {"left": ("x", -1), "right": ("x", 1), "up": ("y", -1), "down": ("y", 1)}[way]
    return lambda t: {axis: sign * travel * (2 * t**power - 1)}


def _hops(axis: str) -> Path:
    """Two hops off the far wall or the floor."""
    return lambda t: {axis: 1 - 2 * (2 * math.pi * t).sin().abs()}


def _circle(sense: int) -> Path:
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
