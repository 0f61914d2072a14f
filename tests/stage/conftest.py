"""A toy stage in a temporary repository."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from braid.stage.context import Stage

ROOT = Path(__file__).parents[2]
DAG = """
stages:
  toy:
    foreach: ${radiance.scenes}
    do:
      cmd: python -m stages.toy ${key}
      deps: [data/in/${key}.txt, code.py]
      params: [seed, "radiance.scenes.${key}"]
      outs: ["data/out/${key}", "models/${key}.bin", "metrics/runtime/toy/${key}.json"]
      metrics:
        - metrics/toy/${key}.json: {cache: false}
""".replace("[data/in/${key}.txt, code.py]", '["data/in/${key}.txt", code.py]')


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text(DAG)
    (tmp_path / "code.py").write_text("x = 1\n")
    (tmp_path / "data/in").mkdir(parents=True)
    (tmp_path / "data/in/bricks.txt").write_text("declared")
    (tmp_path / "secret.txt").write_text("undeclared")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRAID_SCRATCH", raising=False)
    monkeypatch.setattr(sys, "argv", ["toy", "bricks"])
    return tmp_path


def write_everything(stage: Stage) -> None:
    stage.out("data/out").mkdir(parents=True)
    (stage.out("data/out") / "a.txt").write_text("made")
    stage.out("models").write_bytes(b"weights")
    stage.write_metrics({"score": 1.5, "lpips": None})
