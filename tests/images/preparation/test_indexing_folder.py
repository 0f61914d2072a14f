from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from braid.data.splits import split_of
from braid.images.preparation.indexing import Listing, scan_folder
from tests.images.configs import folder_config
from tests.images.picture_folder import CLASSES, write_folder, write_picture


def scan(root: Path, **changes: Any) -> Listing:
    return scan_folder(folder_config(root, **changes), outside=root.parent / "repo")


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


# ---- What file systems, archives and other tools leave in a folder of pictures ------------------


def test_hidden_and_system_files_are_neither_classes_nor_faults(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 3)
    double = b"\0\5\x16\7" + bytes(90)  # AppleDouble, as macOS writes beside each file
    for name in (
        *("__MACOSX/ants/._000.png", "ants/._000.png", ".thumbnails/0.png", "@eaDir/bees/0.jpg"),
        *(
            "$RECYCLE.BIN/0.png",
            ".DS_Store",
            "ants/.DS_Store",
            "bees/Thumbs.db",
            "lost+found/1.png",
        ),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(double)
    (root / "empty").mkdir()
    (root / "ants/folder.png").mkdir()
    listing = scan(root)
    assert tuple(listing.label_names) == CLASSES
    assert len(listing.names) == 9
    assert listing.faults == []


def test_pictures_of_any_eight_bit_kind_are_used(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 2)
    write_picture(root / "dogs/0.JPEG")
    gray = Image.fromarray(np.zeros((9, 9), np.uint8))
    gray.save(root / "ants/z.gif", save_all=True, append_images=[gray.point(lambda _: 200)])
    clear = Image.fromarray(np.zeros((9, 9, 4), np.uint8))
    clear.quantize(4).save(root / "ants/p.png")
    clear.save(root / "ants/a.png")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).convert("CMYK").save(root / "ants/c.jpg")
    (root / "ants/really_png.jpg").write_bytes((root / "ants/000.png").read_bytes())
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(root / "ants/16.png")
    os.mkfifo(root / "ants/pipe.png")
    listing = scan(root)
    assert tuple(listing.label_names) == (*CLASSES, "dogs")
    assert len(listing.names) == 12
    assert listing.faults == [
        ("ants/16.png", "its pixels are of mode I;16, expected 8 bits a channel"),
        ("ants/pipe.png", "not a plain file"),
    ]


def test_a_name_that_is_not_utf8_is_left_out_alone(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 3)
    picture = (root / "ants/000.png").read_bytes()
    Path(os.fsdecode(os.fsencode(root / "ants") + b"/caf\xe9.png")).write_bytes(picture)
    folder = Path(os.fsdecode(os.fsencode(root) + b"/\xe9t\xe9"))
    folder.mkdir()
    (folder / "0.png").write_bytes(picture)
    listing = scan(root)
    assert tuple(listing.label_names) == CLASSES
    assert len(listing.names) == 9
    assert listing.faults == [
        ("\\xe9t\\xe9/0.png", "its name is not UTF-8"),
        ("ants/caf\\xe9.png", "its name is not UTF-8"),
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_may_not_be_read_is_a_fault(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 2)
    (root / "bees").chmod(0)
    listing = scan(root)
    (root / "bees").chmod(0o755)
    assert listing.faults == [("bees", "Permission denied")]


@pytest.mark.parametrize("folders", [("train", "val"), ("Train", "validation", "test"), ("train",)])
def test_splits_are_not_taken_for_classes(tmp_path: Path, folders: tuple[str, ...]) -> None:
    root = tmp_path / "images"
    for folder in folders:
        write_folder(root / folder, 2)
    message = rf"{root}: its folders \({', '.join(sorted(folders))}\) are splits, expected classes"
    with pytest.raises(ValueError, match=message) as caught:
        scan(root)
    assert f"as perhaps in {root / folders[0]};" in str(caught.value)
    assert tuple(scan(root / folders[0]).label_names) == CLASSES


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 2)
    write_picture(root / "train/0.png")  # beside ants
    assert tuple(scan(root).label_names) == (*CLASSES, "train")


# ---- Links ------------------------------------------------------------------------------------


def linked_classes(tmp_path: Path) -> Path:
    """Two class folders, and a link to a third elsewhere."""
    root = write_folder(tmp_path / "images", 3)
    (root / "cats").rename(tmp_path / "cats_elsewhere")
    (root / "cats").symlink_to(tmp_path / "cats_elsewhere")
    return root


def test_a_linked_class_is_named_or_followed(tmp_path: Path) -> None:
    root = linked_classes(tmp_path)
    listing = scan(root)
    assert listing.label_names == ["ants", "bees"]
    assert listing.faults == [
        ("cats", "a link to a folder, not followed; images.links: follow reads it")
    ]
    followed = scan(root, links="follow")
    assert tuple(followed.label_names) == CLASSES
    assert len(followed.names) == 9
    assert followed.faults == []


def test_links_alone_are_refused_with_the_reason(tmp_path: Path) -> None:
    real, root = write_folder(tmp_path / "real", 3), tmp_path / "images"
    for path in real.rglob("*.png"):  # as DVC and git-annex check a data set out
        link = root / path.relative_to(real)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    with pytest.raises(ValueError, match=r"no image that can be read \(9 faults, the first: ants/"):
        scan(root)
    followed = scan(root, links="follow")
    assert followed.names == scan(real).names
    assert followed.digests == scan(real).digests


def test_a_link_that_leads_nowhere_is_a_fault(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 3)
    (root / "dogs").symlink_to(tmp_path / "unmounted")
    (root / "ants/dangling.png").symlink_to(tmp_path / "unmounted.png")
    for links in ("inside", "follow"):
        faults = {fault.name: fault.reason for fault in scan(root, links=links).faults}
        assert set(faults) == {"ants/dangling.png", "dogs"}
        assert faults["dogs"] == "a link that leads nowhere"
    assert faults["ants/dangling.png"] == "No such file or directory"


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    root = linked_classes(tmp_path)
    (root / "ants/up").symlink_to(tmp_path)
    (root / "again").symlink_to(root / "bees")
    (tmp_path / "cats_elsewhere/self").symlink_to(tmp_path / "cats_elsewhere")
    listing = scan(root, links="follow")
    assert tuple(listing.label_names) == CLASSES
    assert len(listing.names) == 9
    assert {fault.reason for fault in listing.faults} == {"leads to a folder that is read already"}
