"""The built-in set of images as files."""

import numpy as np
import pytest

from braid.segmentation.config import ShapesConfig
from braid.segmentation.data.sa1b import read_pixels, read_record
from braid.segmentation.preparation.built_in import TILES, draw_scene, write_built_in
from braid.segmentation.preparation.scan import scan

SMALL = ShapesConfig(scenes=20, photos=5, most_shapes=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    written = tmp_path_factory.mktemp("built_in")
    write_built_in(written, SMALL, size=48, seed=0)
    return written


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def is_scene(folder, identity):
    return bool(read_record(folder / f"sa_{identity}.json").captions)


def test_a_survey_finds_no_fault(folder):
    images = scan(folder, val=6, test=0, faults="fatal").images
    assert [entry.id for entry in images] == list(range(1, 26))
    assert sum(entry.annotations for entry in images) > 40


def test_photos_stand_at_equal_distances(folder):
    photos = [identity for identity in range(1, 26) if not is_scene(folder, identity)]
    assert photos == [5, 10, 15, 20, 25]


def test_files_show_what_was_drawn(folder):
    drawn = draw_scene(np.random.default_rng([0, 1, 0]), size=48, most_shapes=3)
    record = read_record(folder / "sa_1.json")
    assert [annotation.name for annotation in record.annotations] == list(drawn.names)
    for annotation, mask in zip(record.annotations, drawn.masks, strict=True):
        assert (annotation.mask() == mask).all()
    if drawn.pixels.shape[:2] == (48, 48):
        pixels = read_pixels(folder / "sa_1.jpg", 48).permute(1, 2, 0).numpy().astype(int)
        assert np.abs(pixels - drawn.pixels).mean() < 6


def test_same_seed_same_bytes(folder, tmp_path):
    write_built_in(tmp_path / "again", SMALL, size=48, seed=0)
    assert files(tmp_path / "again") == files(folder)
    write_built_in(tmp_path / "other", SMALL, size=48, seed=1)
    other = files(tmp_path / "other")
    assert sum(other[name] == content for name, content in files(folder).items()) <= 2


def test_no_photos(tmp_path):
    write_built_in(tmp_path, SMALL.model_copy(update={"photos": 0}), size=48, seed=0)
    assert all(is_scene(tmp_path, identity) for identity in range(1, 21))


def test_more_photos_than_there_are(tmp_path):
    with pytest.raises(ValueError, match=rf"shapes\.photos is 900, expected at most {len(TILES)}"):
        write_built_in(tmp_path, SMALL.model_copy(update={"photos": 900}), size=48, seed=0)
