"""Pictures of refined and generated images: sheets of tiles, a row an image or a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from braid.common.plotting import save, styled
from braid.drifting.evaluation.images import Completed

ROWS = 10  # classes in a picture, at most
TILE, MARGIN, HEADING = 0.3, 0.12, 0.4  # inches
LETTER = 0.05  # inches of a letter of a name
MISSING = (0.80, 0.86, 0.93)  # color of patches that are not given


class Decode(Protocol):
    """What turns images [n, C, H, W] into pictures [n, 1 or 3, h, w] in [0, 1]."""

    @property
    def name(self) -> str:
        """How pictures say what decoded them."""

    def __call__(self, images: Tensor) -> Tensor:
        """The pictures."""


def draw_completions(
    folder: Path,
    completed: Mapping[int, Completed],  # by given patches, from fine to coarse
    refined: str,  # the method of the refiner's own images
    truth: Tensor,  # [n, C, H, W]
    shown: Tensor,  # [rows, samples], which images; a row a class
    names: Sequence[str],  # of the rows
    decode: Decode,
) -> None:
    """`classes.png`, samples of the coarsest level, and `levels.png`, one image of each class."""
    given, level = list(completed.items())[-1]
    images = level.images[refined]
    draw_classes(folder / "classes.png", given, images, truth, shown, names, decode)
    draw_levels(folder / "levels.png", completed, refined, truth, shown[:, 0], names, decode)


def draw_classes(
    path: Path,
    given: int,  # patches that the images were completed from, 0: generated
    refined: Tensor,  # [n, C, H, W]
    real: Tensor,  # [n, C, H, W] of the same classes
    shown: Tensor,  # [rows, samples], which ones; a row a class
    names: Sequence[str],  # of the rows
    decode: Decode,
) -> None:
    """A row of images refined in one step and one of real images for each class."""
    source = f"one step from {given} given patches" if given else "one step from noise"
    panels = {
        name: decode(images[shown.flatten()]).unflatten(0, shown.shape)
        for name, images in ((source, refined), ("real, held out", real))
    }
    sheet(path, panels, names, [], f"decoder: {decode.name}")


def draw_levels(
    path: Path,
    completed: Mapping[int, Completed],  # by given patches
    refined: str,  # the method of the refiner's own images
    truth: Tensor,  # [n, C, H, W]
    shown: Tensor,  # [rows], which images
    names: Sequence[str],  # of the rows
    decode: Decode,
) -> None:
    """A row an image: what is given of it at each level, interpolated, refined, and the truth."""
    panels = {}
    real = decode(truth[shown])
    for given, level in completed.items():
        methods = [decode(level.images[name][shown]) for name in ("interpolated", refined)]
        pixels = blanked(real, level.given[shown])
        columns = [tiles.expand_as(pixels) for tiles in (pixels, *methods, real)]
        panels[f"{given} patches given"] = torch.stack(columns, dim=1)
    titles = ["given", "interpolated", "refined", "truth"]
    sheet(path, panels, names, titles, f"decoder: {decode.name}")


def sheet(
    path: Path,
    panels: Mapping[str, Tensor],  # title to pictures [rows, columns, 1 or 3, h, w] in [0, 1]
    rows: Sequence[str],  # names
    columns: Sequence[str],  # names, the same in every panel; none: no names
    title: str,
) -> None:
    """Panels of tiles side by side."""
    wide = [TILE * pictures.shape[1] for pictures in panels.values()]
    left, bottom = (LETTER * max(map(len, [*names, ""])) + MARGIN for names in (rows, columns))
    width = left + sum(wide) + MARGIN * len(wide)
    high = TILE * len(rows)
    height = bottom + high + HEADING
    with styled():
        figure = Figure(figsize=(width, height))
        for name, pictures, extent in zip(panels, panels.values(), wide, strict=True):
            ax = figure.add_axes((left / width, bottom / height, extent / width, high / height))
            pixels = tiled(pictures)
            ax.imshow(pixels, aspect="auto")
            ax.set_title(name, fontsize=7, pad=3)
            ax.spines[:].set_visible(False)
            ax.tick_params(length=0, pad=1, labelsize=6)
            ax.set_xticks(_centers(len(columns), pixels.shape[1]), columns, rotation=90)
            named = rows if ax is figure.axes[0] else []
            ax.set_yticks(_centers(len(named), pixels.shape[0]), named)
            left += extent + MARGIN
        figure.suptitle(title, fontsize=7, y=1 - 0.03 / height, va="top")
        save(figure, path)


def _centers(count: int, extent: int) -> list[float]:
    """Of `count` tiles along `extent` pixels."""
    return [(2 * turn + 1) * extent / (2 * count) - 0.5 for turn in range(count)]


def tiled(
    pictures: Tensor,  # [rows, columns, 1 or 3, h, w] in [0, 1]
) -> NDArray[np.float32]:
    """One color picture [H, W, 3] with white between and around the tiles."""
    gap = max(1, pictures.shape[-1] // 16)
    color = pictures.clamp(0, 1).cpu().expand(-1, -1, 3, -1, -1)
    padded = functional.pad(color, (gap, gap, gap, gap), value=1.0)
    joined: NDArray[np.float32] = padded.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1).numpy()
    return joined


def blanked(
    pictures: Tensor,  # [n, 1 or 3, h, w] in [0, 1]
    given: Tensor,  # [n, 1, H, W] bool, at the resolution of the images that were decoded
) -> Tensor:
    """Color pictures [n, 3, h, w] in which what is missing is a plain pale blue."""
    shown = functional.interpolate(given.float(), size=pictures.shape[-2:]) > 0.5
    color = torch.tensor(MISSING, device=pictures.device).view(3, 1, 1)
    return torch.where(shown, pictures, color)


def of_each_class(
    classes: Tensor,  # [n]
    samples: int,  # at most, of each class
    rows: int = ROWS,  # classes, at most: the lowest that have any
) -> Tensor:
    """Positions [rows, samples] of the first images of each class; as many as all of them have."""
    members = [(classes == label).nonzero().flatten() for label in classes.unique()[:rows]]
    fewest = min(samples, *map(len, members))
    return torch.stack([places[:fewest] for places in members])
