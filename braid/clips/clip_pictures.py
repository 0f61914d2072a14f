"""Pictures of how clips are told apart: exemplars of classes, neighbours, occupancy, distances.

A clip is shown by its first, middle and last frame side by side, above its prompt.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from torch import Tensor

from braid.figure_style import BLUE, GREEN, ORANGE, PALE, save, styled

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Image = NDArray[np.float32]

_WIDTH = 1.75  # inches; of a clip's frames
_LINE = 34  # characters of a caption
_GAP = 32  # of a strip's height between frames, one part


@dataclass(frozen=True)
class Shown:
    """A clip in a table of clips."""

    strip: Image  # [h, w, 3]
    caption: str
    colour: str  # of its frame


@dataclass(frozen=True)
class Distribution:
    """What the histograms of one space are made of."""

    same: Floats  # distances to gallery clips of the query's class, in mean distances
    others: Floats  # to all others
    silhouettes: Mapping[str, Floats]  # by name of the labelling


def strip(frames: Tensor) -> Image:  # [F, h, w, 3] in [0, 1]
    """First, middle and last frame side by side, white between them, [h, 3 w + gaps, 3]."""
    chosen = frames[[0, len(frames) // 2, len(frames) - 1]].clamp(0, 1).float().cpu().numpy()
    height = chosen.shape[1]
    gap = np.ones((height, max(height // _GAP, 1), 3), np.float32)
    return np.concatenate([chosen[0], gap, chosen[1], gap, chosen[2]], axis=1)


def spread_classes(labels: Indices, count: int) -> Indices:
    """At most `count` of the classes that there are, from the largest number to the smallest."""
    present = np.unique(labels)
    chosen = np.linspace(0, len(present) - 1, min(count, len(present))).round().astype(int)
    return present[chosen]


def exemplars(
    points: NDArray[np.float32],  # [n, d]
    labels: Indices,  # [n]
    label: int,
    count: int,
) -> Indices:
    """The `count` clips of a class nearest to its mean, nearest first."""
    members = np.flatnonzero(labels == label)
    distances = np.linalg.norm(points[members] - points[members].mean(axis=0), axis=1)
    return members[distances.argsort(kind="stable")[:count]]


def clip_table(
    path: Path,
    rows: Mapping[str, Sequence[Shown]],  # name of a row to its clips
    columns: Sequence[str],
    title: str,
) -> None:
    """A table of clips; a row may have fewer clips than there are columns."""
    first = next(iter(rows.values()))[0].strip
    height = _WIDTH * first.shape[0] / first.shape[1]
    size = (_WIDTH * len(columns) + 1.1, (height + 0.34) * len(rows) + 0.5)
    with styled():
        tight = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
        figure = Figure(figsize=size, layout=tight)
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for line, (name, clips) in zip(axes, rows.items(), strict=True):
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
            for ax in line[len(clips) :]:
                ax.set_axis_off()
            for ax, shown in zip(line, clips, strict=False):
                _show(ax, shown)
        for ax, column in zip(axes[0], columns, strict=True):
            ax.set_title(column, pad=4)
        figure.suptitle(title, fontsize=10)
        save(figure, path)


def _show(ax: Axes, shown: Shown) -> None:
    lines = textwrap.wrap(shown.caption, _LINE, max_lines=2, placeholder=" …")
    ax.imshow(shown.strip)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=shown.colour, linewidth=1.6)
    ax.set_xlabel("\n".join([*lines, ""][:2]), fontsize=6, labelpad=2)


def occupancy_picture(
    path: Path,
    counts: Indices,  # [K] clips in each class
) -> None:
    """Clips in each class, in the order of their numbers."""
    with styled():
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        ax = figure.subplots()
        ax.bar(range(len(counts)), counts, width=1.0, color=BLUE, edgecolor="white", linewidth=0.2)
        ax.axhline(counts.mean(), color=ORANGE, lw=1, ls="--", label=f"mean {counts.mean():.1f}")
        ax.set(xlabel="pseudo-class", ylabel="clips of all splits", xlim=(-0.7, len(counts) - 0.3))
        ax.legend(frameon=False, loc="upper right")
        ax.set_title(f"{counts.sum()} clips in {len(counts)} classes")
        save(figure, path)


def separation_picture(path: Path, spaces: Mapping[str, Distribution]) -> None:
    """A row for each space: distances within and between classes, and silhouettes."""
    with styled():
        figure = Figure(figsize=(7.6, 2.3 * len(spaces)), layout="constrained")
        axes = figure.subplots(len(spaces), 2, squeeze=False)
        for (left, right), (name, each) in zip(axes, spaces.items(), strict=True):
            pairs = {"to its own class": each.same, "to other classes": each.others}
            _histograms(left, pairs, (0.0, float(each.others.max())))
            left.set(title=f"{name}: distances of held-out to train clips", ylabel="density")
            _histograms(right, each.silhouettes, (-1.0, 1.0))
            right.set(title=f"{name}: silhouettes")
        axes[-1][0].set_xlabel("mean distances")
        axes[-1][1].set_xlabel("silhouette of a clip")
        save(figure, path)


def _histograms(ax: Axes, values: Mapping[str, Floats], limits: tuple[float, float]) -> None:
    """Each as a density; dashed lines at the means."""
    edges = np.linspace(*limits, 61)
    for (name, each), colour in zip(values.items(), (GREEN, PALE), strict=True):
        density, _ = np.histogram(each, edges, density=True)
        ax.stairs(density, edges, fill=True, color=colour, alpha=0.55, label=name)
        ax.axvline(float(each.mean()), color=colour, lw=1, ls="--")
    ax.set(yticks=[], xlim=limits, ylim=(0, None))
    ax.legend(frameon=False, fontsize=7)
