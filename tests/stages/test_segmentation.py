"""The segmentation stages on a user's own checkpoint, in every mode of the cache."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from braid.segmentation.data.prompted import open_prompted
from braid.segmentation.sam3.predictor import load_tokenizer, save_tokenizer, word_tokenizer
from braid.segmentation.student.student import load_student
from tests.stages.conftest import ROOT, fault, override, run
from tests.tiny import TINY

SECTIONS = ("hardware", "training", "sam3")


def metrics(repo: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((repo / f"metrics/{name}.json").read_text())
    return content


def table(repo: Path, path: str) -> list[dict[str, str]]:
    with (repo / path).open() as file:
        return list(csv.DictReader(file))


def terms(repo: Path, student: str) -> dict[tuple[str, str], dict[str, str]]:
    rows = table(repo, f"metrics/tables/sam3_training/{student}.csv")
    return {(row["phase"], row["term"]): row for row in rows}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with images, a teacher and its cache."""
    repo = tmp_path_factory.mktemp("segmentation") / "repo"
    for name in ("braid", "stages"):
        shutil.copytree(ROOT / name, repo / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "built_in", "none"):
        shutil.copy(ROOT / name, repo)
    override(repo, {key: TINY[key] for key in TINY if key.startswith(SECTIONS)})
    override(repo, {"sam3.teacher.steps": 4})
    for stage in ("prepare_sa1b", "fit_sam3_teacher", "cache_teacher"):
        run(repo, stage)
    return repo


@pytest.fixture
def repo(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "repo"))


def test_a_checkpoint_of_ones_own_predicts_like_the_model_that_it_is(
    repo: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(repo / "models/sam3_teacher", tmp_path / "own"))
    before, cached = metrics(repo, "sam3_teacher"), table(repo, "metrics/tables/teacher_cache.csv")
    override(repo, {"sam3.teacher.source": str(own)})
    run(repo, "fit_sam3_teacher")
    assert metrics(repo, "sam3_teacher") == before
    assert {path.name for path in (repo / "models/sam3_teacher").iterdir()} == {"source.json"}
    assert table(repo, "plots/sam3_teacher/fit.csv") == []
    run(repo, "cache_teacher")
    assert table(repo, "metrics/tables/teacher_cache.csv") == cached
    (own / "model.safetensors").write_bytes(b"no weights")
    assert "model.safetensors: missing or damaged" in fault(repo, "cache_teacher")


def test_a_teacher_that_is_not_there_gets_one_line(repo: Path, tmp_path: Path) -> None:
    override(repo, {"sam3.teacher.source": str(tmp_path / "nowhere")})
    assert "nowhere" in fault(repo, "fit_sam3_teacher")
    override(repo, {"sam3.teacher.source": "builtin", "sam3.data.source": "builtin"})
    assert "sam3.teacher.source: builtin: no such folder" in fault(repo, "fit_sam3_teacher")
    line = fault(repo, "prepare_sa1b")
    assert line.startswith("sam3.data.source: builtin: no such folder")
    assert line.endswith("or built_in")


def test_a_teacher_in_the_repository_gets_one_line(repo: Path) -> None:
    shutil.copytree(repo / "models/sam3_teacher", repo / "mine")
    override(repo, {"sam3.teacher.source": "mine"})
    line = fault(repo, "fit_sam3_teacher")
    assert line.startswith("sam3.teacher.source: mine: is read where it lies")


@pytest.mark.parametrize("mode", ["full", "online"])
def test_a_student_learns_from_the_cache_and_from_the_teacher_itself(repo: Path, mode: str) -> None:
    override(repo, {"sam3.cache.mode": mode})
    run(repo, "cache_teacher")
    run(repo, "distill_sam3", "distilled")
    rows = terms(repo, "distilled")
    loss = rows["features", "loss"]
    assert float(loss["after"]) < float(loss["before"])
    assert ("features", "fpn") in rows
    assert ("outputs", "fpn") not in rows
    assert int(loss["transferred_parameters"]) > 0
    figures = metrics(repo, "sam3_training/distilled")
    assert figures["loss"]["after"] == pytest.approx(float(rows["outputs", "loss"]["after"]))
    assert figures["steps"] == sum(int(rows[phase, "loss"]["steps"]) for phase in PHASES)


PHASES = ("features", "outputs")


def test_a_student_is_evaluated_beside_its_control(repo: Path) -> None:
    for student in ("distilled", "truth_only"):
        run(repo, "distill_sam3", student)
    override(repo, {"sam3.evaluation.split": "val"})
    run(repo, "evaluate_sam3")
    rows = {row["model"]: row for row in table(repo, "plots/sam3_methods.csv")}
    figures = metrics(repo, "sam3")
    for model in ("student", "teacher"):
        assert figures[f"miou_{model}"] == pytest.approx(float(rows[model]["iou"]), abs=1e-6)
    assert float(rows["student"]["cgf1"]) <= float(rows["student"]["pmf1"])
    norms = table(repo, "plots/sam3_gradients/distilled.csv")
    assert {row["phase"] for row in norms} == set(PHASES)
    assert all(float(row["gradient_norm_presence"]) > 0 for row in norms)
    assert float(norms[0]["gradient_norm_text"]) > 0
    assert norms[-1]["gradient_norm_text"] == ""  # a term of features, as fpn
    splits = table(repo, "metrics/tables/sam3_splits.csv")
    assert {(row["model"], row["split"]) for row in splits} == {
        (model, split) for model in rows for split in ("labeled", "withheld")
    }
    prompts = [int(row["prompts"]) for row in splits if row["model"] == "student"]
    prompted = open_prompted(repo / "data/sa1b", cache_mib=0)
    pairs = {split: len(prompted.pairs(split)) for split in ("val", "test")}
    assert sum(prompts) == int(rows["student"]["prompts"]) == pairs["val"] != pairs["test"]
    kinds = table(repo, "metrics/tables/sam3_kinds.csv")
    assert {row["kind"] for row in kinds} == set(TINY["sam3.prompts.kinds"])
    latency = metrics(repo, "runtime/evaluate_sam3")["latency"]
    assert set(latency) == {"teacher", "student", "int8", "fused"}


def test_features_that_were_not_cached_are_missing_in_one_line(repo: Path) -> None:
    override(repo, {"sam3.cache.mode": "outputs"})
    run(repo, "cache_teacher")
    line = fault(repo, "distill_sam3", "distilled")
    assert line.startswith("sam3.phases.features.features is true, but the cache has none")


def test_a_student_has_its_own_tokenizer_and_heads(repo: Path, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "words", word_tokenizer(["circle", "red", "square"], length=9))
    override(repo, {"sam3.student.tokenizer": str(tmp_path / "words")})
    override(repo, {f"sam3.students.distilled.{key}": False for key in ("heads", "features")})
    run(repo, "distill_sam3", "distilled")
    folder = repo / "models/sam3_student/distilled"
    assert len(load_tokenizer(folder / "tokenizer")) == load_student(folder).recipe.vocabulary == 6
    rows = terms(repo, "distilled")
    assert {row["transferred_parameters"] for row in rows.values()} == {"0"}
    assert ("features", "fpn") not in rows
