"""The drifting strand on a user's own shards, and the one line that wrong settings get from it."""

from __future__ import annotations

import csv
import json
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from braid.clips.shards.dataset import open_clips
from braid.drifting.video.refiner import Refiner
from braid.stage.dag import declaration
from braid.stage.params import load_yaml
from tests.clips.shard_files import write_clips
from tests.stages.conftest import ROOT, fault, override, run
from tests.tiny import TINY

CHAIN = (
    ("prepare_clips",),
    ("quantize",),
    ("train_latent_mae",),
    ("train_drift", "paired"),
    ("train_drift", "drift"),
    ("evaluate_drift",),
    ("impute_storyboard", "held_out"),
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The strand's stages have run once, on two shards outside of the repository."""
    folder = tmp_path_factory.mktemp("drifting")
    repo = folder / "repo"
    for name in ("braid", "stages"):
        shutil.copytree(ROOT / name, repo / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "built_in", "none"):
        shutil.copy(ROOT / name, repo)
    for number in range(2):
        write_clips(folder / f"shard-{number:05d}.tar", range(30 * number, 30 * number + 30))
    own = {
        "clips.source": f"{folder}/shard-*.tar",
        "clips.val_fraction": 0.2,
        "clips.conditions.text_components": 4,
        "drift.K": 3,
        "drift.corruption.levels": 1,
        "drift.refiner.detail": 0,
        "drift.refiner.patch": 2,
        "drift.refiner.beside": "text",
        "drift.corruption.min_keyframes": 2,
        "drift.evaluation.components": 3,
        "drift.storyboards.held_out.keyframes": [0, 2],
    }
    override(repo, TINY | own)
    for name, *item in CHAIN:
        run(repo, name, *item)
    return repo


@pytest.fixture
def damaged(trained: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "repo"))


def test_the_strand_runs_on_a_user_s_own_shards(trained: Path) -> None:
    figures = json.loads((trained / "metrics/drift.json").read_text())
    ratios = {"frechet_ratio", "frechet_pca_ratio", "paired_error_ratio"}
    readings = {"reader_ratio", "ghost_ratio"}
    assert set(figures) == {*ratios, *readings, "motion_energy", "status"}
    assert {name for name, value in figures.items() if value is None} == readings
    with (trained / "plots/drift_methods.csv").open() as content:
        methods = {row["method"]: row for row in csv.DictReader(content)}
    rows = ["interpolated", "refined", "unclamped", "shuffled", "paired", "cold", "real", "chance"]
    assert list(methods) == rows
    assert methods["refined"]["reader_reason"]
    assert {"frechet_pca", "energy_pca", "mse_missing"} <= set(methods["refined"])
    assert (
        float(methods["refined"]["keyframe_mse"]) == 0 < float(methods["unclamped"]["keyframe_mse"])
    )
    assert list((trained / "plots/drift_evaluation").glob("*.gif"))
    imputed = load_file(trained / "data/storyboards/held_out.safetensors")["latents"]
    clips = open_clips(trained / "data/clips")
    given = clips.latents(clips.indices("test")[:1])[0]
    assert torch.equal(imputed[:, [0, 2]], given[:, [0, 2]])


@pytest.mark.parametrize("name", ["train_drift_drift", "train_drift_paired", "train_latent_mae"])
def test_trainings_leave_an_experiment_card(trained: Path, name: str) -> None:
    card = (trained / f"metrics/runtime/cards/{name}.md").read_text()
    for section in ("Header", "Data", "Model and loss", "Runtime", "Results"):
        assert f"## {section}" in card
    assert card.splitlines()[2].startswith(("**keep**: ", "**drop**: "))
    assert "| clips_estimated | 60 |" in card


@pytest.mark.parametrize(
    ("stage", "key", "value", "message"),
    [
        ("quantize", "drift.K", 10_000, "drift.K"),
        (
            "train_drift",
            "drift.corruption.min_keyframes",
            99,
            "drift.corruption.min_keyframes is 99",
        ),
        ("train_drift", "drift.corruption.levels", 9, "drift.corruption.levels is 9"),
        ("train_drift", "drift.corruption.student_replace_prob", 0.5, "anchor"),
        ("train_drift", "drift.refiner.heads", 5, "drift.refiner.dim is 12"),
        ("train_drift", "drift.refiner.patch", 4, "drift.refiner.patch is 4, expected a divisor"),
        ("train_drift", "drift.refiners.drift.features.families", ["edges"], "edges"),
        ("train_drift", "drift.refiners.drift.start", "models/drift/second", "second: missing"),
        ("train_drift", "drift.refiners.drift.features", None, "expected features beside it"),
        ("train_drift", "drift.batches.positives", 7, "positives is 7, expected at most"),
    ],
)
def test_an_impossible_param_is_named(
    damaged: Path, stage: str, key: str, value: Any, message: str
) -> None:
    override(damaged, {key: value})
    item = ("drift",) if stage == "train_drift" else ()
    assert message in fault(damaged, stage, *item)


