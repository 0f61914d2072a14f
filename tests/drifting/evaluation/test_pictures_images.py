"""Sheets of images: tiles where they belong, equal images, equal bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from braid.drifting.evaluation.images import Completed
from braid.drifting.evaluation.pictures import (
    MISSING,
    blanked,
    draw_classes,
    draw_completions,
    draw_levels,
    of_each_class,
    sheet,
    tiled,
)

TRUTH = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
CLASSES = torch.arange(12) % 3
NAMES = ["a", "b", "c"]


class Doubling:
    """A decoder to twice the size that counts what it decodes."""

    name = "twice"

    def __init__(self) -> None:
        self.decoded = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.decoded += len(images)
        return (images / 2 + 0.5).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_tiles_lie_in_rows_with_white_between() -> None:
    pictures = torch.zeros(2, 3, 1, 4, 4)
    pictures[1, 2] = 0.5
    joined = tiled(pictures)
    assert joined.shape == (12, 18, 3)
    assert (joined[7:11, 13:17] == 0.5).all()
    assert (joined[[0, 5, 6, 11]] == 1).all()
    assert (joined[1:5, 1:5] == 0).all()
    assert (joined == 0.5).sum() == 16 * 3


def test_colors_stay_and_bright_values_are_cut() -> None:
    color = torch.tensor([0.2, 1.7, -1.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 4, 4)
    np.testing.assert_allclose(tiled(color)[2, 2], [0.2, 1, 0])


def test_what_is_missing_is_blank_at_any_resolution() -> None:
    given = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    given[..., :2] = True
    shown = blanked(torch.full((1, 1, 8, 8), 0.3), given)
    assert shown.shape == (1, 3, 8, 8)
    assert (shown[..., :4] == 0.3).all()
    assert torch.equal(shown[0, :, 0, 4], torch.tensor(MISSING))


def test_the_first_of_each_class_are_shown_as_many_as_all_have() -> None:
    classes = torch.tensor([5, 2, 2, 5, 2, 7, 7])
    assert of_each_class(classes, 9).tolist() == [[1, 2], [0, 3], [5, 6]]
    assert of_each_class(classes, 1, rows=2).tolist() == [[1], [0]]


def test_equal_images_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    shown = of_each_class(CLASSES, 2)
    for name, refined in (("one", -TRUTH), ("two", -TRUTH), ("three", TRUTH)):
        draw_classes(tmp_path / f"{name}.png", 0, refined, TRUTH, shown, NAMES, Doubling())
    one, two, three = ((tmp_path / f"{n}.png").read_bytes() for n in ("one", "two", "three"))
    assert one == two != three


def level(given: Tensor, interpolated: Tensor, refined: Tensor) -> Completed:
    return Completed(given, {"interpolated": interpolated, "unclamped": refined})


EVERYTHING = torch.ones(12, 1, 8, 8, dtype=torch.bool)


def test_only_what_is_shown_is_decoded(tmp_path: Path) -> None:
    decode, shown = Doubling(), of_each_class(CLASSES, 2)
    draw_classes(tmp_path / "classes.png", 4, TRUTH, TRUTH, shown, NAMES, decode)
    assert decode.decoded == 2 * 6
    levels = dict.fromkeys((4, 0), level(EVERYTHING, TRUTH, TRUTH))
    path, rows = tmp_path / "levels.png", torch.arange(3)
    draw_levels(path, levels, "unclamped", TRUTH, rows, NAMES, decode)
    assert decode.decoded == 2 * 6 + 3 + 2 * 6
    with Image.open(path) as picture:
        assert picture.size[0] > picture.size[1]


def test_both_sheets_are_drawn_the_classes_at_the_coarsest_level(tmp_path: Path) -> None:
    shown, levels = of_each_class(CLASSES, 2), {}
    for given, refined in ((4, TRUTH), (0, -TRUTH)):
        levels[given] = level(EVERYTHING, TRUTH, refined)
    draw_completions(tmp_path, levels, "unclamped", TRUTH, shown, NAMES, Doubling())
    draw_classes(tmp_path / "one.png", 0, -TRUTH, TRUTH, shown, NAMES, Doubling())
    assert (tmp_path / "classes.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    assert (tmp_path / "levels.png").exists()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_part_of_a_level_is_in_the_picture(tmp_path: Path, which: int) -> None:
    parts = [EVERYTHING, TRUTH, TRUTH]
    other = [part.clone() for part in parts]
    other[which][0] = False if which == 0 else 1.0
    for name, (given, interpolated, refined) in (("one", parts), ("two", other)):
        levels = {4: level(given, interpolated, refined)}
        path = tmp_path / f"{name}.png"
        draw_levels(path, levels, "unclamped", TRUTH, torch.arange(3), NAMES, Doubling())
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_a_sheet_names_rows_and_columns(tmp_path: Path) -> None:
    tiles = torch.rand(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    for name, rows, columns in (("one", ["a", "b"], ["x", "y"]), ("two", ["a", "b"], ["x", "z"])):
        sheet(tmp_path / f"{name}.png", {"panel": tiles}, rows, columns, "title")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()
