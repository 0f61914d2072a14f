"""Mazes from end to end: what the stages leave, that every param has a say, and bad input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.mazes.pointmaze_files import runs, write_minari
from tests.stages.conftest import ROOT, fault, run
from tests.tiny import TINY, override

REFINERS = ("paired", "keyframes_paired", "keyframes", "paired_then_drift")
SMALL = {
    key: value
    for key, value in TINY.items()
    if key.startswith(("mazes.", "maze_drift.", "hardware.", "training."))
}
SHORT = {f"maze_drift.refiners.{name}.steps": 4 for name in REFINERS}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which the stages have run once."""
    repo = tmp_path_factory.mktemp("mazes") / "repo"
    repo.mkdir()
    for name in ("braid", "stages"):  # copies of the repository share the code
        (repo / name).symlink_to(ROOT / name)
    for name in ("params.yaml", "dvc.yaml", "none", "built_in"):
        shutil.copy(ROOT / name, repo)
    override(repo, SMALL | SHORT)
    run(repo, "prepare_mazes")
    for name in REFINERS:
        run(repo, "train_drift_maze", name)
    run(repo, "evaluate_drift_maze")
    return repo


@pytest.fixture
def repo(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "repo", symlinks=True))


def metrics(repo: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((repo / f"metrics/{name}.json").read_text())
    return content


def table(repo: Path, path: str) -> list[dict[str, str]]:
    with (repo / f"{path}.csv").open() as content:
        return list(csv.DictReader(content))


def test_what_the_stages_leave(trained: Path) -> None:
    counts = metrics(trained, "mazes")
    assert set(counts) == {"train", "val", "test", "faults"}
    headline = metrics(trained, "drift_maze")
    wanted = (
        "collision_ratio_six collision_ratio_three success_six success_three "
        "collision_paired_two_ways collision_refined_two_ways both_ways status"
    )
    assert set(wanted.split()) <= set(headline)
    assert all(headline[name] is not None for name in wanted.split())
    rows = table(trained, "metrics/tables/drift_maze")
    assert {row["method"] for row in rows} >= {"interpolated", "paired", "refined", "planner"}
    refined = {row["keyframes"]: row for row in rows if row["method"] == "refined"}
    plain = {row["keyframes"]: row for row in rows if row["method"] == "interpolated"}
    ratio = float(refined["3"]["collision"]) / float(plain["3"]["collision"])
    assert headline["collision_ratio_three"] == pytest.approx(ratio, rel=1e-4)
    for name in REFINERS:
        assert metrics(trained, f"drift_maze_training/{name}")["status"]
        assert table(trained, f"plots/drift_maze_validation/{name}")
        card = trained / f"metrics/runtime/cards/train_drift_maze_{name}.md"
        assert "## Results" in card.read_text()
    pictures = {path.name for path in (trained / "plots/maze_evaluation").iterdir()}
    assert {"keyframes_3.png", "keyframes_6.png", "two_ways.png"} <= pictures
    assert metrics(trained, "runtime/evaluate_drift_maze")["microseconds_refined"] > 0


def test_the_same_seed_gives_the_same_bytes(repo: Path) -> None:
    names = ("prepare_mazes", "train_drift_maze", "evaluate_drift_maze")
    before = [
        (repo / path).read_bytes()
        for path in (
            "data/mazes/mazes.safetensors",
            "models/drift_maze/keyframes/model.safetensors",
            "metrics/drift_maze.json",
        )
    ]
    run(repo, names[0])
    run(repo, names[1], "keyframes")
    run(repo, names[2])
    after = [
        (repo / path).read_bytes()
        for path in (
            "data/mazes/mazes.safetensors",
            "models/drift_maze/keyframes/model.safetensors",
            "metrics/drift_maze.json",
        )
    ]
    assert before == after


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mazes.points", 20),
        ("mazes.val_fraction", 0.4),
        ("mazes.test_fraction", 0.4),
        ("mazes.layouts.mazes", 20),
        ("mazes.layouts.cells", 4),
        ("mazes.layouts.loops", 0.9),
        ("mazes.layouts.cases", 3),
        ("mazes.layouts.two_ways", 0.0),
        ("mazes.layouts.shortest", 5),
        ("mazes.layouts.longest", 4),
        ("mazes.layouts.detour", 2.0),
        ("mazes.layouts.variants", 1),
        ("mazes.layouts.rounding", 0.1),
        ("mazes.layouts.wiggle", 0.01),
        ("mazes.layouts.clearance", 0.3),
    ],
)
def test_every_param_of_the_data_has_a_say(key: str, value: Any, repo: Path) -> None:
    before = (repo / "data/mazes/mazes.safetensors").read_bytes()
    override(repo, {key: value})
    run(repo, "prepare_mazes")
    assert (repo / "data/mazes/mazes.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("item", "key", "value"),
    [
        ("paired_then_drift", "loss.temperatures", [0.5]),
        ("paired_then_drift", "loss.attraction", 1.5),
        ("paired_then_drift", "loss.floor", 0.5),
        ("paired_then_drift", "loss.self_mask", 0.0),
        ("paired_then_drift", "loss.scale_scope", "batch"),
        ("paired", "corruption.levels", 1),
        ("paired", "corruption.min_keyframes", 2),
        ("paired", "corruption.schedule", "linear"),
        ("paired", "corruption.placement", "random"),
        ("paired", "corruption.placement", "selected"),
        ("paired", "corruption.interpolator", "cubic"),
        ("paired", "corruption.noise", "gauss"),
        ("paired", "corruption.sigma", 0.9),
        ("keyframes", "keyframes.noise", "bridge"),
        ("keyframes", "keyframes.sigma", 1.0),
        ("paired", "refiner.clamp", False),
        ("paired", "refiners.paired.steps", 6),
        ("paired", "refiners.paired.lr_scale", 0.1),
        ("paired", "refiners.paired.batches.classes", 2),
        ("paired", "refiners.paired.task", "keyframes"),
        ("paired_then_drift", "refiners.paired_then_drift.start", "none"),
        ("paired_then_drift", "refiners.paired_then_drift.features", ["tokens", "pairs"]),
        ("paired_then_drift", "refiners.paired_then_drift.batches.generated", 2),
        ("paired_then_drift", "refiners.paired_then_drift.batches.positives", 2),
        ("paired_then_drift", "refiners.paired_then_drift.batches.alpha_max", 4.0),
    ],
)
def test_every_param_of_training_has_a_say(item: str, key: str, value: Any, repo: Path) -> None:
    weights = repo / f"models/drift_maze/{item}/model.safetensors"
    before = weights.read_bytes()
    changes = {f"maze_drift.{key}": value}
    if key == "corruption.min_keyframes":
        changes["maze_drift.keyframes.count"] = 4
    if key == "corruption.levels":
        changes["maze_drift.keyframes.count"] = 3
    if key == "corruption.schedule":
        changes["maze_drift.keyframes.count"] = 3
    if key == "refiners.paired.task":
        changes["maze_drift.evaluation.paired"] = "paired_then_drift"
    override(repo, changes)
    run(repo, "train_drift_maze", item)
    assert weights.read_bytes() != before


