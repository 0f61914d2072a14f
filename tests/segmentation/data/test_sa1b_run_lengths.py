"""COCO's run lengths, against pycocotools and against loops over pixels."""

import numpy as np
import pytest
from pycocotools import mask as coco

from braid.segmentation.data.sa1b import (
    coverage,
    decode,
    encode,
    pixel_box,
    read_runs,
    tight_box,
)

SIZES = [(1, 1), (1, 9), (7, 5), (40, 60), (97, 31)]


def masks(height, width):
    """Noise of several densities, stripes and blocks; none is empty."""
    rng = np.random.default_rng([height, width])
    for density in (0.02, 0.5, 0.98):
        mask = rng.random((height, width)) < density
        mask[rng.integers(height), rng.integers(width)] = True
        yield mask
    block = np.zeros((height, width), bool)
    block[height // 3 : height // 3 + 20, width // 4 :] = True
    yield block
    yield np.ones((height, width), bool)


def slow_coverage(mask, size):
    """Each pixel handed out to the cells that it meets."""
    height, width = mask.shape
    covered = np.zeros((size, size))
    for y, x in zip(*mask.nonzero(), strict=True):
        for row in range(size):
            down = min((row + 1) / size, (y + 1) / height) - max(row / size, y / height)
            for column in range(size):
                across = min((column + 1) / size, (x + 1) / width) - max(column / size, x / width)
                covered[row, column] += max(down, 0) * max(across, 0) * size**2
    return covered


@pytest.mark.filterwarnings("ignore:__array__")  # of pycocotools's decoder
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_masks_survive(height, width):
    for mask in masks(height, width):
        rle = encode(mask)
        assert (decode(rle) == mask).all()
        assert (decode(rle) == coco.decode(rle)).all()
        assert (decode(rle | {"counts": rle["counts"].encode()}) == mask).all()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_runs_are_those_of_the_columns_end_to_end(height, width):
    for mask in masks(height, width):
        changes = np.flatnonzero(np.diff(mask.T.ravel())) + 1
        expected = np.diff([0, *changes, mask.size])
        runs = read_runs(encode(mask))
        assert runs.tolist() == [0] * int(mask[0, 0]) + expected.tolist()
        assert runs[1::2].sum() == coco.area(encode(mask))


def test_runs_longer_than_five_bits_and_shorter_than_the_one_before_the_last():
    mask = np.zeros((1000, 700), bool)
    mask[:, 300:] = True
    mask[3:5, 10] = True
    mask[500:, 650] = False
    assert read_runs(encode(mask)).tolist() == [10003, 2, 289995, 350500, 500, 49000]


def test_boxes():
    mask = np.zeros((40, 50), bool)
    mask[10:30, 5], mask[20, 5:45] = True, True
    assert pixel_box(encode(mask)) == (5, 10, 40, 20)
    assert tight_box(encode(mask)) == pytest.approx((0.1, 0.25, 0.9, 0.75))


@pytest.mark.parametrize("size", [1, 4, 7, 16])
def test_coverage_is_exact_where_cells_cut_pixels(size):
    for height, width in SIZES[:3]:
        for mask in masks(height, width):
            fractions = coverage(encode(mask), size)
            assert fractions.dtype == np.float32
            np.testing.assert_allclose(fractions, slow_coverage(mask, size), atol=2e-6)


def test_coverage_of_whole_blocks_is_their_mean():
    for mask in masks(40, 60):
        blocks = mask.reshape(10, 4, 10, 6).mean((1, 3))
        np.testing.assert_allclose(coverage(encode(mask), 10), blocks, atol=1e-6)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("", "compressed"),
        ("11`", "compressed"),  # the last number goes on
        ("1~1", "compressed"),
        ("1 1", "compressed"),
        ("1é1", "compressed"),
        ("oooooooo1", "without an end"),
        ("5", "5 pixels, expected 2 x 3"),
        ("33:", "expected 2 x 3"),
        (":@<", "a run of -16 pixels"),  # 10, -16 and 12, which are 6 in all
    ],
)
def test_what_is_no_mask(counts, message):
    with pytest.raises(ValueError, match=message):
        read_runs({"size": [2, 3], "counts": counts})
