from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from braid.images.data import image_set as module
from braid.images.data.image_set import ImageSet, open_image_set
from braid.images.preparation.indexing import (
    Listing,
    counts,
    properties,
    require_conditions,
    scan_folder,
    set_conditions,
    write_linked,
    write_stored,
)
from tests.images.configs import folder_config
from tests.images.picture_folder import CLASSES, write_folder, write_picture

VALUES = torch.randn(25, 2, 3, 4, generator=torch.Generator().manual_seed(0)).half().float()
SPLITS = [("train", "val", "test", "train", "train")[place % 5] for place in range(25)]
LISTING = Listing([f"{n}" for n in range(25)], [n % 4 for n in range(25)], list("abcd"), SPLITS)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Images in three shards, written in chunks that fit none of them."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_stored(folder, LISTING, VALUES.split(7), input_space="latent", per_shard=10)
    return folder


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    folder, root = tmp_path / "data", write_folder(tmp_path / "images")
    folder.mkdir()
    config = folder_config(root, size=6, crop="random_resized")
    write_linked(folder, scan_folder(config, outside=tmp_path / "repo"), config)
    return folder


@pytest.mark.parametrize("cache_mib", [0, 1])
def test_images_come_in_the_order_of_the_indices(stored: Path, cache_mib: int) -> None:
    images = open_image_set(stored, cache_mib=cache_mib)
    for indices in ([3, 24, 3, 0, 11], np.array([9, 10]), torch.arange(25).flip(0), []):
        batch = images.images(indices)
        assert batch.dtype == torch.float32
        assert torch.equal(batch, VALUES[torch.as_tensor(indices, dtype=torch.long)])


def test_what_a_set_says_of_itself(stored: Path) -> None:
    images = open_image_set(stored)
    assert len(list(stored.glob("*.safetensors"))) == 3
    assert (len(images), images.shape, images.input_space) == (25, (2, 3, 4), "latent")
    assert (images.classes, images.class_names) == (4, list("abcd"))
    assert images.labels.tolist() == images.conditions.tolist() == LISTING.labels
    assert images.labels.dtype == images.conditions.dtype == torch.long
    assert images.indices("val").tolist() == [1, 6, 11, 16, 21]
    assert images.indices("val", 3).tolist() == [1, 11, 21]
    assert images.indices("val", 9).tolist() == [1, 6, 11, 16, 21]
    assert sum(len(images.indices(split)) for split in ("train", "val", "test")) == 25
    assert counts(images, 3) == {"train": 15, "val": 5, "test": 5, "classes": 4, "faults": 3}
    assert properties(images) == {
        **{"images": 25, "channels": 2, "height": 3, "width": 4},
        "smallest_class": min(np.bincount(images.labels[images.indices("train")])),
    }


def test_conditions_can_be_replaced(stored: Path) -> None:
    halves = np.arange(25) % 2
    set_conditions(stored, halves, ["one", "two"])
    images = open_image_set(stored)
    assert images.conditions.tolist() == halves.tolist()
    assert (images.classes, images.class_names) == (2, ["one", "two"])
    assert images.labels.tolist() == LISTING.labels
    assert images.label_names == list("abcd")


