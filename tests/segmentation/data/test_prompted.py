"""Batches of images, prompts and their truth."""

import shutil

import numpy as np
import pytest
import torch

from braid.segmentation.data import prompted as module
from braid.segmentation.data.prompted import PromptedImages, GroundTruth, images_of, open_prompted
from braid.segmentation.data.prompts import Prompt, write_prompts
from braid.segmentation.data.sa1b import open_images
from braid.segmentation.preparation.built_in import Annotated, write_annotated
from braid.segmentation.preparation.scan import scan, write_manifest
from braid.segmentation.sam3.sam3 import predict
from braid.segmentation.sam3.tokens import word_tokenizer
from tests.segmentation.tiny_models import IMAGE_SIZE, tiny_teacher

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
    made = tmp_path_factory.mktemp("sa1b")
    rng = np.random.default_rng(0)
    for identity in range(1, 5):
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        write_annotated(made, identity, Annotated(pixels, MASKS, NAMES, (), True))
    write_manifest(made, scan(made, val=1, faults="fatal"), image_size=IMAGE_SIZE)
    write_prompts(made, PROMPTS)
    return made


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
def test_truth_is_the_share_of_each_cell_that_is_covered(prompted, size):
    truth = prompted.truth([(0, 0), (0, 1), (0, 2), (0, 4), (3, 0)], size)
    assert truth.masks.shape == (5, 3, size, size)
    assert truth.masks.dtype == truth.boxes.dtype == truth.semantic.dtype == torch.float32
    assert truth.count.tolist() == [3, 2, 0, -1, 2]
    assert truth.known.tolist() == [True, True, True, False, True]
    assert truth.present.tolist() == [True, True, False, False, True]
    for row, answers in enumerate([(0, 1, 2), (0, 2), (), (), (2, 0)]):
        union = np.any([np.zeros((HEIGHT, WIDTH)), *(MASKS[index] for index in answers)], 0)
        expected = torch.from_numpy(by_samples(union, size)).float()
        torch.testing.assert_close(truth.semantic[row, 0], expected, atol=0.003, rtol=0)
        for slot, index in enumerate(answers):
            expected = torch.from_numpy(by_samples(MASKS[index], size)).float()
            torch.testing.assert_close(truth.masks[row, slot], expected, atol=0.003, rtol=0)
            rows, columns = MASKS[index].nonzero()
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            sides = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT])
            assert truth.boxes[row, slot].tolist() == pytest.approx(edges / sides)
        assert not truth.masks[row, len(answers) :].any()
        assert not truth.boxes[row, len(answers) :].any()


def test_truth_without_any_object_has_an_empty_slot(prompted):
    truth = prompted.truth([(0, 2), (0, 4)], 8)
    assert truth.masks.shape == (2, 1, 8, 8)
    assert not truth.masks.any()
    assert not truth.semantic.any()


def test_truth_is_taken_and_moved(prompted):
    truth = prompted.truth([(0, 0), (0, 1), (0, 2)], 8)
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
    first = kept.truth(pairs, 16)
    assert len(decoded) == 6  # three masks and two unions of the first image, one of the second
    again = kept.truth(pairs, 16)
    assert len(decoded) == 6
    kept.truth(pairs, 8)
    assert len(decoded) == 12
    decoded.clear()
    without = [never.truth(pairs, 16) for _ in range(2)]
    assert len(decoded) == 2 * 8
    for other in (again, *without):
        assert torch.equal(first.masks, other.masks)
        assert torch.equal(first.semantic, other.semantic)


def test_the_cache_of_masks_stays_within_its_room(folder):
    prompted = open_prompted(folder, cache_mib=4)
    for size in range(100, 200):
        prompted.truth([(0, 1)], size)
    held = sum(each.numel() for each in prompted._held.values())
    assert 0.9 * 2**20 < held <= 2**20


def tokenizer():
    return word_tokenizer(["red", "circle", "visual", "green", "star", "blue"], length=8)


def test_inputs_are_the_texts_and_boxes_of_the_prompts(prompted):
    pairs = [(1, 0), (0, 1), (0, 3)]
    images, owner = images_of(pairs)
    assert images == [1, 0]
    assert owner.tolist() == [0, 1, 1]
    inputs = prompted.inputs(pairs, owner, tokenizer(), 6)
    assert inputs.tokens.tolist() == [[0, 8, 7, 1, 1, 1], [0, 3, 4, 1, 1, 1], [0, 5, 1, 1, 1, 1]]
    assert inputs.attention.sum(1).tolist() == [4, 4, 3]
    assert inputs.owner is owner
    assert inputs.boxed.tolist() == [False, False, True]
    torch.testing.assert_close(inputs.boxes[2], torch.tensor(BOX))
    assert not inputs.boxes[:2].any()


def test_without_a_box_there_are_no_boxes(prompted):
    inputs = prompted.inputs([(0, 1)], torch.tensor([0]), tokenizer(), 6)
    assert inputs.boxes is inputs.boxed is None


def test_a_model_answers_a_batch_of_all_kinds(prompted):
    pairs = prompted.pairs("train")
    images, owner = images_of(pairs)
    inputs = prompted.inputs(pairs, owner, tokenizer(), 8)
    with torch.no_grad():
        answers = predict(tiny_teacher(), prompted.pixels(images), inputs)
    truth = prompted.truth(pairs, answers.masks.shape[-1])
    assert answers.masks.shape[0] == len(pairs) == len(truth.count)
    assert truth.masks.shape[-2:] == answers.masks.shape[-2:]


def test_files_that_do_not_belong_together_are_refused(folder, tmp_path):
    images = open_images(folder, cache_mib=0)
    with pytest.raises(ValueError, match=r"3 images have prompts, expected 4; run `dvc repro"):
        PromptedImages(images, PROMPTS[:3])
    far = Prompt("category", "red circle", None, (1, 7), True)
    prompted = PromptedImages(images, [[far], [], [], []])
    with pytest.raises(ValueError, match=r"sa_1\.jpg: annotation 7 of 3 is to answer a prompt"):
        prompted.truth([(0, 0)], 8)
    shutil.copy(folder / "manifest.json", tmp_path)
    with pytest.raises(ValueError, match=r"prompts\.json: No such file"):
        open_prompted(tmp_path, cache_mib=0)
