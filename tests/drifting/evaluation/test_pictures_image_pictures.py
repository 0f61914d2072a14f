"""Sheets of images: tiles where they belong, equal images, equal bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from braid.drifting.evaluation.pictures import (
    UNKNOWN,
    blanked,
    draw_classes,
    draw_levels,
    of_each_class,
    sheet,
    tiled,
)

TRUTH = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
CLASSES = torch.arange(12) % 3
NAMES = ["a", "b", "c"]


class Doubling:
    """A decoder that says how often it was asked, for twice the size."""

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


def test_colours_stay_and_bright_values_are_cut() -> None:
    colour = torch.tensor([0.2, 1.7, -1.0]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 4, 4)
    np.testing.assert_allclose(tiled(colour)[2, 2], [0.2, 1, 0])


def test_what_is_not_known_is_blank_at_any_resolution() -> None:
    known = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    known[..., :2] = True
    shown = blanked(torch.full((1, 1, 8, 8), 0.3), known)
    assert shown.shape == (1, 3, 8, 8)
    assert (shown[..., :4] == 0.3).all()
    assert torch.equal(shown[0, :, 0, 4], torch.tensor(UNKNOWN))


def test_the_first_of_each_class_are_shown_as_many_as_all_have() -> None:
    classes = torch.tensor([5, 2, 2, 5, 2, 7, 7])
    assert of_each_class(classes, 9).tolist() == [[1, 2], [0, 3], [5, 6]]
    assert of_each_class(classes, 1, rows=2).tolist() == [[1], [0]]


def test_equal_images_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    shown = of_each_class(CLASSES, 2)
    for name, made in (("one", -TRUTH), ("two", -TRUTH), ("three", TRUTH)):
        draw_classes(tmp_path / f"{name}.png", 0, made, TRUTH, shown, NAMES, Doubling())
    one, two, three = ((tmp_path / f"{n}.png").read_bytes() for n in ("one", "two", "three"))
    assert one == two != three


def test_only_what_is_shown_is_decoded(tmp_path: Path) -> None:
    decode, known = Doubling(), torch.ones(12, 1, 8, 8, dtype=torch.bool)
    draw_classes(
        tmp_path / "classes.png", 4, TRUTH, TRUTH, of_each_class(CLASSES, 2), NAMES, decode
    )
    assert decode.decoded == 2 * 6
    levels = dict.fromkeys((4, 0), (known, TRUTH, TRUTH))
    draw_levels(tmp_path / "levels.png", levels, TRUTH, torch.arange(3), NAMES, decode)
    assert decode.decoded == 2 * 6 + 3 + 2 * 6
    with Image.open(tmp_path / "levels.png") as picture:
        assert picture.size[0] > picture.size[1]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_part_of_a_level_is_in_the_picture(tmp_path: Path, which: int) -> None:
    parts = [torch.ones(12, 1, 8, 8, dtype=torch.bool), TRUTH, TRUTH]
    other = [each.clone() for each in parts]
    other[which][0] = False if which == 0 else 1.0
    for name, each in (("one", parts), ("two", other)):
        levels = {4: (each[0], each[1], each[2])}
        path = tmp_path / f"{name}.png"
        draw_levels(path, levels, TRUTH, torch.arange(3), NAMES, Doubling())
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()


def test_a_sheet_names_rows_and_columns(tmp_path: Path) -> None:
    tiles = torch.rand(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    for name, rows, columns in (("one", ["a", "b"], ["x", "y"]), ("two", ["a", "b"], ["x", "z"])):
        sheet(tmp_path / f"{name}.png", {"panel": tiles}, rows, columns, "title")
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "two.png").read_bytes()
