from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from braid.common.plotting import INK
from braid.representation.evaluation import Space
from braid.representation.figures import (
    Thumbnail,
    clip_grid,
    draw_figures,
    exemplars,
    image_thumbnails,
    map_figure,
    project,
    spread_classes,
    strip,
)
from tests.representation.clustered_sample import CLUSTERS, LABELS, config, evaluated, sample

FIGURES = [
    "exemplars.png",
    "maps.png",
    "neighbors_a.png",
    "neighbors_b.png",
    "occupancy.png",
    "separation.png",
]


def thumbnail(number: int, color: str) -> Thumbnail:
    return Thumbnail(np.full((4, 14, 3), number / 100, np.float32), f"prompt of {number}", color)


def drawn(folder: Path, classes: int = 2) -> dict[str, bytes]:
    settings = {"neighbors": (5,), "bootstrap": 5, "exemplar_classes": classes}
    spaces = {"a": Space(CLUSTERS, CLUSTERS), "b": Space(CLUSTERS[:, :2], CLUSTERS[:, :2].copy())}
    pairs = {name: (space, evaluated(space, **settings)) for name, space in spaces.items()}
    draw_figures(folder, sample(), pairs, thumbnail, config(**settings), seed=0)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_all_figures_are_drawn_and_a_setting_changes_its_own(tmp_path: Path) -> None:
    first, more = drawn(tmp_path / "first"), drawn(tmp_path / "more", classes=3)
    assert list(first) == FIGURES
    changed = {name for name in FIGURES if more[name] != first[name]}
    assert changed == {"exemplars.png", "neighbors_a.png", "neighbors_b.png"}


def test_figures_of_images_say_so_and_have_a_map_of_labels_only_where_there_are_any(
    tmp_path: Path,
) -> None:
    decoded = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    shown = image_thumbnails(Stills(), sample(), lambda images: decoded[images[:, 0, 0, 0].long()])
    picture = shown(3, INK)
    assert picture.strip.shape == (2, 2, 3)
    assert np.allclose(picture.strip, 0.75)
    widths = []
    for families in (None, ["cat"] * len(LABELS)):
        images = replace(sample(), unit="image", families=families)
        space = Space(CLUSTERS, CLUSTERS)
        pairs = {"a": (space, evaluated(space, images, neighbors=(5,), bootstrap=5))}
        folder = tmp_path / str(families is None)
        draw_figures(folder, images, pairs, thumbnail, config(neighbors=(5,)), seed=0)
        widths.append(Image.open(folder / "maps.png").width)
    assert widths[0] < widths[1]


class Stills:
    """Images that hold their own number."""

    def clips(self, indices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(indices).view(-1, 1, 1, 1, 1).float()


def test_a_strip_is_the_first_middle_and_last_frame() -> None:
    frames = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 64, 6, 3) / 8
    image = strip(frames)
    assert image.shape == (64, 3 * 6 + 2 * 2, 3)
    assert image[0, :, 0].tolist() == [0.0] * 6 + [1.0] * 2 + [0.5] * 6 + [1.0] * 2 + [1.0] * 6


def test_exemplars_are_of_the_class_and_nearest_to_its_mean() -> None:
    points = np.array([[0], [4], [5], [100], [11]], np.float32)
    assert exemplars(points, np.array([0, 0, 0, 1, 0]), 0, 3).tolist() == [2, 1, 0]


def test_classes_are_spread_from_the_largest_to_the_smallest() -> None:
    labels = np.array([0, 2, 3, 5, 9, 9, 0])
    assert spread_classes(labels, 3).tolist() == [0, 3, 9]
    assert spread_classes(labels, 99).tolist() == [0, 2, 3, 5, 9]
    assert spread_classes(labels, 1).tolist() == [0]


def test_a_row_may_be_short_and_a_caption_long(tmp_path: Path) -> None:
    long = Thumbnail(np.zeros((4, 14, 3), np.float32), "word " * 200, INK)
    clip_grid(tmp_path / "long.png", {"a": [long, long], "b": [long]}, ["x", "y"], "title")
    clip_grid(tmp_path / "short.png", {"a": [thumbnail(0, INK)] * 2, "b": []}, ["x", "y"], "title")
    sizes = {Image.open(tmp_path / f"{name}.png").size for name in ("long", "short")}
    assert len(sizes) == 1
    clip_grid(tmp_path / "again.png", {"a": [long, long], "b": [long]}, ["x", "y"], "title")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "long.png").read_bytes()


def test_a_map_keeps_clusters_together_and_repeats_itself() -> None:
    plane = project(CLUSTERS, "tsne", 0)
    assert plane.tobytes() == project(CLUSTERS, "tsne", 0).tobytes()
    distances = np.linalg.norm(plane[:, None] - plane, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (LABELS[distances.argmin(1)] == LABELS).all()


def test_too_few_clips_and_umap_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ValueError, match="expected 4 clips or more"):
        project(CLUSTERS[:3], "tsne", 0)
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[umap\]'"):
        project(CLUSTERS, "umap", 0)


def test_maps_name_groups_and_method(tmp_path: Path) -> None:
    plane = np.random.default_rng(0).normal(size=(96, 2)).astype(np.float32)
    few, many = [f"class {n % 3}" for n in range(96)], [f"class {n}" for n in range(96)]
    map_figure(tmp_path / "few.png", {"a": plane}, {"class": few}, "tsne")
    map_figure(tmp_path / "many.png", {"a": plane}, {"class": many}, "tsne")
    map_figure(tmp_path / "umap.png", {"a": plane}, {"class": few}, "umap")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 3
