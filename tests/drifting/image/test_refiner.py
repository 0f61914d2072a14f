"""The refiner of images: what it depends on, what it keeps, which images it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.common.rng import generator
from braid.drifting.image.refiner import ImageRefiner, load_image_refiner, save_image_refiner
from tests.drifting.image.configs import refiner_config

SMALL = {"patch": 2, "dim": 8, "depth": 1, "heads": 2, "style": 16, "spread": 1.0}


def make(trained: bool = True, keep_anchors_fixed: bool = False, **changes: Any) -> ImageRefiner:
    torch.manual_seed(0)
    config = refiner_config(**{**SMALL, **changes}, keep_anchors_fixed=keep_anchors_fixed)
    refiner = ImageRefiner((2, 4, 6), 5, 3, config)
    if trained:
        for parameter in refiner.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return refiner


def inputs() -> list[Tensor]:
    mask = torch.tensor([[[1, 0, 0], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]]]).bool()
    images = torch.randn(2, 2, 4, 6, generator=generator(1))
    return [images, mask, mask.float(), torch.tensor([0, 4]), torch.tensor([1, 2]), torch.ones(2)]


@pytest.mark.parametrize("which", [2, 3, 4, 5])
def test_each_condition_changes_the_result(which: int) -> None:
    given = inputs()
    before = make()(*given)
    given[which] = (given[which] + 1) % 3 if which in (3, 4) else given[which] * 0.5 + 0.7
    assert (make()(*given) - before).abs().amax((1, 2, 3)).min() > 1e-4


def test_every_pixel_reaches_every_patch_and_no_other_image() -> None:
    given = inputs()
    images = given[0].requires_grad_()
    refined = make()(images, *given[1:])
    for row in (0, 3):
        (slope,) = torch.autograd.grad(refined[1, 0, row, row], images, retain_graph=True)
        assert (slope[1] != 0).all()
        assert slope[0].count_nonzero() == 0


def test_given_patches_are_kept_bit_for_bit_only_where_configured() -> None:
    given = inputs()
    kept, free = make(keep_anchors_fixed=True)(*given), make()(*given)
    pixels = given[1].repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].expand_as(kept)
    assert torch.equal(kept[pixels], given[0][pixels])
    assert torch.equal(kept[~pixels], free[~pixels])
    assert (free[pixels] != given[0][pixels]).all()
    assert torch.equal(make()(*given, clamp=True), kept)
    assert torch.equal(make(keep_anchors_fixed=True)(*given, clamp=False), free)


def test_spread_widens_the_differences_between_untrained_images() -> None:
    given = [part[1:].expand(64, *part.shape[1:]) for part in inputs()]
    given[0] = torch.randn(64, 2, 4, 6, generator=generator(3))
    usual, wide = (
        make(trained=False, spread=spread)(*given).std(0).mean() for spread in (1.0, 4.0)
    )
    assert wide > 2 * usual


def test_noise_is_not_left_in_an_image_of_which_nothing_is_given() -> None:
    given, refiner = inputs(), make()
    torch.nn.init.zeros_(refiner.squeeze.weight)
    refined = refiner(*given)
    given[0] = given[0] + 1
    moved = refiner(*given)
    assert torch.equal(moved[1], refined[1])
    assert (moved[0] != refined[0]).all()


def test_a_stored_refiner_computes_the_same(tmp_path: Path) -> None:
    refiner = make(keep_anchors_fixed=True)
    save_image_refiner(tmp_path / "refiner", refiner)
    assert torch.equal(load_image_refiner(tmp_path / "refiner")(*inputs()), refiner(*inputs()))
    (tmp_path / "refiner/model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"expected config\.json .* of a refiner of images"):
        load_image_refiner(tmp_path / "refiner")


def test_a_refiner_of_other_images_is_refused() -> None:
    make().require((2, 4, 6), 5, 3)
    for other in (((2, 6, 4), 5, 3), ((2, 4, 6), 4, 3), ((2, 4, 6), 5, 2)):
        with pytest.raises(ValueError, match=r"of images \[2, 4, 6\] of 5 classes at 3 levels"):
            make().require(*other)


def test_impossible_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"image_drift\.refiner\.dim is 8, expected a multiple"):
        make(heads=3)
    with pytest.raises(ValueError, match=r"image_drift\.refiner\.patch is 4, expected a divisor"):
        make(patch=4)
