"""Which pairs of a folder are good, and what is said of the others."""

import pytest
from PIL import Image

from braid.segmentation.config import PromptsConfig
from braid.segmentation.data.sa1b import open_images, read_manifest, read_record
from braid.segmentation.preparation import scan as module
from braid.segmentation.preparation.prompts import sample_prompts
from braid.segmentation.preparation.scan import (
    image_rows,
    jpeg_size,
    scan,
    source_folder,
    write_manifest,
)
from tests.segmentation.sa1b_files import change_json, write_pairs


def faults_of(folder):
    """What a scan that goes on says of a folder, as file: reason."""
    return {fault.file: fault.reason for fault in scan(folder, val=1, test=0, faults="skip").faults}


def test_images_are_ordered_by_number_and_the_last_are_held_out(tmp_path):
    pairs = scan(write_pairs(tmp_path, [100, 9, 20, 3]), val=1, test=2, faults="fatal")
    assert [entry.file for entry in pairs.images] == [f"sa_{n}.jpg" for n in (3, 9, 20, 100)]
    assert [entry.split for entry in pairs.images] == ["train", "test", "test", "val"]
    first = pairs.images[0]
    assert (first.id, first.width, first.height, first.annotations) == (3, 60, 40, 2)
    assert pairs.faults == ()


def test_other_files_do_not_matter(tmp_path):
    write_pairs(tmp_path, [1, 2])
    for name in ("README.txt", "sa_index.json", "thumb_1.jpg", "sa_1.txt"):
        (tmp_path / name).write_text("?")
    assert faults_of(tmp_path) == {}


def test_images_stay_where_they_are(tmp_path):
    images = write_pairs(tmp_path / "mine", [1, 2])
    out = tmp_path / "data"
    out.mkdir()
    write_manifest(out, scan(images, val=1, test=0, faults="fatal"), image_size=14)
    assert read_manifest(out).root == str(images)
    assert open_images(out, cache_mib=0).pixels(0).shape == (3, 14, 14)
    assert [path.name for path in out.iterdir()] == ["manifest.json"]


def test_images_beside_the_manifest_may_move_with_it(tmp_path):
    out = tmp_path / "partial"
    pairs = scan(write_pairs(out / "images", [1, 2]), val=1, test=0, faults="fatal")
    write_manifest(out, pairs, image_size=14)
    moved = out.rename(tmp_path / "final")
    assert read_manifest(moved).root == "images"
    assert open_images(moved, cache_mib=0).pixels(1).shape == (3, 14, 14)


def test_a_missing_half_is_named(tmp_path):
    write_pairs(tmp_path, [1, 2, 10, 11])
    (tmp_path / "sa_2.json").unlink()
    (tmp_path / "sa_10.jpg").unlink()
    pairs = scan(tmp_path, val=1, test=0, faults="skip")
    assert [entry.id for entry in pairs.images] == [1, 11]
    assert [(fault.file, fault.reason) for fault in pairs.faults] == [
        ("sa_2.json", "No such file or directory"),
        ("sa_10.jpg", "No such file or directory"),
    ]


def test_both_halves_may_be_broken(tmp_path):
    write_pairs(tmp_path, [1, 2, 3])
    (tmp_path / "sa_2.json").write_text("{")
    (tmp_path / "sa_2.jpg").write_bytes(b"")
    assert set(faults_of(tmp_path)) == {"sa_2.json", "sa_2.jpg"}


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-20])


def save_png(path):
    Image.open(path).save(path, format="PNG")


def shrink(path):
    Image.open(path).resize((30, 20)).save(path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (cut_off, "cut off"),
        (save_png, "is a PNG, expected a JPEG"),
        (shrink, "is 30 x 20 pixels, its JSON says 60 x 40"),
        (lambda path: path.write_bytes(b""), "not an image"),
        (lambda path: path.write_text("<html>"), "not an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), ""),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    ],
)
def test_a_broken_jpeg_is_noticed_without_decoding_it(tmp_path, monkeypatch, spoil, reason):
    write_pairs(tmp_path, [1, 2, 3])
    spoil(tmp_path / "sa_2.jpg")
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    faults = faults_of(tmp_path)
    assert list(faults) == ["sa_2.jpg"]
    assert reason in faults["sa_2.jpg"]


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path):
    write_pairs(tmp_path, [1, 2])
    with (tmp_path / "sa_1.jpg").open("ab") as file:
        file.write(b"\0" * 500)
    assert faults_of(tmp_path) == {}


def test_a_mask_of_another_size_spoils_its_image(tmp_path):
    write_pairs(tmp_path, [1, 2, 3])
    change_json(
        tmp_path / "sa_3.json",
        lambda content: content["annotations"][1]["segmentation"].update(counts="11"),
    )
    assert list(faults_of(tmp_path)) == ["sa_3.json"]


