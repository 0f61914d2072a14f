"""All pictures of an evaluation of spaces, in one folder.

maps.png                each space in two dimensions, by pseudo-class and by prompt family
separation.png          distances within and between classes, silhouettes
occupancy.png           clips in each class
exemplars.png           clips nearest to the mean of some classes, in the first space
neighbours_<space>.png  held-out clips and their nearest train clips
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from braid.clips.clip_pictures import (
    Distribution,
    Shown,
    clip_table,
    exemplars,
    occupancy_picture,
    separation_picture,
    spread_classes,
)
from braid.clips.maps import map_picture, project
from braid.clips.representation import Judgement, Space
from braid.clips.samples import Sample
from braid.figure_style import GREEN, INK, ORANGE
from braid.training.device import generator

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
