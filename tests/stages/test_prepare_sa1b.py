"""What prepare_sa1b makes of images, and the one line that bad ones get from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from braid.segmentation.data.prompts import read_prompts
from braid.segmentation.data.sa1b import open_images
from tests.segmentation.sa1b_files import write_pairs
from tests.stages.conftest import ROOT, fault, override, run

STAGE = "prepare_sa1b"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A repository in which nothing has run, with few built-in images."""
    repo = tmp_path / "bare"
    repo.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, repo)
    override(
        repo,
        sa1b={"val": 8, "image_size": 56},
        shapes={"scenes": 40, "photos": 4},
        prompts={"withheld": []},
    )
    return repo


@pytest.fixture
def pairs(bare: Path, tmp_path: Path) -> Path:
    """Ten pairs outside of the repository, which its params name; they have no names."""
    override(
        bare,
        sa1b={"source": str(tmp_path / "sa1b"), "val": 3},
        prompts={"kinds": ["generic", "box"]},
    )
    return write_pairs(tmp_path / "sa1b", range(1, 11))


def figures(repo: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((repo / "metrics/sa1b.json").read_text())
    return content


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_built_in_images(bare: Path) -> None:
    run(bare, STAGE)
    images = open_images(bare / "data/sa1b", cache_mib=0)
    prompts = read_prompts(bare / "data/sa1b")
    found = figures(bare)
    assert (len(images), len(prompts), images.size) == (44, 44, 56)
    assert (found["images"], found["train"], found["val"], found["faults"]) == (44, 36, 8, 0)
    assert found["prompts"] == sum(map(len, prompts)) == sum(found["prompts_of_kind"].values())
    assert 0.05 < found["negative_share"] < 0.5
    assert found["annotations"] >= found["named"] > 80
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
    found = figures(bare)
    assert (found["images"], found["faults"], found["named"]) == (9, 1, 0)
    assert found["prompts_of_kind"] == {"box": 18, "generic": 9}


def test_a_fault_may_be_fatal(bare: Path, pairs: Path) -> None:
    (pairs / "sa_4.jpg").write_bytes(b"")
    override(bare, sa1b={"faults": "fatal"})
    assert "sa_4.jpg: is not an image (1 faults in all" in fault(bare, STAGE)


def test_images_inside_the_repository(bare: Path) -> None:
    write_pairs(bare / "mine", [1, 2])
    override(bare, sa1b={"source": "mine"})
    assert "sa1b.source: mine: images are read where they lie" in fault(bare, STAGE)


def test_more_images_for_validation_than_there_are(bare: Path, pairs: Path) -> None:
    override(bare, sa1b={"val": 10})
    assert "sa1b.val is 10, expected less than the 10 images" in fault(bare, STAGE)


def test_no_such_folder(bare: Path) -> None:
    override(bare, sa1b={"source": "/nowhere/sa1b"})
    assert "sa1b.source: /nowhere/sa1b: no such folder" in fault(bare, STAGE)


def test_more_photos_than_there_are(bare: Path) -> None:
    override(bare, shapes={"photos": 900})
    assert "shapes.photos is 900, expected at most" in fault(bare, STAGE)
