"""Notebooks run from top to bottom, say what they measured, and are committed without outputs."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

from braid.segmentation.student.student import save_student
from tests.segmentation.release.test_segmenter import PICTURE, some_segmenter
from tests.tiny import TINY, override
from tests.untrained import write_clips, write_radiance

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.fixture(autouse=True)
def other_tests_keep_their_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(ROOT / "examples")  # where Jupyter runs a notebook
    monkeypatch.setattr(sys, "path", list(sys.path))
    backend, threads = plt.get_backend(), torch.get_num_threads()
    plt.switch_backend("Agg")
    torch.set_num_threads(1)
    yield
    plt.close("all")
    plt.switch_backend(backend)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids))
    for cell in cells(path, "code"):
        assert (cell["execution_count"], cell["outputs"]) == (None, [])
    assert len(cells(path, "markdown")) >= len(cells(path, "code"))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny params, in whose examples/ a notebook is run."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    override(tmp_path, TINY)
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    return tmp_path


def run_notebook(name: str) -> dict[str, Any]:
    """What is defined when all cells have run."""
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells(ROOT / f"examples/{name}.ipynb", "code"):
        exec("".join(cell["source"]), names)
    return names


def test_a_student_is_rendered_beside_its_teacher(repository: Path) -> None:
    write_radiance(repository, "bricks")
    names = run_notebook("render_a_student")
    assert names["by_student"].shape == names["truth"].shape == (2, 16, 16, 3)
    assert names["scores"]["teacher"] > 40 > 20 > names["scores"]["student"]  # untrained
    assert (names["shots"] < 0.99).any()
    assert len(plt.get_fignums()) == 2


def test_a_storyboard_is_completed(repository: Path) -> None:
    write_clips(repository)
    names = run_notebook("complete_a_storyboard")
    given, truth = names["given"], names["latents"][0]
    for clip in names["shown"].values():
        assert torch.allclose(clip[:, given], truth[:, given])
    error = names["error"]
    assert error["refined"] == pytest.approx(error["interpolated"])  # by a fresh refiner
    assert error["refined"] > 0
    assert {movie.shape for movie in names["movies"].values()} == {(17, 32, 32, 3)}


def test_a_picture_is_segmented(repository: Path) -> None:
    some = some_segmenter()
    save_student(repository / "models/sam3_student/distilled", some.model, some.tokenizer)
    (repository / "data/sa1b/images").mkdir(parents=True)
    PICTURE.save(repository / "data/sa1b/images/sa_1.jpg")
    names = run_notebook("segment_a_picture")
    assert [result.prompt for result in names["results"]] == names["WORDS"]
    assert len(plt.get_fignums()) == 1


def test_drift_in_two_dimensions_says_what_it_shows() -> None:
    """Seen: balanced .009, attraction .105, one temperature .154, untrained .088, data .005."""
    started = time.process_time()
    names = run_notebook("drift_2d")
    assert time.process_time() - started < 30  # seconds of one core; 9 were seen
    error = names["error"]
    assert error["balanced"] < 0.02 < 0.05 < error["untrained"]
    assert error["attraction x 1.5"] > 4 * error["balanced"]
    assert error["one small temperature"] > 4 * error["balanced"]
    assert len(plt.get_fignums()) == 3
    arrows = -names["gradient"]
    right = names["grid"][:, 0] > 1.8
    assert (arrows[right, 0] < 0).all()  # towards the data
