"""Commits of a toy history, and what of a toy DAG they run again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import rerun_cost
from braid.stage.dag import declarations

DVC = """
stages:
  make:
    foreach: ${scenes}
    do:
      cmd: x
      deps: [stages/make.py, braid/scenes]
      outs: ["data/scenes/${key}"]
      metrics:
        - metrics/runtime/make/${key}.json: {cache: false}
  train:
    cmd: x
    deps: [stages/train.py, braid/training, data/scenes]
    outs: [models/net, metrics/runtime/train.json]
  evaluate:
    cmd: x
    deps: [stages/evaluate.py, braid/metrics.py, models/net/weights]
    outs: [metrics/net.json]
"""
CHANGELOG = """
| old | new |
|---|---|
| `braid/loop.py`, `braid/steps.py` | `braid/training/trainer.py` |
| `braid/sections.py` | `braid/scenes/config.py`, `braid/metrics.py` |
| `training.loops` | `training.steps` |
"""
SECONDS = {"make/a": 1.0, "make/b": 2.0, "train": 40.0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text(DVC)
    (tmp_path / "params.yaml").write_text("scenes: {a: {}, b: {}}\n")
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    for name, seconds in SECONDS.items():
        path = tmp_path / f"metrics/runtime/{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seconds": seconds}))
    git(tmp_path, "init", "-q")
    return tmp_path


def git(root: Path, *words: str) -> None:
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(root), *author, *words], check=True, capture_output=True)


def commit(root: Path, subject: str, *files: str) -> None:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.read_text() + "more\n" if path.exists() else "new\n")
        git(root, "add", name)
    git(root, "commit", "-qm", subject)


@pytest.mark.parametrize(
    ("touched", "stale"),
    [
        ("braid/metrics.py", ["evaluate"]),
        ("braid/metrics_too.py", []),
        ("stages/train.py", ["train", "evaluate"]),
        ("braid/training/deep/loop.py", ["train", "evaluate"]),
        ("braid/scenes/lego.py", ["make@a", "make@b", "train", "evaluate"]),
    ],
)
def test_what_depends_on_an_edit_runs_again(root: Path, touched: str, stale: list[str]) -> None:
    again = rerun_cost.rerun(list(declarations(root)), {touched})
    assert [stage.address for stage in again] == stale


def test_files_have_the_names_of_today(root: Path) -> None:
    moved = rerun_cost.moves(CHANGELOG)
    assert moved["braid/steps.py"] == {"braid/training/trainer.py"}
    assert moved["braid/sections.py"] == {"braid/scenes/config.py", "braid/metrics.py"}
    assert len(moved) == 3
    commit(root, "first", "braid/loop.py", "stages/make.py", "tests/test_loop.py")
    commit(root, "no code of the library", "stages/train.py")
    commit(root, "a second\tone", "braid/sections.py", "README.md")
    newest, oldest = rerun_cost.commits(root, 5, "HEAD", moved)
    assert (newest.subject, newest.files) == ("a second\tone", moved["braid/sections.py"])
    assert oldest.files == {"braid/training/trainer.py", "stages/make.py"}
    assert [each.subject for each in rerun_cost.commits(root, 1, "HEAD~1", moved)] == ["first"]


def test_the_mean_is_printed(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(root, "all", "braid/scenes/bricks.py")
    commit(root, "training only", "braid/steps.py")
    commit(root, "nothing that is a dep", "braid/notes.py")
    monkeypatch.setattr(rerun_cost, "ROOT", root)
    monkeypatch.setattr("sys.argv", ["rerun_cost", "2"])
    rerun_cost.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["0", "40"]
    assert lines[2:] == ["mean of 2 commits: 20 s, 47 % of all 4 stages: 43 s"]