def test_an_empty_mask_is_a_fault_that_costs_no_image(tmp_path):
    write_pairs(tmp_path, [1, 2, 3])
    path = tmp_path / "sa_2.json"
    change_json(path, lambda c: c["annotations"][1]["segmentation"].update(counts="P[2"))
    pairs = scan(tmp_path, val=1, test=0, faults="skip")
    assert [(entry.id, entry.annotations) for entry in pairs.images] == [(1, 2), (2, 1), (3, 2)]
    (fault,) = pairs.faults
    assert fault.file == "sa_2.json"
    assert fault.reason.startswith("1 annotations with empty masks")


def test_a_folder_that_is_not_there_may_have_been_built_in(tmp_path):
    with pytest.raises(ValueError, match=r"^sam3\.data\.source: builtin: no such .*or built_in$"):
        source_folder("builtin")


def test_one_id_twice(tmp_path):
    write_pairs(tmp_path, [7, 8])
    for suffix in ("jpg", "json"):
        content = (tmp_path / f"sa_7.{suffix}").read_bytes().replace(b"sa_7.jpg", b"sa_07.jpg")
        (tmp_path / f"sa_07.{suffix}").write_bytes(content)
    assert faults_of(tmp_path) == {"sa_7.jpg": "has the same id as sa_07.jpg"}


def test_a_fault_may_be_fatal(tmp_path):
    write_pairs(tmp_path, [1, 2, 3])
    (tmp_path / "sa_2.json").unlink()
    cut_off(tmp_path / "sa_3.jpg")
    with pytest.raises(ValueError, match=r"sa_2\.json: No such file.*2 faults in all.*skip"):
        scan(tmp_path, val=1, test=0, faults="fatal")


def test_an_image_too_large_to_be_true(tmp_path, monkeypatch):
    write_pairs(tmp_path, [1])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"sa_1\.jpg: .*exceeds limit"):
        jpeg_size(tmp_path / "sa_1.jpg")


@pytest.mark.parametrize(("val", "test"), [(2, 0), (1, 1), (3, 2)])
def test_more_held_out_images_than_there_are(tmp_path, val, test):
    write_pairs(tmp_path, [1, 2])
    line = rf"sam3\.data\.val and sam3\.data\.test are {val} and {test}, expected less than"
    with pytest.raises(ValueError, match=line):
        scan(tmp_path, val=val, test=test, faults="skip")


def test_too_many_for_validation_are_refused_before_any_file_is_read(tmp_path, monkeypatch):
    write_pairs(tmp_path, [1, 2])
    monkeypatch.setattr(f"{scan.__module__}.read_record", None)
    with pytest.raises(ValueError, match=r"expected less than the 2 images"):
        scan(tmp_path, val=2, test=0, faults="skip")
    (tmp_path / "sa_2.json").write_text("{")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"expected less than the 1 images"):
        scan(tmp_path, val=1, test=0, faults="skip")


def test_folders_without_a_good_pair(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        scan(tmp_path / "nowhere", val=1, test=0, faults="skip")
    with pytest.raises(ValueError, match=r"no image can be read; expected sa_<id>\.jpg"):
        scan(tmp_path, val=1, test=0, faults="skip")
    for number in (1, 2):
        (tmp_path / f"sa_{number}.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no image can be read; the first fault: sa_1\.json"):
        scan(tmp_path, val=1, test=0, faults="skip")


def test_rows_count_images_and_annotations_by_split(tmp_path):
    write_pairs(tmp_path, [1, 2, 3])
    change_json(tmp_path / "sa_3.json", lambda content: content.update(exhaustive=True))
    change_json(
        tmp_path / "sa_1.json",
        lambda content: content["annotations"][0].update(noun_phrase="a cat"),
    )
    sketches = scan(tmp_path, val=1, test=1, faults="fatal").sketches
    columns = ("split", "images", "exhaustive", "annotations", "named", "masks_per_image")
    expected = [
        ("all", 3, 1, 6, 1, 2.0),
        ("train", 1, 0, 2, 1, 2.0),
        ("val", 1, 1, 2, 0, 2.0),
        ("test", 1, 0, 2, 0, 2.0),
    ]
    rows = image_rows(sketches)
    assert rows == [dict(zip(columns, row, strict=True)) for row in expected]


def test_every_file_is_read_once_for_all_that_prompts_are_made_of(tmp_path, monkeypatch):
    write_pairs(tmp_path, [1, 2, 3])
    read = []
    monkeypatch.setattr(
        module, "read_record", lambda path: (read.append(path), read_record(path))[1]
    )
    sketches = scan(tmp_path, val=1, test=1, faults="fatal").sketches
    config = PromptsConfig(
        kinds=("generic", "box"),
        generic="all",
        phrases=(),
        phrases_file="none",
        per_image=3,
        negative_fraction={"category": 0.4, "box": 0.4, "caption": 0.0},
        withheld=(),
    )
    prompts = sample_prompts(sketches, config, seed=0)
    whole = [read_record(path) for path in sorted(read)]
    assert len(read) == 3
    assert image_rows(sketches)[0]["annotations"] == 6
    assert not any(note.rle for n in range(3) for note in sketches.record(n).annotations)

    class Whole:
        def __len__(self):
            return len(whole)

        def record(self, index):
            return whole[index]

    assert sample_prompts(Whole(), config, seed=0) == prompts
