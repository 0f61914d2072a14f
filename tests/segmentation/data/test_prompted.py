"""Images, prompts and their ground truth; the file of prompts."""

import json
import shutil

import numpy as np
import pytest
import torch

from braid.segmentation.data import prompted as module
from braid.segmentation.data.prompted import (
    GroundTruth,
    Prompt,
    PromptedImages,
    image_batches,
    images_of,
    open_prompted,
    prompt_batch,
    read_prompts,
    write_prompts,
)
from braid.segmentation.data.sa1b import open_images
from braid.segmentation.preparation.built_in import Annotated, write_annotated
from braid.segmentation.preparation.scan import scan, write_manifest
from tests.segmentation.tiny_models import IMAGE_SIZE

HEIGHT, WIDTH = 50, 70


def mask(top, bottom, left, right):
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[top:bottom, left:right] = True
    return drawn


MASKS = (mask(0, 25, 0, 35), mask(10, 40, 20, 63), mask(3, 50, 7, 10))
NAMES = ("red circle", "blue star", "red circle")
BOX = (0.25, 0.25, 0.5, 0.5)
PROMPTS = [
    [
        Prompt("generic", "objects in the image", None, (0, 1, 2), True),
        Prompt("category", "red circle", None, (0, 2), False),
        Prompt("category", "green star", None, (), True),
        Prompt("box", "visual", BOX, (1,), True),
        Prompt("caption", "the sky", None, None, True),
    ],
    [Prompt("category", "blue star", None, (1,), True)],
    [],
    [Prompt("box", "visual", BOX, (2, 0), False), Prompt("generic", "all", None, (0,), True)],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images of the same three objects; the last one is for validation."""
    folder = tmp_path_factory.mktemp("sa1b")
    rng = np.random.default_rng(0)
    for identity in range(1, 5):
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        write_annotated(folder, identity, Annotated(pixels, MASKS, NAMES, (), True))
    write_manifest(folder, scan(folder, val=1, test=0, faults="fatal"), image_size=IMAGE_SIZE)
    write_prompts(folder, PROMPTS)
    return folder


@pytest.fixture
def prompted(folder):
    return open_prompted(folder, cache_mib=8)


def test_pairs_are_those_of_a_split_that_pass_the_filters(prompted):
    train = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]
    assert prompted.pairs("train") == train
    assert prompted.pairs("val") == [(3, 0), (3, 1)]
    assert prompted.pairs("train", labeled=False) == [(0, 1)]
    assert prompted.pairs("val", labeled=True) == [(3, 1)]
    assert prompted.pairs("train", known=True) == [pair for pair in train if pair != (0, 4)]
    assert prompted.pairs("train", known=False) == [(0, 4)]
    assert prompted.prompt((3, 0)) == PROMPTS[3][0]


def test_pixels_are_the_images_as_the_teacher_wants_them(prompted):
    pixels = prompted.pixels([2, 0, 2])
    assert pixels.shape == (3, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels[0], pixels[2])
    torch.testing.assert_close(pixels[1], prompted.images.pixels(0) / 255 * 2 - 1)
    assert pixels.min() < -0.5
    assert pixels.max() > 0.5


def by_samples(drawn, size):
    """The coverage of a mask by counting, on a grid that pixels and cells divide."""
    fine = drawn.repeat(size, 0).repeat(size, 1)  # [h g, w g]
    return fine.reshape(size, HEIGHT, size, WIDTH).mean((1, 3))


@pytest.mark.parametrize("size", [1, 7, 16, 64])
def test_ground_truth_is_the_covered_fraction_of_each_cell(prompted, size):
    truth = prompted.ground_truth([(0, 0), (0, 1), (0, 2), (0, 4), (3, 0)], size)
    assert truth.masks.shape == (5, 3, size, size)
    assert truth.masks.dtype == truth.boxes.dtype == truth.semantic.dtype == torch.float32
    assert truth.count.tolist() == [3, 2, 0, -1, 2]
    assert truth.known.tolist() == [True, True, True, False, True]
    assert truth.present.tolist() == [True, True, False, False, True]
    for row, targets in enumerate([(0, 1, 2), (0, 2), (), (), (2, 0)]):
        union = np.any([np.zeros((HEIGHT, WIDTH)), *(MASKS[index] for index in targets)], 0)
        expected = torch.from_numpy(by_samples(union, size)).float()
        torch.testing.assert_close(truth.semantic[row, 0], expected, atol=0.003, rtol=0)
        for slot, index in enumerate(targets):
            expected = torch.from_numpy(by_samples(MASKS[index], size)).float()
            torch.testing.assert_close(truth.masks[row, slot], expected, atol=0.003, rtol=0)
            rows, columns = MASKS[index].nonzero()
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            sides = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
            assert truth.boxes[row, slot].tolist() == pytest.approx(edges / sides)
        assert not truth.masks[row, len(targets) :].any()
        assert not truth.boxes[row, len(targets) :].any()


def test_ground_truth_without_any_object_has_an_empty_slot(prompted):
    truth = prompted.ground_truth([(0, 2), (0, 4)], 8)
    assert truth.masks.shape == (2, 1, 8, 8)
    assert not truth.masks.any()
    assert not truth.semantic.any()


def test_ground_truth_is_taken_and_moved(prompted):
    truth = prompted.ground_truth([(0, 0), (0, 1), (0, 2)], 8)
    part = truth.take(torch.tensor([1, 2])).to(torch.device("cpu"))
    assert isinstance(part, GroundTruth)
    for name in ("masks", "boxes", "count", "semantic"):
        assert torch.equal(getattr(part, name), getattr(truth, name)[1:])


def test_masks_are_decoded_once_where_there_is_room(folder, monkeypatch):
    decoded = []
    real = module.coverage
    monkeypatch.setattr(module, "coverage", lambda *args: (decoded.append(1), real(*args))[1])
    kept, never = open_prompted(folder, cache_mib=4), open_prompted(folder, cache_mib=0)
    pairs = [(0, 0), (0, 1), (1, 0)]
    first = kept.ground_truth(pairs, 16)
    assert len(decoded) == 6  # three masks and two unions of the first image, one of the second
    again = kept.ground_truth(pairs, 16)
    assert len(decoded) == 6
    kept.ground_truth(pairs, 8)
    assert len(decoded) == 12
    decoded.clear()
    without = [never.ground_truth(pairs, 16) for _ in range(2)]
    assert len(decoded) == 2 * 8
    for other in (again, *without):
        assert torch.equal(first.masks, other.masks)
        assert torch.equal(first.semantic, other.semantic)


def test_the_cache_of_masks_stays_within_its_room(folder):
    prompted = open_prompted(folder, cache_mib=4)
    for size in range(100, 200):
        prompted.ground_truth([(0, 1)], size)
    size = sum(mask.numel() for mask in prompted._masks.values())
    assert 0.9 * 2**20 < size <= 2**20


def test_files_that_do_not_belong_together_are_refused(folder, tmp_path):
    images = open_images(folder, cache_mib=0)
    with pytest.raises(ValueError, match=r"3 images have prompts, expected 4; run `dvc repro"):
        PromptedImages(images, PROMPTS[:3])
    far = Prompt("category", "red circle", None, (1, 7), True)
    prompted = PromptedImages(images, [[far], [], [], []])
    with pytest.raises(ValueError, match=r"sa_1\.jpg: annotation 7 of 3 is the target of a prompt"):
        prompted.ground_truth([(0, 0)], 8)
    shutil.copy(folder / "manifest.json", tmp_path)
    with pytest.raises(ValueError, match=r"prompts\.json: No such file"):
        open_prompted(tmp_path, cache_mib=0)


def test_a_batch_has_each_image_once_and_knows_whose_prompt_it_is(prompted):
    pairs = [(1, 0), (0, 1), (0, 3)]
    assert images_of(pairs)[0] == [1, 0]
    prompts, owner, pixels = prompt_batch(prompted, pairs)
    assert prompts == [PROMPTS[1][0], PROMPTS[0][1], PROMPTS[0][3]]
    assert owner.tolist() == [0, 1, 1]
    assert torch.equal(pixels, prompted.pixels([1, 0]))


FIVE = [(image, place) for image in (4, 7, 9, 11, 12) for place in range(3)]


def test_image_batches_hold_all_prompts_of_some_images():
    groups = image_batches(FIVE, 2)
    assert [len(images_of(group)[0]) for group in groups] == [2, 3]  # none is left alone
    assert [pair for group in groups for pair in group] == FIVE
    for images, sizes in ((1, [1] * 5), (3, [3, 2]), (4, [5]), (9, [5])):
        assert [len(images_of(group)[0]) for group in image_batches(FIVE, images)] == sizes
    assert image_batches(FIVE[:1], 2) == [FIVE[:1]]
    assert image_batches([], 2) == []


def test_prompts_are_read_as_they_were_written(tmp_path):
    write_prompts(tmp_path, PROMPTS)
    written = (tmp_path / "prompts.json").read_bytes()
    assert read_prompts(tmp_path) == PROMPTS
    write_prompts(tmp_path, read_prompts(tmp_path))
    assert (tmp_path / "prompts.json").read_bytes() == written
    assert len(written.splitlines()) == 6


GOOD = {"kind": "box", "text": "visual", "box": [0.5, 0.5, 0.2, 0.2], "targets": [0]}
GOOD["labeled"] = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "point"}, r"0\.0\.kind: Input should be 'generic'"),
        ({"kind": "caption"}, "a box prompt has a box, and no other kind has"),
        ({"box": None}, "a box prompt has a box"),
        ({"box": [0.5, 0.5, 0.2]}, r"0\.0\.box\.3: Field required"),
        ({"box": [0.5, 0.5, 0.2, 1.2]}, r"0\.0\.box\.3: Input should be less than or equal to 1"),
        ({"box": [0.5, 0.5, 0.2, float("nan")]}, r"0\.0\.box\.3"),
        ({"targets": [-1]}, r"0\.0\.targets\.0"),
        ({"targets": "all"}, r"0\.0\.targets"),
        ({"text": None}, r"0\.0\.text: Input should be a valid string"),
        ({"labeled": 1}, r"0\.0\.labeled"),
        ({"label": 1}, r"0\.0\.label: Unexpected"),
    ],
)
def test_a_broken_file_is_refused_in_a_line(tmp_path, change, message):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([[{**GOOD, **change}]]))
    with pytest.raises(ValueError, match=message) as caught:
        read_prompts(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{}", "[[", "[1]"])
def test_no_list_of_prompts_is_refused_in_a_line(tmp_path, content):
    if content is not None:
        (tmp_path / "prompts.json").write_text(content)
    with pytest.raises(ValueError, match=r"prompts\.json: ") as caught:
        read_prompts(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_is_read_once_for_all_objects_of_its_prompts(folder, monkeypatch):
    """Without RAM to keep records, as at full size."""
    uncached = open_prompted(folder, cache_mib=0)
    read = []
    original = uncached.images.record
    monkeypatch.setattr(uncached.images, "record", lambda n: (read.append(n), original(n))[1])
    uncached.ground_truth([(0, 0), (0, 1), (1, 0), (0, 3)], 8)
    assert read == [0, 1]
