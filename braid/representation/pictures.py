"""All pictures of an evaluation of spaces, in one folder.

maps.png                each space in two dimensions, by pseudo-class and by prompt family
separation.png          distances within and between classes, silhouettes
occupancy.png           clips in each class
exemplars.png           clips nearest to the mean of some classes, in the first space
neighbours_<space>.png  held-out clips and their nearest train clips
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from braid.common.plotting import BLUE, GREEN, INK, ORANGE, PALE, save, styled
from braid.common.rng import generator
from braid.representation.evaluation import Judgement, Space
from braid.representation.samples import Sample

# ---- Maps of spaces in two dimensions: t-SNE (van der Maaten & Hinton 2008)
# Either starts from PCA in 50 dimensions. Neighbours on a map are neighbours in the space;
# distances between groups and the sizes of groups mean little.

METHODS = {"tsne": "t-SNE", "umap": "UMAP"}
COLOURED = 8  # groups; the others are grey
_PALETTE = [colormaps["tab10"](place) for place in (0, 1, 2, 3, 4, 5, 6, 9)]
_COMPONENTS, _PERPLEXITY = 50, 30
_ITERATIONS = 600  # of t-SNE; scikit-learn's 1000 take most of the stage's time

Plane = NDArray[np.float32]


def project(
    points: NDArray[np.float32],  # [n, d]
    method: str,  # a key of METHODS
    seed: int,
) -> Plane:
    """A map of the points, [n, 2]; on one thread, since more would change the order of sums.

    Raises:
        ValueError: UMAP is asked for and not installed, or there are fewer than 4 points.
    """
    count = len(points)
    if count < 4:
        raise ValueError(f"representation.map_clips: expected 4 clips or more, got {count}")
    components = min(_COMPONENTS, *points.shape)
    reduced = PCA(components, svd_solver="full").fit_transform(points)
    neighbours = min(_PERPLEXITY, (count - 1) // 3)
    with threadpool_limits(1):
        if method == "umap":
            mapping = _umap().UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
        else:
            mapping = TSNE(
                init="pca", perplexity=neighbours, max_iter=_ITERATIONS, random_state=seed
            )
        plane: Plane = mapping.fit_transform(reduced).astype(np.float32)
    return plane


def map_picture(
    path: Path,
    planes: Mapping[str, Plane],  # name of a space to its map, [n, 2]
    colourings: Mapping[str, Sequence[str]],  # name of a colouring to each clip's group, [n]
    method: str,  # a key of METHODS
) -> None:
    """A row for each space, a column for each colouring; the largest groups have colours."""
    with styled():
        figure = Figure(figsize=(8.4, 3.7 * len(planes)), layout="constrained")
        axes = figure.subplots(len(planes), len(colourings), squeeze=False)
        for row, (space, plane) in zip(axes, planes.items(), strict=True):
            for ax, (colouring, groups) in zip(row, colourings.items(), strict=True):
                _scatter(ax, plane, groups)
                ax.set_title(f"{space}, by {colouring}")
        for ax in axes[-1]:
            handles, labels = ax.get_legend_handles_labels()
            ax.legend(
                handles,
                labels,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.02),
                ncols=5,
                frameon=False,
                fontsize=7,
                handletextpad=0.2,
                columnspacing=0.9,
                markerscale=2,
            )
        figure.suptitle(f"{METHODS[method]} of {len(plane)} clips", fontsize=10)
        save(figure, path)


def _scatter(ax: Axes, plane: Plane, groups: Sequence[str]) -> None:
    named = np.array(groups)
    sizes = Counter(groups)
    largest = sorted(sizes, key=lambda group: (-sizes[group], group))[:COLOURED]
    rest = ~np.isin(named, largest)
    if rest.any():
        label = f"{len(sizes) - len(largest)} others"
        x, y = plane[rest].T
        ax.scatter(x, y, s=3, color=PALE, alpha=0.35, linewidth=0, label=label)
    for group, colour in zip(largest, _PALETTE, strict=False):
        x, y = plane[named == group].T
        ax.scatter(x, y, s=7, color=[colour], linewidth=0, label=group)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _umap():  # type: ignore[no-untyped-def]  # it has no types
    try:
        return import_module("umap")
    except ImportError:
        raise ValueError(
            "representation.map is umap, which is not installed: pip install -e '.[umap]', or tsne"
        ) from None


# ---- Pictures of how clips are told apart: exemplars of classes, neighbours, occupancy, distances
# A clip is shown by its first, middle and last frame side by side, above its prompt.

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


EXEMPLARS, NEIGHBOURS = 4, 5  # clips in a row
Show = Callable[[int, str], Shown]  # a clip of the sample and the colour of its frame


def draw_album(
    folder: Path,
    sample: Sample,
    judged: Mapping[str, tuple[Space, Judgement]],
    show: Show,
    *,
    method: str,  # of the map
    map_clips: int,
    classes: int,  # pictured
    seed: int,
) -> None:
    """Draw all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    spaces = {name: space for name, (space, _) in judged.items()}
    _maps(folder / "maps.png", sample, spaces, method, map_clips, seed)
    histograms = {name: _distribution(sample, each) for name, (_, each) in judged.items()}
    separation_picture(folder / "separation.png", histograms)
    occupancy_picture(folder / "occupancy.png", sample.counts)
    first, space = next(iter(spaces.items()))
    _exemplars(folder / "exemplars.png", sample, space, first, classes, show)
    for name, (_, each) in judged.items():
        _neighbours(folder / f"neighbours_{name}.png", sample, each, name, classes, show)


