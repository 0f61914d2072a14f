"""The segmentation stages on a user's own checkpoint, in every mode of the cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from braid.segmentation.sam3.tokens import load_tokenizer, save_tokenizer, word_tokenizer
from braid.segmentation.student.student import load_student
from tests.stages.conftest import ROOT, fault, override, run
from tests.tiny import TINY

SECTIONS = [name for name in TINY if name.startswith(("sa1b", "sam3", "shapes", "prompts"))]


def metrics(repo: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((repo / f"metrics/{name}.json").read_text())
    return content


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with images, a teacher and its cache."""
    repo = tmp_path_factory.mktemp("segmentation") / "repo"
    for name in ("braid", "stages"):
        shutil.copytree(ROOT / name, repo / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, repo)
    override(repo, **{name: TINY[name] for name in ("hardware", "cadence", *SECTIONS)})
    override(repo, sam3_teacher={"steps": 4})
    for stage in ("prepare_sa1b", "fit_sam3_teacher", "cache_teacher"):
        run(repo, stage)
    return repo


@pytest.fixture
def repo(taught: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught, tmp_path / "repo"))


def test_a_checkpoint_of_ones_own_answers_like_the_model_that_it_is(
    repo: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(repo / "models/sam3_teacher", tmp_path / "own"))
    before, cached = metrics(repo, "sam3_teacher"), metrics(repo, "teacher_cache")
    override(repo, sam3_teacher={"source": str(own)})
    run(repo, "fit_sam3_teacher")
    assert metrics(repo, "sam3_teacher") == before
    assert {path.name for path in (repo / "models/sam3_teacher").iterdir()} == {"source.json"}
    run(repo, "cache_teacher")
    assert metrics(repo, "teacher_cache") == cached
    (own / "model.safetensors").write_bytes(b"no weights")
    assert "model.safetensors: missing or damaged" in fault(repo, "cache_teacher")


def test_a_teacher_that_is_not_there_gets_one_line(repo: Path, tmp_path: Path) -> None:
    override(repo, sam3_teacher={"source": str(tmp_path / "nowhere")})
    assert "nowhere" in fault(repo, "fit_sam3_teacher")


@pytest.mark.parametrize("mode", ["full", "online"])
def test_a_student_learns_from_the_cache_and_from_the_teacher_itself(repo: Path, mode: str) -> None:
    override(repo, sam3_cache={"mode": mode})
    run(repo, "cache_teacher")
    run(repo, "distill_sam3", "distilled")
    figures = metrics(repo, "sam3_training/distilled")
    assert figures["features_loss_after"] < figures["features_loss_before"]
    assert "outputs_fpn_after" not in figures
    assert figures["inherited_parameters"] > 0


def test_features_that_were_not_cached_are_asked_for_in_one_line(repo: Path) -> None:
    override(repo, sam3_cache={"mode": "outputs"})
    run(repo, "cache_teacher")
    line = fault(repo, "distill_sam3", "distilled")
    assert line.startswith("sam3_phases.features.features is true, but the cache holds none")


def test_a_student_has_its_own_tokenizer_and_heads(repo: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "words", word_tokenizer(["circle", "red", "square"], length=9))
    alone = {"supervision": "teacher", "heads": False, "features": False}
    override(repo, sam3_student={"tokenizer": str(tmp_path / "words")})
    override(repo, sam3_students={"distilled": alone})
    run(repo, "distill_sam3", "distilled")
    folder = repo / "models/sam3_student/distilled"
    assert len(load_tokenizer(folder / "tokenizer")) == load_student(folder).recipe.vocabulary == 6
    figures = metrics(repo, "sam3_training/distilled")
    assert figures["inherited_parameters"] == 0
    assert "features_fpn_after" not in figures
