"""From predictions to masks on a picture, and the files that are written."""

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from torch.nn import functional as F

from braid.segmentation.data.sa1b import normalize, read_pixels
from braid.segmentation.release.pictures import (
    Found,
    as_json,
    drawn,
    found_of,
    relative,
    squashed,
    upright,
)

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))


def some_found(score=0.3):
    draw = np.random.default_rng(1)
    masks = draw.normal(size=(3, 8, 8)).astype(np.float32)
    boxes = np.array([[0, 0, 0.5, 0.5], [0.1, 0.2, 0.3, 1], [0, 0, 1, 1]], np.float32)
    logits = np.array([0.0, 3.0, -3.0], np.float32)
    return masks, found_of("star", masks, boxes, logits, 2.0, PICTURE.size, score)


def test_sure_queries_are_found_in_order_on_the_grid_of_the_picture():
    masks, found = some_found()
    present = 1 / (1 + np.exp(-2.0))
    assert found.presence == pytest.approx(present)
    assert found.scores == pytest.approx([present / (1 + np.exp(-3.0)), present / 2])
    assert found.boxes[0] == pytest.approx([6, 8, 18, 40])
    expected = F.interpolate(
        torch.from_numpy(masks)[None, [1, 0]], (40, 60), mode="bilinear", align_corners=False
    )
    away = expected[0].abs() > 1e-4  # from where rounding decides
    assert torch.equal(torch.from_numpy(found.masks)[away], (expected[0] > 0)[away])
    assert len(some_found(score=0.99)[1].scores) == 0


def test_a_picture_is_squashed_as_the_images_of_the_training(tmp_path):
    """One so large that its decoder could leave frequencies out."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "sa_1.jpg", quality=92)
    expected = normalize(read_pixels(tmp_path / "sa_1.jpg", 28))
    given = squashed(upright(Image.open(tmp_path / "sa_1.jpg")), 28)
    assert np.array_equal(given[0], expected.numpy())


def test_a_picture_stands_upright_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    PICTURE.save(tmp_path / "turned.jpg", exif=exif)
    assert upright(Image.open(tmp_path / "turned.jpg")).size == (40, 60)


def test_a_box_is_relative_to_the_picture_and_within_it():
    assert relative((15, 10, 45, 30), PICTURE) == pytest.approx((0.5, 0.5, 0.5, 0.5))
    for wrong in ((0, 0, 61, 10), (5, 5, 5, 9), (-1, 0, 5, 5)):
        with pytest.raises(ValueError, match="expected x0 < x1 and y0 < y1 within 60 x 40"):
            relative(wrong, PICTURE)


def test_the_file_says_what_was_found():
    _, found = some_found()
    content = as_json("a.jpg", PICTURE, [found])
    assert (content["picture"], content["width"], content["height"]) == ("a.jpg", 60, 40)
    (prompt,) = content["prompts"]
    assert prompt["prompt"] == "star"
    for entry, mask, score in zip(prompt["objects"], found.masks, found.scores, strict=True):
        assert np.array_equal(coco.decode(entry["segmentation"]).astype(bool), mask)
        assert entry["score"] == pytest.approx(score, abs=1e-6)


def test_masks_are_drawn_and_the_rest_of_the_picture_stays():
    mask = np.zeros((1, 40, 60), bool)
    mask[:, 5:15, 10:30] = True
    ones = np.ones(1, np.float32)
    found = Found("star", 1.0, ones, np.array([[10, 5, 30, 15]], np.float32), mask)
    picture = np.asarray(drawn(PICTURE, [found]))
    before = np.asarray(PICTURE).repeat(7, 0).repeat(7, 1)  # to 420 pixels across
    assert picture.shape == (280 + 16, 420, 3)  # a legend below
    assert np.array_equal(picture[120:280], before[120:])
    assert (picture[42:98, 77:203] != before[42:98, 77:203]).any(-1).mean() > 0.9
