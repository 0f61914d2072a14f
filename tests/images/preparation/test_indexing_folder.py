from __future__ import annotations

from pathlib import Path

import pytest

from braid.data.splits import split_of
from braid.images.preparation.indexing import Listing, scan_folder
from tests.images.configs import folder_config
from tests.images.picture_folder import CLASSES, write_folder, write_picture


def scan(root: Path) -> Listing:
    return scan_folder(folder_config(root), outside=root.parent / "repo")


def test_classes_are_folders_in_alphabetical_order(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 5)
    write_picture(root / "bees/deeper/still.JPG", 3)
    (root / "bees/notes.txt").write_text("no image, and no fault")
    listing = scan(root)
    assert tuple(listing.label_names) == CLASSES
    assert list(listing.names) == sorted(listing.names)
    assert len(listing.names) == 16
    for name, label, split in zip(listing.names, listing.labels, listing.splits, strict=True):
        assert CLASSES[label] == name.split("/")[0]
        assert split == split_of(name, 0.2, 0.2)
    assert "bees/deeper/still.JPG" in listing.names
    assert not listing.faults


def test_an_image_in_the_root_has_no_label(tmp_path: Path) -> None:
    write_picture(tmp_path / "images/lonely.png")
    listing = scan(tmp_path / "images")
    assert (listing.names, listing.labels) == (["lonely.png"], [-1])


def test_broken_images_are_listed_with_the_reason(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 3)
    (root / "ants/001.png").write_bytes(b"spoilt")
    (root / "cats/out.png").symlink_to(write_picture(tmp_path / "elsewhere.png"))
    listing = scan(root)
    assert len(listing.names) == len(listing.labels) == len(listing.splits) == 8
    assert [fault.name for fault in listing.faults] == ["ants/001.png", "cats/out.png"]
    assert "not an image" in listing.faults[0].reason
    assert "leads out" in listing.faults[1].reason


def test_a_link_to_a_folder_elsewhere_is_not_followed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 2)
    write_picture(tmp_path / "private/0.png")
    (root / "dogs").symlink_to(tmp_path / "private")
    assert not any(name.startswith("dogs") for name in scan(root).names)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"images\.source: .*/none: no such folder; expected"):
        scan(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no image that can be read \(0 faults\)"):
        scan(tmp_path / "empty")
    root = write_folder(tmp_path / "repo/images", 1)
    with pytest.raises(ValueError, match="expected a place outside of the repository"):
        scan_folder(folder_config(root), outside=tmp_path / "repo")