@pytest.mark.parametrize(
    "changes",
    [
        {"corruption.student_replace_prob": 0.5},
        {
            "corruption.student_replace_prob": 0.0,
            "refiners.paired_then_drift.anchors": "none",
        },
        {"refiners.paired_then_drift.anchors": "models/drift_maze/keyframes_paired"},
    ],
)
def test_replaced_keyframes_change_the_training(changes: dict[str, Any], repo: Path) -> None:
    weights = repo / "models/drift_maze/paired_then_drift/model.safetensors"
    before = weights.read_bytes()
    override(repo, {f"maze_drift.{key}": value for key, value in changes.items()})
    assert "${item.anchors}" in (repo / "dvc.yaml").read_text()
    run(repo, "train_drift_maze", "paired_then_drift")
    assert weights.read_bytes() != before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trajectories", 12),
        ("cases", 2),
        ("samples", 2),
        ("components", 3),
        ("margin", 0.3),
        ("alpha", 3.0),
        ("refiner", "paired"),
        ("paired", "paired_then_drift"),
        ("keyframes", "keyframes_paired"),
        ("paired_keyframes", "keyframes"),
    ],
)
def test_every_param_of_the_evaluation_has_a_say(
    key: str, value: Any, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But `pictures`, which the pictures themselves show; these are left out for time."""
    import stages.evaluate_drift_maze as stage

    monkeypatch.setattr(stage, "draw_evaluation", lambda *_: None)

    def made() -> list[bytes]:
        names = ("drift_maze", "drift_maze_two_ways")
        return [(repo / f"metrics/tables/{name}.csv").read_bytes() for name in names]

    before = made()
    changes = {f"maze_drift.evaluation.{key}": value}
    if key == "refiner":
        changes["maze_drift.refiners.paired.anchors"] = "models/drift_maze/keyframes"
    override(repo, changes)
    run(repo, "evaluate_drift_maze")
    assert made() != before


def test_a_file_of_ones_own_goes_through_all_stages_though_no_case_has_two_ways(repo: Path) -> None:
    write_minari(repo / "mine.hdf5", runs(60))
    override(repo, {"mazes.source": "mine.hdf5"})
    run(repo, "prepare_mazes")
    assert sum(metrics(repo, "mazes").values()) == 60
    for name in ("paired", "keyframes", "keyframes_paired", "paired_then_drift"):
        run(repo, "train_drift_maze", name)
    run(repo, "evaluate_drift_maze")
    assert metrics(repo, "drift_maze")["two_ways_reason"]


@pytest.mark.parametrize(
    ("changes", "stage", "message"),
    [
        (
            {"mazes.source": "absent.hdf5"},
            ("prepare_mazes",),
            "mazes.source: absent.hdf5: no such file, expected a pointmaze file (HDF5), or ",
        ),
        ({"mazes.layouts.cells": 2}, ("prepare_mazes",), "mazes.layouts.mazes is 24"),
        ({"mazes.layouts.shortest": 30}, ("prepare_mazes",), "mazes.layouts.shortest is 30"),
        (
            {"maze_drift.keyframes.count": 5},
            ("train_drift_maze", "paired"),
            "maze_drift.keyframes.count is 5, expected one of",
        ),
        (
            {"maze_drift.refiners.paired_then_drift.anchors": "none"},
            ("train_drift_maze", "paired"),
            "student_replace_prob is 0.9, expected a folder of a phase-1 network as "
            "refiners.paired_then_drift.anchors, got none",
        ),
        (
            {"maze_drift.refiner.heads": 3},
            ("train_drift_maze", "paired"),
            "maze_drift.refiner.dim is 16, expected a multiple of heads: 3",
        ),
        (
            {"maze_drift.refiner.dim": 32},
            ("train_drift_maze", "keyframes"),
            "to start from, expected",
        ),
        (
            {"maze_drift.corruption.min_keyframes": 99},
            ("train_drift_maze", "paired"),
            "maze_drift.corruption.min_keyframes is 99",
        ),
        (
            {"maze_drift.evaluation.components": 5000},
            ("evaluate_drift_maze",),
            "components is 5000",
        ),
    ],
)
def test_bad_input_is_one_line(
    changes: dict[str, Any], stage: tuple[str, ...], message: str, repo: Path
) -> None:
    override(repo, changes)
    assert message in fault(repo, *stage)


def test_a_broken_set_or_network_is_named(repo: Path) -> None:
    (repo / "models/drift_maze/paired/config.json").write_text("{}")
    assert "models/drift_maze/paired" in fault(repo, "evaluate_drift_maze")
    data = repo / "data/mazes/mazes.safetensors"
    data.write_bytes(data.read_bytes()[:50])
    assert "mazes.safetensors: expected a set of mazes" in fault(repo, "evaluate_drift_maze")
