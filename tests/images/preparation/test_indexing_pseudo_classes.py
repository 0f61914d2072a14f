from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from braid.images.data.image_set import ImageSet, open_image_set
from braid.images.preparation.indexing import Listing, digits, pseudo_classes, write_stored
from tests.images.configs import images_config


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classified(images: ImageSet, K: int, seed: int = 0) -> np.ndarray:
    return pseudo_classes(images, images_config(K=K), seed)


def as_set(folder: Path, values: torch.Tensor) -> ImageSet:
    splits = [("train", "val", "train", "test")[n % 4] for n in range(len(values))]
    names = [str(n) for n in range(len(values))]
    folder.mkdir(exist_ok=True)
    listing = Listing(names, [-1] * len(values), [], splits)
    write_stored(folder, listing, [values], input_space="latent")
    return open_image_set(folder)


def blobs(count: int, K: int, side: int) -> tuple[torch.Tensor, np.ndarray]:
    """Images around K patterns, [count, 2, side, side], and which pattern each has."""
    patterns = torch.randn(K, 2, 4, 4, generator=draw(1)).repeat_interleave(side // 4, 2)
    patterns = patterns.repeat_interleave(side // 4, 3)
    labels = np.random.default_rng(0).integers(0, K, count)
    noise = torch.randn(count, 2, side, side, generator=draw(2))
    return patterns[labels] + 0.1 * noise, labels


@pytest.mark.parametrize("side", [4, 64])
def test_patterns_are_found_at_any_size(tmp_path: Path, side: int) -> None:
    values, truth = blobs(300, 5, side)
    classes = classified(as_set(tmp_path, values), 5)
    assert classes.dtype == np.int64
    assert classes.shape == (300,)
    assert adjusted_rand_score(truth, classes) == 1  # of held-out images, too


def test_held_out_images_do_not_move_the_classes(tmp_path: Path) -> None:
    values = torch.randn(200, 1, 4, 4, generator=draw())
    first = as_set(tmp_path / "first", values)
    spoilt = values.clone()
    spoilt[torch.from_numpy(np.setdiff1d(np.arange(200), first.indices("train")))] += 5
    second = as_set(tmp_path / "second", spoilt)
    train = first.indices("train")
    one, other = (classified(images, 7)[train] for images in (first, second))
    np.testing.assert_array_equal(one, other)
    assert (np.bincount(one, minlength=7) > 0).all()


def test_pseudo_classes_of_digits_resemble_the_digits(tmp_path: Path) -> None:
    listing, pixels = digits(images_config())
    write_stored(tmp_path, listing, [pixels], input_space="pixel")
    images = open_image_set(tmp_path, cache_mib=1)
    classes = classified(images, 20)
    np.testing.assert_array_equal(classes, classified(images, 20))
    assert not np.array_equal(classes, classified(images, 20, seed=1))
    assert normalized_mutual_info_score(images.labels, classes) > 0.65


def test_too_many_classes(tmp_path: Path) -> None:
    values = torch.randn(40, 1, 2, 2, generator=draw())
    images = as_set(tmp_path, values)
    assert len(np.unique(classified(images, 20))) == 20
    with pytest.raises(ValueError, match=r"images\.K is 21, expected 1 to 20, the number of train"):
        classified(images, 21)
    same = as_set(tmp_path, values[:2].repeat_interleave(20, 0))
    with pytest.raises(ValueError, match=r"images\.K is 5, but only 2 train samples differ"):
        classified(same, 5)
