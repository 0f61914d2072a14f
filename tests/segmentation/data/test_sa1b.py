"""Annotations and pixels of single images."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from braid.segmentation.data import sa1b
from braid.segmentation.data.sa1b import normalize, open_images, read_pixels, read_record
from braid.segmentation.preparation.built_in import write_annotated
from braid.segmentation.preparation.scan import scan, write_manifest
from tests.segmentation.sa1b_files import MASKS, change_json, some_image, write_pairs


@pytest.fixture
def pair(tmp_path):
    """The JSON of a good pair."""
    return write_pairs(tmp_path, [7]) / "sa_7.json"


@pytest.fixture
def images(tmp_path):
    """Five pairs with a manifest; the last two are for validation."""
    write_pairs(tmp_path / "images", range(1, 6))
    pairs = scan(tmp_path / "images", val=2, test=0, faults="fatal")
    write_manifest(tmp_path, pairs, image_size=28)
    return tmp_path


def test_a_pair_has_the_keys_of_sa1b(pair):
    content = json.loads(pair.read_text())
    assert content["image"] == {
        "image_id": 7,
        "width": 60,
        "height": 40,
        "file_name": "sa_7.jpg",
    }
    first = content["annotations"][0]
    assert set(first) == {
        "id",
        "segmentation",
        "bbox",
        "area",
        "predicted_iou",
        "stability_score",
        "crop_box",
        "point_coords",
    }
    assert first["bbox"] == [0, 0, 30, 20]
    assert first["area"] == 600
    points = [entry["point_coords"] for entry in content["annotations"]]
    assert points == [[[14, 9]], [[47, 22]]]  # in the middle


def test_a_record_says_what_the_json_says(tmp_path):
    given = some_image(names=("red circle", None), captions=("a red circle",), exhaustive=True)
    write_annotated(tmp_path, 12, given)
    record = read_record(tmp_path / "sa_12.json")
    assert (record.id, record.file, record.width, record.height) == (12, "sa_12.jpg", 60, 40)
    assert [annotation.name for annotation in record.annotations] == ["red circle", None]
    assert (record.captions, record.exhaustive) == (("a red circle",), True)
    for annotation, mask in zip(record.annotations, MASKS, strict=True):
        assert (annotation.mask() == mask).all()
        assert annotation.coverage(4).mean() == pytest.approx(mask.mean(), abs=1e-6)
    assert record.annotations[1].box == pytest.approx((40 / 60, 10 / 40, 55 / 60, 35 / 40))


def test_what_sa1b_does_not_have_is_absent(pair):
    for key in ("captions", "exhaustive"):
        change_json(pair, lambda content, key=key: content.pop(key))
    record = read_record(pair)
    assert (record.captions, record.exhaustive) == ((), False)
    assert [annotation.name for annotation in record.annotations] == [None, None]


def test_an_image_may_be_exhaustive_in_some_phrases(pair):
    change_json(pair, lambda content: content.update(exhaustive=["dog", "a cat"]))
    record = read_record(pair)
    assert (record.exhaustive, record.complete) == (False, ("dog", "a cat"))


def test_a_box_that_is_a_pixel_short_is_that_of_the_mask(pair):
    change_json(pair, lambda content: content["annotations"][0].update(bbox=[0.0, 0.0, 29.0, 19.0]))
    assert read_record(pair).annotations[0].box == pytest.approx((0, 0, 0.5, 0.5))


def test_an_image_without_objects(tmp_path):
    write_annotated(tmp_path, 1, some_image(masks=(), names=()))
    record = read_record(tmp_path / "sa_1.json")
    assert (record.annotations, record.exhaustive) == ((), False)


def test_an_annotation_without_a_pixel_is_left_out_and_the_image_is_not(pair):
    change_json(pair, lambda c: first(c)["segmentation"].update(counts="P[2"))
    record = read_record(pair)
    assert record.empty == 1
    assert [annotation.box for annotation in record.annotations] == [
        pytest.approx((40 / 60, 10 / 40, 55 / 60, 35 / 40))
    ]


def test_zeros_before_an_id_are_allowed(pair):
    padded = pair.with_name("sa_007.json")
    pair.rename(padded)
    change_json(padded, lambda content: content["image"].update(file_name="sa_007.jpg"))
    assert read_record(padded).id == 7


def first(content):
    return content["annotations"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("image"), "image: Field required"),
        (lambda c: c["image"].pop("width"), r"image\.width: Field required"),
        (lambda c: c["image"].update(width="60"), r"image\.width: .*integer"),
        (lambda c: c["image"].update(width=0), r"image\.width: .*greater than 0"),
        (lambda c: c["image"].update(image_id=8), "image_id 8, expected that of the file's name"),
        (lambda c: c["image"].update(file_name="../sa_7.jpg"), "file_name '../sa_7.jpg'"),
        (lambda c: c["image"].update(file_name="sa_8.jpg"), "expected sa_7.jpg"),
        (lambda c: c.update(annotations=None), "annotations: "),
        (lambda c: first(c).pop("bbox"), r"annotations\.0\.bbox: Field required"),
        (lambda c: first(c).update(bbox=[0, 0, 1]), r"annotations\.0\.bbox"),
        (lambda c: first(c).update(bbox=[0, 0, float("nan"), 1]), r"bbox\.2: .*finite"),
        (lambda c: first(c).update(bbox=[50, 0, 12, 1]), "bbox .* leaves the image"),
        (lambda c: first(c).update(bbox=[-1, 0, 12, 1]), "bbox .* leaves the image"),
        (lambda c: first(c).update(noun_phrase=""), "noun_phrase"),
        (lambda c: first(c)["segmentation"].update(counts="0"), "hold 0 pixels, expected 40 x 60"),
        (lambda c: first(c)["segmentation"].update(counts=[1, 2]), "counts: .*string"),
        (lambda c: first(c)["segmentation"].update(size=[60, 40]), r"size \[60, 40\], image"),
        (lambda c: c.update(captions=[1]), "captions"),
        (lambda c: c.update(exhaustive="no"), "exhaustive"),
    ],
)
def test_a_broken_json_gets_one_line(pair, change, message):
    change_json(pair, change)
    with pytest.raises(ValueError, match=rf"sa_7\.json: .*{message}") as caught:
        read_record(pair)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"image": ', b"\xff\xfe", b"[]", b"[" * 100_000])
def test_what_is_no_json(pair, content):
    pair.write_bytes(content)
    with pytest.raises(ValueError, match=r"sa_7\.json: ") as caught:
        read_record(pair)
    assert "\n" not in str(caught.value)


# ---- Pixels ----------------------------------------------------------------------------------


def save_jpeg(path, pixels):
    Image.fromarray(pixels).save(path, quality=95)
    return path


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_pixels_are_squashed_to_a_square(tmp_path):
    pixels = np.zeros((50, 90, 3), np.uint8)
    pixels[:, 45:, 0] = 200
    read_back = read_pixels(save_jpeg(tmp_path / "a.jpg", pixels), 30).int()
    assert read_back.shape == (3, 30, 30)
    assert (read_back[0, :, :13] < 10).all()
    assert (read_back[0, :, 17:] - 200).abs().max() < 10


def test_pixels_agree_with_sam3s_processor(tmp_path):
    from braid.common.torchvision import mend_torchvision

    mend_torchvision()
    from transformers.models.sam3.image_processing_sam3 import Sam3ImageProcessor

    path = save_jpeg(tmp_path / "a.jpg", noise(97, 71))
    processor = Sam3ImageProcessor(size={"height": 56, "width": 56})
    expected = processor(Image.open(path), return_tensors="pt")["pixel_values"][0]
    read_back = normalize(read_pixels(path, 56))
    assert read_back.dtype == torch.float32
    assert (read_back - expected).abs().max() <= 1.01 * 2 / 255  # one step of a byte
    assert (read_back - expected).abs().mean() < 3e-3


def test_grey_images_get_three_channels(tmp_path):
    path = save_jpeg(tmp_path / "a.jpg", noise(20, 20)[..., 0])
    red, green, blue = read_pixels(path, 14)
    assert torch.equal(red, green)
    assert torch.equal(red, blue)


def test_normalised_pixels_reach_from_minus_one_to_one():
    read_back = normalize(torch.tensor([0, 51, 255], dtype=torch.uint8))
    torch.testing.assert_close(read_back, torch.tensor([-1, -0.6, 1]))


def test_a_students_affine_step_is_as_good_as_preprocessing_twice(tmp_path):
    from braid.common.torchvision import mend_torchvision

    mend_torchvision()
    from braid.segmentation.student.student import normalization

    pixels = read_pixels(save_jpeg(tmp_path / "a.jpg", noise(40, 40)), 28)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    gain, offset = normalization("repvit_m0_9")
    read_back = gain * normalize(pixels) + offset
    assert (read_back - (pixels.double() / 255 - mean) / std).abs().max() < 1e-6


# ---- Images of a manifest --------------------------------------------------------------------


def test_images_of_a_manifest(images):
    opened = open_images(images, cache_mib=1)
    assert (len(opened), opened.size) == (5, 28)
    assert opened.indices("train").tolist() == [0, 1, 2]
    assert opened.indices("val").tolist() == [3, 4]
    assert opened.record(3).id == 4
    assert torch.equal(opened.pixels(3), read_pixels(images / "images/sa_4.jpg", 28))


@pytest.mark.parametrize(("room", "decoded"), [(0, 20), (2 * 3 * 28**2, 14), (2**20, 5)])
def test_the_cache_keeps_what_it_has_room_for(images, monkeypatch, room, decoded):
    reads = []
    read = sa1b.read_pixels
    monkeypatch.setattr(sa1b, "read_pixels", lambda *of: (reads.append(of), read(*of))[1])
    opened = open_images(images, cache_mib=0)
    opened._cache = room
    for _ in range(4):
        read_back = [opened.pixels(index) for index in range(5)]
    assert len(reads) == decoded
    assert torch.equal(read_back[4], read(images / "images/sa_5.jpg", 28))


def test_records_take_their_share_of_the_cache(images):
    opened = open_images(images, cache_mib=0)
    opened._cache = 3 * 1024  # of two annotations, and no more
    assert opened.record(0) is opened.record(0)
    assert opened.record(1) is not opened.record(1)
    assert opened.record(1) == opened.record(1)


def test_an_image_that_broke_after_the_survey(images):
    path = images / "images/sa_1.jpg"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"sa_1\.jpg: cannot be decoded"):
        open_images(images, cache_mib=1).pixels(0)
    (images / "images/sa_1.json").unlink()
    with pytest.raises(ValueError, match=r"sa_1\.json: No such file"):
        open_images(images, cache_mib=1).record(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("root"), "root: Field required"),
        (lambda c: c.update(images=[]), "images: "),
        (lambda c: c["images"][0].update(file="../../etc/sa_1.jpg"), r"images\.0\.file"),
        (lambda c: c["images"][0].update(split="dev"), r"images\.0\.split"),
    ],
)
def test_a_broken_manifest_gets_one_line(images, change, message):
    change_json(images / "manifest.json", change)
    with pytest.raises(ValueError, match=rf"manifest\.json: {message}.*dvc repro"):
        open_images(images, cache_mib=1)


def test_no_manifest(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json: No such file.*dvc repro"):
        open_images(tmp_path, cache_mib=1)
