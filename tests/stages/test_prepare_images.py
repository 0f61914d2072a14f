"""What the stage makes of each source, that every param has a say, and its line on bad input."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from braid.images.data.image_set import ImageSet, open_image_set
from tests.images.picture_folder import write_folder, write_picture
from tests.images.stand_in_vae import SCALE, SHIFT, install
from tests.stages.conftest import ROOT, fault, run
from tests.tiny import override

STAGE = "prepare_images"


@pytest.fixture(autouse=True)
def other_tests_keep_their_settings() -> Iterator[None]:
    """The stage sets determinism and the treatment of denormals for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository in which nothing has run."""
    repo = tmp_path / "repo"
    repo.mkdir()
    for name in ("params.yaml", "dvc.yaml", "none"):
        shutil.copy(ROOT / name, repo)
    override(repo, {"hardware.device": "cpu", "hardware.threads": 2})
    return repo


def set_images(repo: Path, **images: Any) -> None:
    override(repo, {f"images.{name}": value for name, value in images.items()})


@pytest.fixture
def root(repo: Path, tmp_path: Path) -> Path:
    """A folder of images outside of the repository, which its params name."""
    root = write_folder(tmp_path / "pictures")
    set_images(repo, source=str(root), size=16)
    return root


def prepared(repo: Path, **images: Any) -> ImageSet:
    set_images(repo, **images)
    run(repo, STAGE)
    return open_image_set(repo / "data/images")


def figures(repo: Path) -> dict[str, Any]:
    """The metrics and the table's one row."""
    content: dict[str, Any] = json.loads((repo / "metrics/images.json").read_text())
    with (repo / "metrics/tables/images.csv").open() as table:
        (row,) = csv.DictReader(table)
    return content | {name: int(value) for name, value in row.items()}


def test_digits(repo: Path) -> None:
    images = prepared(repo)
    assert (images.shape, images.classes, len(images)) == ((1, 8, 8), 10, 1797)
    assert figures(repo) == {
        **{"images": 1797, "train": 1213, "val": 138, "test": 446, "classes": 10},
        **{"smallest_class": 110, "faults": 0, "channels": 1, "height": 8, "width": 8},
    }
    first = {path.name: path.read_bytes() for path in (repo / "data/images").iterdir()}
    run(repo, STAGE)
    assert first == {path.name: path.read_bytes() for path in (repo / "data/images").iterdir()}


def test_fractions_of_digits(repo: Path) -> None:
    prepared(repo, val_fraction=0.2, test_fraction=0.4)
    assert 660 < figures(repo)["test"] < 780
    assert 310 < figures(repo)["val"] < 410


def test_pseudo_classes(repo: Path) -> None:
    images = prepared(repo, conditions="kmeans", K=17)
    assert images.classes == 17
    assert images.class_names[16] == "pseudo-class 16"
    assert len(images.conditions[images.indices("train")].unique()) == 17
    assert len(images.labels.unique()) == len(images.label_names) == 10


def test_noise_of_any_size(repo: Path) -> None:
    images = prepared(repo, source="noise", noise_images=90, size=24, K=6)
    assert (images.shape, images.classes, len(images)) == ((3, 24, 24), 6, 90)
    pixels = images.images(range(90))
    override(repo, {"seed": 1})
    assert not torch.equal(pixels, prepared(repo).images(range(90)))
    images = prepared(repo, input_space="latent", size=256)
    assert (images.shape, images.input_space) == ((4, 32, 32), "latent")


def test_a_folder_stays_where_it_is(repo: Path, root: Path) -> None:
    images = prepared(repo)
    assert (images.shape, images.class_names) == ((3, 16, 16), ["ants", "bees", "cats"])
    assert sorted(path.name for path in (repo / "data/images").iterdir()) == [
        "index.npz",
        "manifest.json",
    ]
    everything = range(len(images))
    draw = torch.Generator().manual_seed(0)
    central = images.images(everything)
    assert torch.equal(central, images.images(everything, draw))
    cropped = prepared(repo, crop="random_resized").images(everything, draw)
    assert not torch.equal(central, cropped)