def test_a_package_that_is_not_there_is_named(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    override(damaged, {"clips.conditions.text": "wordllama"})
    monkeypatch.setattr("braid.clips.shards.words.find_spec", lambda name: None)
    for stage, *item in (("quantize",), ("train_drift", "drift")):
        assert "clips.conditions.text is wordllama" in fault(damaged, stage, *item)


def test_a_broken_encoder_is_named(damaged: Path) -> None:
    (damaged / "models/latent_mae/model.safetensors").write_bytes(b"broken")
    assert "models/latent_mae: expected config.json" in fault(damaged, "train_drift", "drift")


def test_a_refiner_of_too_few_classes_or_a_missing_one_is_named(damaged: Path) -> None:
    shutil.rmtree(damaged / "models/drift/paired")
    assert "models/drift/paired: missing" in fault(damaged, "evaluate_drift")


def test_a_user_s_storyboard_is_filled_in_and_a_wrong_one_is_named(
    damaged: Path, tmp_path: Path
) -> None:
    clips = open_clips(damaged / "data/clips")
    path = tmp_path / "mine.safetensors"
    latents = clips.latents([0])[0]
    save_file({"latents": latents, "embedding": clips.texts([0])[0]}, path)
    board = {"source": str(path), "clip": 0, "keyframes": [0, 1, 2], "alpha": 1.0}
    override(damaged, {"drift.storyboards.mine": board})
    run(damaged, "impute_storyboard", "mine")
    imputed = load_file(damaged / "data/storyboards/mine.safetensors")["latents"]
    assert torch.equal(imputed, latents)  # every frame was given
    override(damaged, {"drift.storyboards.mine.keyframes": [0, 9]})
    assert "keyframes are [0, 9], expected" in fault(damaged, "impute_storyboard", "mine")
    override(damaged, {"drift.storyboards.mine": board})
    path.write_bytes(b"broken")
    assert "mine.safetensors: expected" in fault(damaged, "impute_storyboard", "mine")
    words = board | {"prompt": "a red seven"}
    override(damaged, {"drift.storyboards.mine": words | {"source": "data/clips"}})
    assert "prompt: of the built-in clips only" in fault(damaged, "impute_storyboard", "mine")
    folder = tmp_path / "pictures"
    folder.mkdir()
    override(damaged, {"drift.storyboards.mine": board | {"source": str(folder)}})
    assert "0 pictures at frames [0, 1, 2]" in fault(damaged, "impute_storyboard", "mine")
    for name in "abc":
        Image.new("RGB", (9, 9)).save(folder / f"{name}.png")
    assert "clips.wan_vae is none, expected" in fault(damaged, "impute_storyboard", "mine")


def test_a_refiner_is_compiled_where_its_params_say_so(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(Refiner, "compile", lambda refiner: compiled.append(refiner))
    override(damaged, {"drift.refiners.paired.steps": 2})
    for wanted in (False, True):
        override(damaged, {"drift.refiners.paired.compile": wanted})
        run(damaged, "train_drift", "paired")
        assert len(compiled) == wanted


@pytest.mark.parametrize("change", [{"start": "none"}, {"lr_scale": 1.0}])
def test_a_refiner_s_start_and_rate_count(damaged: Path, change: dict[str, Any]) -> None:
    weights = damaged / "models/drift/drift/model.safetensors"
    before = load_file(weights)
    override(damaged, {f"drift.refiners.drift.{key}": value for key, value in change.items()})
    run(damaged, "train_drift", "drift")
    after = load_file(weights)
    assert not torch.equal(before["embed.weight"], after["embed.weight"])


def test_regression_does_not_rerun_for_what_drifting_compares(damaged: Path) -> None:
    def settings(name: str) -> list[Any]:
        params = load_yaml(damaged / "params.yaml")
        declared = declaration(damaged, "train_drift", (name,)).params
        return [reduce(getitem, key.split("."), params) for key in declared]

    before = {name: settings(name) for name in ("paired", "drift")}
    override(damaged, {"drift.refiners.drift.features.vanilla": ["clip"]})
    assert settings("paired") == before["paired"]
    assert settings("drift") != before["drift"]
