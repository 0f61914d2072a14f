"""What prepare_sa1b makes of images, and the one line that bad ones get from it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from braid.segmentation.data.prompted import read_prompts
from braid.segmentation.data.sa1b import open_images
from tests.segmentation.sa1b_files import write_pairs
from tests.stages.conftest import ROOT, fault, override, run

STAGE = "prepare_sa1b"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A repository in which nothing has run, with few built-in images."""
    repo = tmp_path / "bare"
    repo.mkdir()
    for name in ("params.yaml", "dvc.yaml", "built_in", "none"):
        shutil.copy(ROOT / name, repo)
    small = {
        "sam3.data.val": 5,
        "sam3.data.test": 3,
        "sam3.data.image_size": 56,
        "sam3.shapes.scenes": 40,
        "sam3.shapes.photos": 4,
        "sam3.prompts.withheld": [],
    }
    override(repo, small)
    return repo


@pytest.fixture
def pairs(bare: Path, tmp_path: Path) -> Path:
    """Ten pairs outside of the repository, which its params name; they have no names."""
    own = {
        "sam3.data.source": str(tmp_path / "sa1b"),
        "sam3.data.val": 3,
        "sam3.data.test": 2,
        "sam3.prompts.kinds": ["generic", "box"],
    }
    override(bare, own)
    return write_pairs(tmp_path / "sa1b", range(1, 11))


def figures(repo: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((repo / "metrics/sa1b.json").read_text())
    return content


def table(repo: Path, name: str, key: str) -> dict[str, dict[str, str]]:
    with (repo / f"metrics/tables/sa1b_{name}.csv").open() as file:
        return {row[key]: row for row in csv.DictReader(file)}


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_built_in_images(bare: Path) -> None:
    run(bare, STAGE)
    images = open_images(bare / "data/sa1b", cache_mib=0)
    prompts = read_prompts(bare / "data/sa1b")
    assert (len(images), len(prompts), images.size) == (44, 44, 56)
    count = sum(map(len, prompts))
    assert figures(bare) == {"train": 36, "val": 5, "test": 3, "prompts": count, "faults": 0}
    kinds, splits = table(bare, "prompts", "kind"), table(bare, "images", "split")
    of_all = kinds.pop("all")
    assert int(of_all["prompts"]) == count == sum(int(row["prompts"]) for row in kinds.values())
    assert 0.05 < float(of_all["negative_fraction"]) < 0.5
    assert {split: int(row["images"]) for split, row in splits.items()} == {
        "all": 44, "train": 36, "val": 5, "test": 3
    }  # fmt: skip
    assert int(splits["all"]["annotations"]) >= int(splits["all"]["named"]) > 80
    assert images.pixels(0).shape == (3, 56, 56)


def test_same_seed_same_bytes(bare: Path) -> None:
    run(bare, STAGE)
    once = contents(bare / "data")
    run(bare, STAGE)
    assert contents(bare / "data") == once


def test_own_images_stay_where_they_are(bare: Path, pairs: Path) -> None:
    (pairs / "sa_4.json").unlink()
    run(bare, STAGE)
    assert {path.name for path in (bare / "data/sa1b").iterdir()} == {
        "manifest.json",
        "prompts.json",
    }
    images = open_images(bare / "data/sa1b", cache_mib=0)
    assert [images.record(index).id for index in images.indices("val")] == [8, 9, 10]
    assert [images.record(index).id for index in images.indices("test")] == [6, 7]
    row = table(bare, "images", "split")["all"]
    assert (row["images"], figures(bare)["faults"], row["named"]) == ("9", 1, "0")
    kinds = table(bare, "prompts", "kind")
    assert {kind: row["prompts"] for kind, row in kinds.items()} == {
        "all": "27", "box": "18", "generic": "9"
    }  # fmt: skip


def test_a_fault_may_be_fatal(bare: Path, pairs: Path) -> None:
    (pairs / "sa_4.jpg").write_bytes(b"")
    override(bare, {"sam3.data.faults": "fatal"})
    assert "sa_4.jpg: is not an image (1 faults in all" in fault(bare, STAGE)


def test_images_inside_the_repository(bare: Path) -> None:
    write_pairs(bare / "mine", [1, 2])
    override(bare, {"sam3.data.source": "mine"})
    assert "sam3.data.source: mine: is read where it lies, expected a place" in fault(bare, STAGE)


def test_more_held_out_images_than_there_are(bare: Path, pairs: Path) -> None:
    override(bare, {"sam3.data.val": 8})
    assert "sam3.data.test are 8 and 2, expected less than the 10 images" in fault(bare, STAGE)


def test_no_such_folder(bare: Path) -> None:
    override(bare, {"sam3.data.source": "/nowhere/sa1b"})
    assert "sam3.data.source: /nowhere/sa1b: no such folder" in fault(bare, STAGE)


def test_more_photos_than_there_are(bare: Path) -> None:
    override(bare, {"sam3.shapes.photos": 900})
    assert "sam3.shapes.photos is 900, expected at most" in fault(bare, STAGE)
