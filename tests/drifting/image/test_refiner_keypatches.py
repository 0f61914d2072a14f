"""Patches put back give the image; what is given at a level is given at every finer one."""

from __future__ import annotations

import pytest
import torch

from braid.common.rng import generator
from braid.drifting.image.refiner import (
    level_counts,
    nested_masks,
    patch_grid,
    patchify,
    per_pixel,
    unpatchify,
)

IDS = 50 + torch.arange(300)
COUNTS = [6, 4, 1, 0]


def masks(seed: int = 0) -> torch.Tensor:
    return nested_masks(COUNTS, (2, 3), IDS, seed)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_put_back_give_the_image(patch: int) -> None:
    images = torch.randn(2, 3, 4, 8, generator=generator(0))
    patches = patchify(images, patch)
    assert patches.shape == (2, 3 * patch**2, 4 // patch, 8 // patch)
    assert torch.equal(unpatchify(patches, patch), images)


def test_a_patch_holds_the_pixels_of_its_place() -> None:
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patch = patchify(images, 2)[1, :, 1, 2]
    assert torch.equal(patch, images[1, :, 2:4, 4:6].flatten())


def test_a_mask_of_patches_covers_their_pixels() -> None:
    mask = torch.rand(3, 2, 4, generator=generator(0)) < 0.5
    pixels = patchify(per_pixel(mask, 3).float(), 3)
    assert torch.equal(pixels, mask[:, None].float().expand(-1, 9, -1, -1))


def test_each_level_has_its_number_of_patches() -> None:
    assert masks().sum((2, 3)).unique(dim=1)[:, 0].tolist() == COUNTS
    assert masks().shape == (4, 300, 2, 3)


def test_what_is_given_at_a_level_is_given_at_every_finer_one() -> None:
    assert (masks()[1:] <= masks()[:-1]).all()


def test_each_image_has_its_own_patches_and_all_are_as_likely() -> None:
    single = masks()[2].flatten(1).float()
    assert len(single.unique(dim=0)) == 6
    assert (single.mean(0) - 1 / 6).abs().max() < 0.07


def test_masks_depend_on_seed_and_id_alone() -> None:
    assert torch.equal(nested_masks(COUNTS, (2, 3), IDS[7:9], 0), masks()[:, 7:9])
    assert not torch.equal(masks(1), masks())


def test_counts_begin_with_all_patches() -> None:
    assert level_counts([8, 4, 0], 16) == [16, 8, 4, 0]


@pytest.mark.parametrize("given", [[], [16, 4], [4, 8], [4, 4], [4, -1]])
def test_counts_that_do_not_descend_are_named(given: list[int]) -> None:
    with pytest.raises(ValueError, match=r"image_drift\.corruption\.given is .* below 16"):
        level_counts(given, 16)


def test_patches_that_do_not_tile_the_image_are_named() -> None:
    with pytest.raises(ValueError, match=r"image_drift\.refiner\.patch is 3, .* a divisor.* 8 x 6"):
        patch_grid((8, 6), 3)
    with pytest.raises(ValueError, match=r"image_drift\.refiner\.patch is 4"):
        patchify(torch.zeros(1, 1, 8, 6), 4)
