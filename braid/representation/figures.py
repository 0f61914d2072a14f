"""The figures of an evaluation of spaces, in one folder.

maps.png               each space in two dimensions, by pseudo-class and by prompt family
separation.png         distances within and between classes, silhouettes
occupancy.png          clips in each class
exemplars.png          clips nearest to the mean of some classes, in the first space
neighbors_<space>.png  held-out clips and their nearest train clips
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

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

from braid.clips.config import RepresentationConfig
from braid.clips.shards.dataset import Clips
from braid.common.plotting import BLUE, GREEN, INK, ORANGE, PALE, save, styled
from braid.common.rng import generator
from braid.representation.evaluation import Evaluation, Images, Sample, Space

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Image = NDArray[np.float32]
Plane = NDArray[np.float32]

EXEMPLARS, NEIGHBORS = 4, 5  # clips in a row


@dataclass(frozen=True)
class Thumbnail:
    """A clip in a grid: first, middle and last frame side by side, or an image; a caption."""

    strip: Image  # [h, w, 3]
    caption: str
    color: str  # of the border


Decode = Callable[[Tensor], Tensor]  # images [B, C, H, W] to pictures [B, 1 or 3, h, w] in [0, 1]
Thumbnails = Callable[[int, str], Thumbnail]  # of a clip of the sample, with a border of a color


def draw_figures(
    folder: Path,
    sample: Sample,
    evaluated: Mapping[str, tuple[Space, Evaluation]],
    thumbnail: Thumbnails,
    config: RepresentationConfig,
    seed: int,
) -> None:
    """Draw all figures."""
    folder.mkdir(parents=True, exist_ok=True)
    spaces = {name: space for name, (space, _) in evaluated.items()}
    evaluations = {name: evaluation for name, (_, evaluation) in evaluated.items()}
    _maps(folder / "maps.png", sample, spaces, config, seed)
    separation_figure(folder / "separation.png", sample, evaluations)
    occupancy_figure(folder / "occupancy.png", sample.counts, sample.unit)
    first, count = next(iter(spaces)), config.exemplar_classes
    _exemplars(folder / "exemplars.png", sample, spaces[first], first, count, thumbnail)
    for name, evaluation in evaluations.items():
        path = folder / f"neighbors_{name}.png"
        _neighbors(path, sample, evaluation.neighbors, name, count, thumbnail)


def clip_thumbnails(
    clips: Clips,
    sample: Sample,
    decode: Callable[[Tensor], Tensor],  # [B, C, T, H, W] to [B, F, h, w, 3]
    device: torch.device,
) -> Thumbnails:
    """Thumbnails of decoded clips."""

    def thumbnail(number: int, color: str) -> Thumbnail:
        latents = clips.latents(sample.indices[[number]]).to(device)
        return Thumbnail(strip(decode(latents)[0]), sample.prompts[number], color)

    return thumbnail


def image_thumbnails(images: Images, sample: Sample, decode: Decode) -> Thumbnails:
    """Thumbnails of images."""

    def thumbnail(number: int, color: str) -> Thumbnail:
        (picture,) = decode(images.clips(sample.indices[[number]])[:, :, 0])
        shown = picture.expand(3, -1, -1).movedim(0, -1).clamp(0, 1)
        return Thumbnail(shown.float().cpu().numpy(), sample.prompts[number], color)

    return thumbnail


def _maps(
    path: Path, sample: Sample, spaces: Mapping[str, Space], config: RepresentationConfig, seed: int
) -> None:
    order = torch.randperm(len(sample.labels), generator=generator(seed, "map"))
    chosen = order[: config.map_clips].sort().values.numpy()
    planes = {
        name: project(space.points[chosen], config.map, seed) for name, space in spaces.items()
    }
    groupings = {"class": [f"class {label}" for label in sample.labels[chosen]]}
    if sample.families is not None:
        families = {"clip": "prompt family", "image": "label"}[sample.unit]
        groupings[families] = [sample.families[number] for number in chosen]
    map_figure(path, planes, groupings, config.map, sample.unit)


def _exemplars(
    path: Path, sample: Sample, space: Space, name: str, count: int, thumbnail: Thumbnails
) -> None:
    """The clips nearest to the mean of each of some classes."""
    rows = {}
    for label in spread_classes(sample.labels, count).tolist():
        nearest = exemplars(space.points, sample.labels, label, EXEMPLARS).tolist()
        row = [thumbnail(number, INK) for number in nearest]
        rows[f"class {label}\n{sample.counts[label]} {sample.unit}s"] = row
    columns = ["nearest", *(f"next {rank}" for rank in range(1, EXEMPLARS))]
    clip_grid(path, rows, columns, f"Nearest to the means of classes, in the space of {name}")


def _neighbors(
    path: Path, sample: Sample, neighbors: Indices, name: str, count: int, thumbnail: Thumbnails
) -> None:
    """The first held-out clip of each of some classes, and its neighbors."""
    labels, queries = sample.labels, np.flatnonzero(sample.is_query)
    near = neighbors[:, :NEIGHBORS]
    rows = {}
    for label in spread_classes(labels[queries], count).tolist():
        row = int((labels[queries] == label).argmax())
        colors = [GREEN if labels[number] == label else ORANGE for number in near[row]]
        retrieved = map(thumbnail, near[row].tolist(), colors)
        rows[f"class {label}"] = [thumbnail(int(queries[row]), INK), *retrieved]
    ranks = [f"neighbor {rank}" for rank in range(1, near.shape[1] + 1)]
    columns, what = [f"held-out {sample.unit}", *ranks], f"Nearest train {sample.unit}s"
    title = f"{what} in the space of {name}: green of the same class, orange not"
    clip_grid(path, rows, columns, title)


# ---- Maps: t-SNE (van der Maaten & Hinton 2008) or UMAP (McInnes et al. 2018) --------------------
# Either starts from PCA in 50 dimensions. Neighbors on a map are neighbors in the space; distances
# between groups and the sizes of groups mean little.

METHODS = {"tsne": "t-SNE", "umap": "UMAP"}
COLORED = 8  # groups; the others are gray
_PALETTE = [colormaps["tab10"](place) for place in (0, 1, 2, 3, 4, 5, 6, 9)]
_COMPONENTS, _PERPLEXITY = 50, 30
_ITERATIONS = 600  # of t-SNE; scikit-learn's 1000 take most of the stage's time
_LEGEND: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.02),
    "ncols": 5,
    "frameon": False,
    "fontsize": 7,
    "handletextpad": 0.2,
    "columnspacing": 0.9,
    "markerscale": 2,
}


def project(
    points: NDArray[np.float32],  # [n, d]
    method: str,  # a key of METHODS
    seed: int,
) -> Plane:
    """A map of the points, [n, 2]; on one thread, since more would change the order of sums.

    Raises:
        ValueError: UMAP is not installed, or there are fewer than 4 points.
    """
    count = len(points)
    if count < 4:
        raise ValueError(f"clips.representation.map_clips: expected 4 clips or more, got {count}")
    components = min(_COMPONENTS, *points.shape)
    reduced = PCA(components, svd_solver="full").fit_transform(points)
    neighbors = min(_PERPLEXITY, (count - 1) // 3)
    with threadpool_limits(1):
        if method == "umap":
            mapping = _umap().UMAP(n_neighbors=neighbors, random_state=seed, n_jobs=1)
        else:
            mapping = TSNE(
                init="pca", perplexity=neighbors, max_iter=_ITERATIONS, random_state=seed
            )
        plane: Plane = mapping.fit_transform(reduced).astype(np.float32)
    return plane


def map_figure(
    path: Path,
    planes: Mapping[str, Plane],  # name of a space to its map, [n, 2]
    groupings: Mapping[str, Sequence[str]],  # name of a grouping to each clip's group, [n]
    method: str,  # a key of METHODS
    unit: str = "clip",
) -> None:
    """A row for each space, a column for each grouping; the largest groups have colors."""
    with styled():
        size = (4.2 * len(groupings), 3.7 * len(planes))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(planes), len(groupings), squeeze=False)
        for row, (space, plane) in zip(axes, planes.items(), strict=True):
            for ax, (grouping, groups) in zip(row, groupings.items(), strict=True):
                _scatter(ax, plane, groups)
                ax.set_title(f"{space}, by {grouping}")
        for ax in axes[-1]:
            ax.legend(**_LEGEND)
        figure.suptitle(f"{METHODS[method]} of {len(plane)} {unit}s", fontsize=10)
        save(figure, path)


def _scatter(ax: Axes, plane: Plane, groups: Sequence[str]) -> None:
    named = np.array(groups)
    sizes = Counter(groups)
    largest = sorted(sizes, key=lambda group: (-sizes[group], group))[:COLORED]
    rest = ~np.isin(named, largest)
    if rest.any():
        label = f"{len(sizes) - len(largest)} others"
        x, y = plane[rest].T
        ax.scatter(x, y, s=3, color=PALE, alpha=0.35, linewidth=0, label=label)
    for group, color in zip(largest, _PALETTE, strict=False):
        x, y = plane[named == group].T
        ax.scatter(x, y, s=7, color=[color], linewidth=0, label=group)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _umap():  # type: ignore[no-untyped-def]  # it has no types
    try:
        return import_module("umap")
    except ImportError:
        raise ValueError(
            "clips.representation.map is umap, which is not installed: "
            "pip install -e '.[umap]', or tsne"
        ) from None


# ---- Clips: exemplars of classes and neighbors of held-out clips ---------------------------------

_WIDTH, _HEIGHT = 1.75, 0.9  # inches, at most; of a thumbnail
_LINE = 34  # characters of a caption
_GAP = 1 / 32  # of a strip's height, between frames


def strip(frames: Tensor) -> Image:  # [F, h, w, 3] in [0, 1]
    """First, middle and last frame side by side, white between them, [h, 3 w + gaps, 3]."""
    chosen = frames[[0, len(frames) // 2, len(frames) - 1]].clamp(0, 1).float().cpu().numpy()
    height = chosen.shape[1]
    gap = np.ones((height, max(int(_GAP * height), 1), 3), np.float32)
    return np.concatenate([chosen[0], gap, chosen[1], gap, chosen[2]], axis=1)


def spread_classes(labels: Indices, count: int) -> Indices:
    """At most `count` of the classes that there are, spread evenly over their numbers."""
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
    clips = np.flatnonzero(labels == label)
    distances = np.linalg.norm(points[clips] - points[clips].mean(axis=0), axis=1)
    return clips[distances.argsort(kind="stable")[:count]]


def clip_grid(
    path: Path,
    rows: Mapping[str, Sequence[Thumbnail]],  # name of a row to its clips
    columns: Sequence[str],
    title: str,
) -> None:
    """A grid of clips; a row may have fewer clips than there are columns."""
    first = next(iter(rows.values()))[0].strip
    ratio = first.shape[1] / first.shape[0]
    width = min(_WIDTH, _HEIGHT * ratio)
    size = (width * len(columns) + 1.1, (width / ratio + 0.34) * len(rows) + 0.5)
    with styled():
        tight = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
        figure = Figure(figsize=size, layout=tight)
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for line, (name, clips) in zip(axes, rows.items(), strict=True):
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
            for ax in line[len(clips) :]:
                ax.set_axis_off()
            for ax, thumbnail in zip(line, clips, strict=False):
                _draw(ax, thumbnail, int(_LINE * width / _WIDTH))
        for ax, column in zip(axes[0], columns, strict=True):
            ax.set_title(column, pad=4)
        figure.suptitle(title, fontsize=10)
        save(figure, path)


def _draw(ax: Axes, thumbnail: Thumbnail, letters: int) -> None:
    lines = textwrap.wrap(thumbnail.caption, letters, max_lines=2, placeholder=" …")
    ax.imshow(thumbnail.strip)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=thumbnail.color, linewidth=1.6)
    ax.set_xlabel("\n".join([*lines, ""][:2]), fontsize=6, labelpad=2)


# ---- Distributions: occupancy of classes, distances and silhouettes ------------------------------


def occupancy_figure(
    path: Path,
    counts: Indices,  # [K] clips in each class
    unit: str = "clip",
) -> None:
    """Clips in each class, in the order of their numbers."""
    with styled():
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        ax = figure.subplots()
        ax.bar(range(len(counts)), counts, width=1.0, color=BLUE, edgecolor="white", linewidth=0.2)
        ax.axhline(counts.mean(), color=ORANGE, lw=1, ls="--", label=f"mean {counts.mean():.1f}")
        ax.set(xlabel="class", ylabel=f"{unit}s of all splits", xlim=(-0.7, len(counts) - 0.3))
        ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
        ax.set_title(f"{counts.sum()} {unit}s in {len(counts)} classes")
        save(figure, path)


def separation_figure(path: Path, sample: Sample, evaluations: Mapping[str, Evaluation]) -> None:
    """A row for each space: distances within and between classes, and silhouettes."""
    labels, is_query = sample.labels, sample.is_query
    same = labels[is_query][:, None] == labels[~is_query]
    with styled():
        figure = Figure(figsize=(7.6, 2.3 * len(evaluations)), layout="constrained")
        axes = figure.subplots(len(evaluations), 2, squeeze=False)
        for (left, right), (name, space) in zip(axes, evaluations.items(), strict=True):
            own, others = space.distances[same], space.distances[~same]
            pairs = {"to its own class": own, "to other classes": others}
            _histograms(left, pairs, (0.0, float(others.max())))
            what = f"distances of held-out to train {sample.unit}s"
            left.set(title=f"{name}: {what}", ylabel="density")
            _histograms(right, space.silhouettes, (-1.0, 1.0))
            right.set(title=f"{name}: silhouettes")
        axes[-1][0].set_xlabel("mean distances")
        axes[-1][1].set_xlabel("silhouette")
        save(figure, path)


def _histograms(ax: Axes, samples: Mapping[str, Floats], limits: tuple[float, float]) -> None:
    """Two densities; dashed lines at the means."""
    edges = np.linspace(*limits, 61)
    for (name, values), color in zip(samples.items(), (GREEN, PALE), strict=True):
        density, _ = np.histogram(values, edges, density=True)
        ax.stairs(density, edges, fill=True, color=color, alpha=0.55, label=name)
        ax.axvline(float(values.mean()), color=color, lw=1, ls="--")
    ax.set(yticks=[], xlim=limits, ylim=(0, None))
    ax.legend(frameon=False, fontsize=7)
