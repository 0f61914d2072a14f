"""Maps of spaces in two dimensions: t-SNE (van der Maaten & Hinton 2008), or UMAP (McInnes 2018).

Either starts from PCA in 50 dimensions. Neighbours on a map are neighbours in the space; distances
between groups and the sizes of groups mean little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from braid.figure_style import PALE, save, styled

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
            "representation.map is umap, which is not installed: pip install umap-learn, or tsne"
        ) from None