def _maps(
    path: Path,
    sample: Sample,
    spaces: Mapping[str, Space],
    method: str,
    count: int,
    seed: int,
) -> None:
    order = torch.randperm(len(sample.labels), generator=generator(seed, "map"))
    chosen = order[:count].sort().values.numpy()
    planes = {name: project(each.points[chosen], method, seed) for name, each in spaces.items()}
    colourings = {
        "pseudo-class": [f"class {each}" for each in sample.labels[chosen]],
        "prompt family": [sample.families[each] for each in chosen],
    }
    map_picture(path, planes, colourings, method)


def _distribution(sample: Sample, judged: Judgement) -> Distribution:
    labels, held_out = sample.labels, sample.is_query
    same = labels[held_out][:, None] == labels[~held_out]
    return Distribution(judged.distances[same], judged.distances[~same], judged.silhouettes)


def _exemplars(path: Path, sample: Sample, space: Space, name: str, count: int, show: Show) -> None:
    rows = {}
    for label in spread_classes(sample.labels, count).tolist():
        nearest = exemplars(space.points, sample.labels, label, EXEMPLARS).tolist()
        rows[f"class {label}\n{sample.counts[label]} clips"] = [show(each, INK) for each in nearest]
    columns = ["nearest to the mean", *(f"next {each}" for each in range(1, EXEMPLARS))]
    clip_table(path, rows, columns, f"Exemplars of pseudo-classes, in the space of {name}")


def _neighbours(
    path: Path, sample: Sample, judged: Judgement, name: str, count: int, show: Show
) -> None:
    """The first held-out clip of each of some classes, and its neighbours."""
    labels, queries = sample.labels, np.flatnonzero(sample.is_query)
    near = judged.found[:, :NEIGHBOURS]
    rows = {}
    for label in spread_classes(labels[queries], count).tolist():
        row = int((labels[queries] == label).argmax())
        colours = [GREEN if labels[each] == label else ORANGE for each in near[row]]
        found = map(show, near[row].tolist(), colours)
        rows[f"class {label}"] = [show(int(queries[row]), INK), *found]
    columns = ["held-out clip", *(f"neighbour {each}" for each in range(1, near.shape[1] + 1))]
    title = f"Nearest train clips in the space of {name}: green of the same class, orange not"
    clip_table(path, rows, columns, title)
