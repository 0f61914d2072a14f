"""Experiment cards: the logging contract, filled in by the stage itself."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.stage import card as cards
from braid.stage.card import Pace, clips_data, write_card
from braid.stage.context import open_stage
from tests.stage.conftest import DAG, write_everything

CARD = "metrics/runtime/cards/toy_bricks.md"
OUTS = 'outs: ["data/out/${key}", "models/${key}.bin", "metrics/runtime/toy/${key}.json"]'
LISTED = [
    "data/out/${key}",
    "models/${key}.bin",
    "metrics/runtime/toy/${key}.json",
    f"{CARD}: {{cache: false}}",
    "plots/toy.csv",
]
WITH_CARD = DAG.replace(OUTS, "\n".join(["outs:", *(f"        - {each}" for each in LISTED)]))


@pytest.fixture
def written(repo: Path) -> Any:
    """Run the toy stage with a card; gives the card's text."""
    (repo / "dvc.yaml").write_text(WITH_CARD)

    def run(**changes: Any) -> str:
        parts: dict[str, Any] = {
            "data": {"source": "shards/*.tar", "clips": 2048},
            "model": {"encoder": "frozen"},
            "results": {"score": 1 / 3, "lpips": None, "status": "passed"},
            "reason": "passed: 0.33 of 0.5",
        }
        with open_stage("toy") as stage:
            write_everything(stage)
            stage.write_table("plots", [{"step": 0, "loss": 1.0}])
            stage.runtime["clips_per_second"] = 12.5
            write_card(stage, torch.device("cpu"), **(parts | changes))
        return (repo / CARD).read_text()

    return run


def table(text: str, title: str) -> dict[str, str]:
    """The rows of one section."""
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.*) \|$", section, flags=re.MULTILINE)
    return dict(rows)


def test_a_card_has_every_section_of_the_contract(written: Any, repo: Path) -> None:
    text = written()
    assert text.startswith("# toy@bricks\n\n**keep**: passed: 0.33 of 0.5\n")
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == [
        "Header",
        "Data",
        "Model and loss",
        "Runtime",
        "Results",
    ]
    assert table(text, "Header")["command"] == "python -m stages.toy bricks"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", table(text, "Header")["date"])
    assert table(text, "Data") == {"source": "shards/*.tar", "clips": "2048"}
    model = table(text, "Model and loss")
    assert model["encoder"] == "frozen"
    assert model["seed"] == "0"
    assert "radiance.scenes.bricks.source" in model  # what the stage declared, and nothing else
    assert "latent_mae.width" not in model
    runtime = table(text, "Runtime")
    assert runtime["device"] == "cpu"
    assert runtime["clips_per_second"] == "12.5"
    assert float(runtime["peak_rss_mib"]) > 1
    results = table(text, "Results")
    figures = {"score": "0.333333", "lpips": "unknown", "status": "passed"}
    assert results == {"curves": "plots/toy.csv", **figures}
    assert (repo / "metrics/runtime/toy/bricks.json").read_text().startswith("{")


def test_the_header_knows_the_experiment_the_commit_and_changes(
    written: Any, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    outside = table(written(), "Header")
    assert outside["commit"] == outside["experiment"] == "unknown"

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(repo), *arguments], check=True, capture_output=True)

    git("init", "-qb", "work")
    git("add", "code.py")
    git("-c", "user.email=a@b.c", "-c", "user.name=a", "commit", "-qm", "one")
    clean = table(written(), "Header")
    assert clean["branch"] == "work"
    assert re.fullmatch(r"[0-9a-f]{12}", clean["commit"])
    assert clean["experiment"] == clean["commit"]
    (repo / "code.py").write_text("x = 2\n")
    monkeypatch.setenv("DVC_EXP_NAME", "rusty-gong")
    changed = table(written(), "Header")
    assert changed["commit"] == f"{clean['commit']}, changed"
    assert changed["experiment"] == "rusty-gong"


def test_a_cell_is_one_line_of_its_table(written: Any) -> None:
    text = written(data={"pattern": "a|b\nc", "sizes": (1, 2)})
    assert "| pattern | a\\|b c |" in text
    assert "| sizes | 1, 2 |" in text


def test_clips_are_counted_and_estimated_from_the_first_shard() -> None:
    counts = enumerate((256, 255, 30))
    shards = [{"path": f"{i}.tar", "latents": n + 1, "clips": n} for i, n in counts]
    data = clips_data("/data/*.tar", {"shards": shards, "faults": [{}]}, train=400)
    assert data == {
        "pattern": "/data/*.tar",
        "shards": "0.tar to 2.tar, 3 in all",
        "clips": 541,
        "clips_estimated": 771,
        "faults": 1,
        "train": 400,
    }


def test_only_a_model_that_passed_is_kept(written: Any) -> None:
    text = written(results={"status": "collapsed"}, reason="1.2 dimensions in use")
    assert text.splitlines()[2] == "**drop**: 1.2 dimensions in use"


def test_a_stage_that_declares_no_card_cannot_write_one(repo: Path) -> None:
    with pytest.raises(SystemExit, match="lists 0 outs below metrics/runtime/cards"):
        with open_stage("toy") as stage:
            write_card(
                stage,
                torch.device("cpu"),
                data={},
                model={},
                results={"status": "passed"},
                reason="good",
            )


def test_pace_counts_updates_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 11.0, 12.0])
    monkeypatch.setattr(cards.time, "perf_counter", lambda: next(clock))
    pace = Pace()
    assert pace.per_second() is None
    pace(1, None, None)
    assert pace.per_second() is None
    for done in (2, 3, 4):
        pace(done, None, None)
    assert pace.per_second() == 1.5
    assert pace.per_second(8) == 12.0
