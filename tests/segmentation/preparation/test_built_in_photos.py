"""Crops of installed photos, and the objects in them."""

import numpy as np
import pytest

from braid.segmentation.preparation import built_in as photos
from braid.segmentation.preparation.built_in import TILES, Photo, crop_photo, segments


def numbers_of(file):
    return [number for number, (photo, _) in enumerate(TILES) if file in photo.file]


def crops_of(file, size=64):
    return [crop_photo(number, size=size) for number in numbers_of(file)]


def test_all_coins_have_masks_and_they_are_lighter_than_what_is_around():
    _, labels = photos._read(TILES[numbers_of("coins")[0]][0])
    assert labels.max() == 24
    for crop in crops_of("coins"):
        assert set(crop.names) == {"coin"}
        background = crop.pixels[~np.any(crop.masks, axis=0)].mean()
        for mask in crop.masks:
            assert crop.pixels[mask].mean() > background + 25


def test_an_image_is_exhaustive_unless_a_fragment_has_no_mask(monkeypatch):
    assert all(crop.exhaustive for crop in crops_of("horse"))
    monkeypatch.setattr(photos, "_FRAGMENT", 300)
    crops = crops_of("coins")
    assert any(not crop.exhaustive for crop in crops)
    assert all(mask.sum() >= 300 for crop in crops for mask in crop.masks)


def test_the_horse():
    (horse,) = crops_of("horse", size=112)
    assert horse.names == ("horse",)
    assert 0.1 < horse.masks[0].mean() < 0.5
    assert horse.pixels[horse.masks[0]].mean() < 60
    assert horse.pixels[~horse.masks[0]].mean() > 230


@pytest.mark.parametrize("file", ["brick", "grass", "gravel"])
def test_surfaces_are_negative_images(file):
    for crop in crops_of(file):
        assert (crop.masks, crop.names, crop.exhaustive) == ((), (), True)


def test_segments_have_no_names_and_are_not_all_there_is():
    for crop in crops_of("astronaut", size=112):
        assert 3 < len(crop.masks) < 25
        assert set(crop.names) == {None}
        assert not crop.exhaustive
        assert np.sum(crop.masks, axis=0).max() == 1


def test_backgrounds_and_contours_are_no_segments():
    pixels = np.full((100, 100, 3), 30, np.uint8)
    pixels[20:50, 20:60] = (200, 40, 40)
    pixels[70:74, 5:95] = (40, 200, 40)
    (label,) = set(np.unique(segments(pixels))) - {0}
    segment = segments(pixels) == label
    assert segment[25:45, 25:55].all()
    assert not segment[70:74].any()
    assert segment.mean() < 0.15


def test_crops_of_a_photo_have_no_pixel_in_common():
    image, _ = photos._read(TILES[numbers_of("china")[0]][0])
    crops = crops_of("china", size=1000)
    halves = (crops[:3], crops[3:])
    joined = np.concatenate([np.hstack([crop.pixels for crop in half]) for half in halves])
    assert (joined == np.asarray(image)[: joined.shape[0], : joined.shape[1]]).all()
    assert len(set(TILES)) == len(TILES)


def test_the_shorter_side_has_the_given_size_and_nothing_is_enlarged():
    for number in numbers_of("coffee"):
        assert min(crop_photo(number, size=50).pixels.shape[:2]) == 50
        assert crop_photo(number, size=5000).pixels.shape == (200, 200, 3)


def test_a_photo_that_is_not_installed(monkeypatch):
    for file in ("skimage/data/none.png", "no_such_package/a.png"):
        monkeypatch.setattr(photos, "TILES", [(Photo(file, 1, 1), 0)])
        with pytest.raises(ValueError, match=rf"{file}: not installed"):
            crop_photo(0, size=20)