def test_pseudo_classes_of_images_without_labels(repo: Path, root: Path) -> None:
    flat = root.parent / "flat"
    for number in range(40):
        write_picture(flat / f"{number}.png", number)
    set_images(repo, source=str(flat), K=3)
    assert "images.conditions is labels, but" in fault(repo, STAGE)
    images = prepared(repo, conditions="kmeans")
    assert (images.labels == -1).all()
    assert (images.classes, images.label_names) == (3, [])


@pytest.fixture
def vae(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    folder = tmp_path / "vae"
    folder.mkdir()
    (folder / "config.json").touch()
    set_images(repo, input_space="latent", sd_vae=str(folder))
    return install(monkeypatch)


def test_latents_are_encoded_once(repo: Path, root: Path, vae: list[Any]) -> None:
    pixels = prepared(repo, input_space="pixel").images(range(60))
    images = prepared(repo, input_space="latent")
    assert (images.shape, images.input_space, images.classes) == ((4, 2, 2), "latent", 3)
    expected = (4 * torch.nn.functional.avg_pool2d(pixels, 8) - SHIFT) * SCALE
    latents = images.images(range(60))
    torch.testing.assert_close(latents[:, :3], expected, rtol=2e-3, atol=2e-3)
    assert sum(shape[0] for shape in vae[0][1].shapes) == 60
    shutil.rmtree(root)  # latents need the images no more
    assert torch.equal(images.images(range(60)), latents)


def test_latents_are_encoded_in_mixed_precision(repo: Path, root: Path, vae: list[Any]) -> None:
    full = prepared(repo).images(range(60))
    override(repo, {"hardware.precision": "bfloat16"})
    torch.testing.assert_close(prepared(repo).images(range(60)), full, rtol=0.02, atol=0.02)


def test_random_crops_before_encoding(repo: Path, root: Path, vae: list[Any]) -> None:
    central = prepared(repo).images(range(60))
    images = prepared(repo, crop="random_resized")
    changed = (images.images(range(60)) != central).flatten(1).any(1).numpy()
    np.testing.assert_array_equal(np.flatnonzero(changed), images.indices("train"))


def test_broken_images_are_left_out_or_fatal(repo: Path, root: Path) -> None:
    (root / "bees/004.png").write_bytes(b"spoilt")
    (root / "cats/002.png").write_bytes((root / "cats/002.png").read_bytes()[:60])
    images = prepared(repo)
    assert (len(images), figures(repo)["faults"]) == (58, 2)
    manifest = json.loads((repo / "data/images/manifest.json").read_text())
    assert [entry["name"] for entry in manifest["faults"]] == ["bees/004.png", "cats/002.png"]
    set_images(repo, faults="fatal")
    line = fault(repo, STAGE)
    assert line.startswith(f"{root}/bees/004.png: not an image")
    assert "(2 faults in all; images.faults: skip leaves such images out)" in line


def test_a_class_of_broken_images_alone(repo: Path, root: Path) -> None:
    write_picture(root / "dogs/0.png").write_bytes(b"spoilt")
    line = fault(repo, STAGE)
    assert line.startswith("class dogs: no train image, expected at least one; dogs/0.png: not an")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"size": 9}, "images: Value error, built_in images have size 8 and input_space pixel"),
        ({"input_space": "latent"}, "built_in images have size 8 and input_space pixel"),
        ({"source": "/none", "input_space": "latent"}, "input_space latent needs sd_vae"),
        ({"source": "noise", "size": 20, "input_space": "latent"}, "expected a multiple of 8"),
        ({"source": "/none"}, "images.source: /none: no such folder; expected one, built_in"),
        ({"source": "/none", "sd_vae": "/no", "input_space": "latent"}, "/no: missing; "),
        ({"crop": "left"}, "images.crop: Input should be 'center' or 'random_resized'"),
        ({"conditions": "kmeans", "K": 1300}, "images.K is 1300, expected 1 to 1213, the number"),
        ({"source": "noise", "noise_images": 3}, "images.val_fraction and images.test_fraction"),
        ({"source": "noise", "noise_images": 20, "K": 30}, ": no train image, expected at least"),
    ],
)
def test_bad_params(repo: Path, images: dict[str, Any], message: str) -> None:
    set_images(repo, **images)
    assert message in fault(repo, STAGE)