class Reads:
    """Counts what is read of a source."""

    def __init__(self, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.indices: list[int] = []
        read = images._source.read

        def counted(indices: np.ndarray, uniforms: torch.Tensor | None) -> torch.Tensor:
            self.indices.extend(indices.tolist())
            return read(indices, uniforms)

        monkeypatch.setattr(images._source, "read", counted)


def test_images_are_read_once_while_the_cache_has_room(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = open_image_set(stored, cache_mib=1)
    reads = Reads(images, monkeypatch)
    for indices in ([1, 2, 1], [2, 3], [1, 2, 3]):
        assert torch.equal(images.images(indices), VALUES[indices])
    assert sorted(set(reads.indices)) == [1, 2, 3]
    assert reads.indices.count(2) == reads.indices.count(3) == 1
    bare = open_image_set(stored)
    reads = Reads(bare, monkeypatch)
    bare.images([1])
    bare.images([1])
    assert reads.indices == [1, 1]


def test_an_image_is_read_once(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_image_set(stored, cache_mib=1)
    reads = Reads(images, monkeypatch)
    for _ in range(2):
        assert torch.equal(images.images([6, 5, 6]), VALUES[[6, 5, 6]])
    assert reads.indices == [5, 6]


def test_pixels_of_files_lie_in_minus_one_to_one(linked: Path) -> None:
    images = open_image_set(linked, cache_mib=1)
    pixels = images.images(range(len(images)))
    assert pixels.shape == (60, 3, 6, 6)
    assert -1 <= pixels.min() < -0.7
    assert 0.7 < pixels.max() <= 1
    assert torch.equal(pixels, images.images(range(60)))
    assert images.class_names == list(CLASSES)


def test_pictures_replaced_after_indexing_are_refused(linked: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "images/ants").iterdir():
        write_picture(path, 999, (14, 11))
    message = r"images/ants/000\.png: the image has \d+ bytes, not \d+ as indexed; run `dvc"
    with pytest.raises(ValueError, match=message):
        open_image_set(linked)


def test_an_index_follows_the_pictures_content(linked: Path, tmp_path: Path) -> None:
    """Otherwise indexing replaced pictures again would leave DVC nothing to rerun."""
    before = (linked / module.INDEX).read_bytes()
    config = folder_config(tmp_path / "images", size=6, crop="random_resized")
    for number, same in ((0, True), (999, False)):
        write_picture(tmp_path / "images/ants/000.png", number, (8, 9))
        write_linked(linked, scan_folder(config, outside=tmp_path / "repo"), config)
        assert ((linked / module.INDEX).read_bytes() == before) == same
    assert len(open_image_set(linked).images([0])) == 1


def test_linked_pictures_are_read(tmp_path: Path) -> None:
    real, root = write_folder(tmp_path / "real"), tmp_path / "images"
    root.mkdir()
    for name in CLASSES:
        (root / name).symlink_to(real / name)
    config = folder_config(root, size=6, links="follow")
    write_linked(tmp_path, scan_folder(config, outside=tmp_path / "repo"), config)
    assert open_image_set(tmp_path).images(range(60)).shape == (60, 3, 6, 6)


def test_train_images_alone_are_cropped_at_random(linked: Path) -> None:
    images = open_image_set(linked, cache_mib=1)
    everything = range(len(images))

    def drawn(seed: int) -> torch.Tensor:
        return images.images(everything, torch.Generator().manual_seed(seed))

    central, one, again, other = images.images(everything), drawn(0), drawn(0), drawn(1)
    assert torch.equal(one, again)
    train = torch.from_numpy(images.indices("train"))
    changed = (one != other).flatten(1).any(1)
    assert changed[train].all()
    assert int(changed.sum()) == len(train)
    held_out = torch.from_numpy(np.concatenate([images.indices("val"), images.indices("test")]))
    assert torch.equal(one[held_out], central[held_out])
    twice = images.images([int(train[0])] * 2, torch.Generator().manual_seed(0))
    assert not torch.equal(twice[0], twice[1])
    assert torch.equal(images.images(everything), central)  # no random crop was kept


def test_without_random_crops_a_generator_is_not_used(stored: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    before = draw.get_state()
    assert torch.equal(open_image_set(stored).images([1, 2], draw), VALUES[[1, 2]])
    assert torch.equal(draw.get_state(), before)


def test_a_class_needs_a_train_image(tmp_path: Path) -> None:
    for labels, names, message in (
        ([0, 0, 1, 1], ["a", "b"], "class b: no train image"),
        ([0, 1, -1, 0], ["a", "b"], r"images\.conditions is labels, but 1 train images lie in no"),
        ([0, 0, 0, 0], ["a", "c"], "class c: no train image"),
    ):
        splits = ["train", "val", "train", "test"]
        if message.startswith("class b"):
            splits = ["train", "train", "val", "test"]
        listing = Listing(list("wxyz"), labels, names, splits)
        write_stored(tmp_path, listing, [VALUES[:4]], input_space="pixel")
        with pytest.raises(ValueError, match=message):
            require_conditions(open_image_set(tmp_path))


def test_an_empty_split(tmp_path: Path) -> None:
    listing = Listing(list("wx"), [0, 0], ["a"], ["train", "test"])
    with pytest.raises(
        ValueError, match=r"images\.val_fraction and .* leave a split empty: .*'val': 0"
    ):
        write_stored(tmp_path, listing, [VALUES[:2]], input_space="pixel")


def test_damaged_folders(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no set of images .*dvc repro -f prepare_images"):
        open_image_set(tmp_path / "none")
    (stored / "images-00001.safetensors").write_bytes(b"spoilt")
    images = open_image_set(stored)
    images.images([0, 24])
    with pytest.raises(ValueError, match=r"images-00001\.safetensors: .*dvc repro"):
        images.images([10])
    whole = (stored / module.INDEX).read_bytes()
    for spoilt in (b"", whole[:100]):
        (stored / module.INDEX).write_bytes(spoilt)
        with pytest.raises(ValueError, match="no set of images"):
            open_image_set(stored)
    (stored / module.INDEX).write_bytes(whole)
    (stored / module.MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="no set of images"):
        open_image_set(stored)


def test_the_same_images_make_the_same_bytes(stored: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    write_stored(again, LISTING, VALUES.split(4), input_space="latent", per_shard=10)
    for path in stored.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
