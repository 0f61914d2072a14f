"""Drawn scenes: shapes of four kinds in four colours, with exact masks and names.

Real segmentation data have neither names nor the certainty that nothing was left out. Here both are
known, so that prompts by text have a truth, the negative ones as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from braid.segmentation.annotated import Annotated

COLOURS = {
    "red": (205, 45, 45),
    "green": (45, 150, 65),
    "blue": (50, 80, 200),
    "yellow": (230, 200, 45),
}
SHAPES = ("circle", "square", "triangle", "star")
VISIBLE = 0.6  # of a shape, at least
_DIAMETERS = (0.22, 0.46)  # as shares of the image's shorter side
_TILT = 0.35  # radians, at most
_COLOUR_JITTER, _NOISE = 15, 4  # of 255
_BRIGHTNESS = (0.75, 1.1)
_RESIZED, _STRETCH = 0.25, 1.4  # the share of images whose sides are up to this much longer
_SUPERSAMPLE = 4  # samples a pixel's side
_TRIES = 20  # to find a place

Mask = NDArray[np.bool_]


def draw_scene(rng: np.random.Generator, *, size: int, most_shapes: int) -> Annotated:
    """Draw one to ``most_shapes`` shapes, fewer if they find no place.

    Args:
        rng: of all draws.
        size: pixels a side; a quarter of the scenes has sides of up to 1.4 times that.
        most_shapes: in a scene.
    """
    stretch = rng.uniform(1, _STRETCH, 2) if rng.random() < _RESIZED else np.ones(2)
    height, width = (round(each) for each in size * stretch)
    canvas = _background(rng, height, width)
    names: list[str] = []
    masks: list[Mask] = []
    areas: list[int] = []
    for _ in range(rng.integers(1, most_shapes + 1)):
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        # Where two shapes of one colour overlapped, their common edge could hardly be seen.
        needed = [
            int(mask.sum()) if name.startswith(colour) else VISIBLE * area
            for mask, name, area in zip(masks, names, areas, strict=True)
        ]
        cover = _place(rng, shape, masks, needed, (height, width))
        if cover is None:
            continue
        shade = COLOURS[colour] + rng.integers(-_COLOUR_JITTER, _COLOUR_JITTER + 1, 3)
        canvas.paste(tuple(shade.tolist()), mask=cover)
        own = _inside(cover)
        masks = [*(mask & ~own for mask in masks), own]
        areas.append(int(own.sum()))
        names.append(f"{colour} {shape}")
    pixels = np.asarray(canvas) * np.float32(rng.uniform(*_BRIGHTNESS))
    pixels += _NOISE * rng.standard_normal(pixels.shape, np.float32)
    return Annotated(
        pixels=pixels.clip(0, 255).astype(np.uint8),
        masks=tuple(masks),
        names=tuple(names),
        captions=(_caption(rng, names),),
        exhaustive=True,
    )


def cover_of(
    shape: str, centre: NDArray[np.float64], radius: float, tilt: float, size: tuple[int, int]
) -> Image.Image:
    """The share of each pixel that a shape covers, 255 for all of it.

    Args:
        shape: of `SHAPES`.
        centre: x, y in pixels.
        radius: of the circle around the shape, in pixels.
        tilt: clockwise, in radians.
        size: height and width in pixels.
    """
    turns = {"circle": 48, "square": 4, "triangle": 3, "star": 10}[shape]
    angle = tilt + np.linspace(0, 2 * np.pi, turns, endpoint=False)
    angle += np.pi / 4 if shape == "square" else -np.pi / 2
    reach = np.where(np.arange(turns) % 2 & (shape == "star"), 0.45, 1.0) * radius
    corners = centre + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    fine = Image.new("L", (size[1] * _SUPERSAMPLE, size[0] * _SUPERSAMPLE))
    ImageDraw.Draw(fine).polygon([tuple(each) for each in corners * _SUPERSAMPLE], fill=255)
    return fine.reduce(_SUPERSAMPLE)


def _inside(cover: Image.Image) -> Mask:
    """The pixels of which a shape covers at least half, [height, width]."""
    return np.asarray(cover) >= 128


def _place(
    rng: np.random.Generator,
    shape: str,
    masks: Sequence[Mask],
    needed: Sequence[float],  # pixels of each mask that are to remain
    size: tuple[int, int],
) -> Image.Image | None:
    """A shape where it leaves enough of the others; None if no such place was found."""
    radius = min(size) * rng.uniform(*_DIAMETERS) / 2
    tilt = rng.uniform(-_TILT, _TILT)
    for _ in range(_TRIES):
        centre = rng.uniform(radius, np.array(size[::-1]) - radius)
        cover = cover_of(shape, centre, radius, tilt, size)
        free = ~_inside(cover)
        remaining = [(mask & free).sum() for mask in masks]
        if all(left >= least for left, least in zip(remaining, needed, strict=True)):
            return cover
    return None


def _background(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A muted colour, blotched at a random scale."""
    base = rng.uniform(70, 180) + rng.uniform(-20, 20, 3)
    cells = rng.integers(2, 13, 2)
    blotches = base + rng.normal(0, rng.uniform(5, 25), (*cells, 1)) + rng.normal(0, 5, (*cells, 3))
    coarse = Image.fromarray(blotches.clip(0, 255).astype(np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def _caption(rng: np.random.Generator, names: Sequence[str]) -> str:
    """A sentence that names two of the objects, or the only one."""
    kinds = sorted(set(names))
    named = rng.permutation(kinds)[:2]
    return " and ".join(f"a {each}" for each in named)
