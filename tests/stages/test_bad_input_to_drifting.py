"""The drifting strand on a user's own shards, and the one line that wrong settings get from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from braid.clips.shards.shards import open_clips
from braid.drifting.video.refiner import Refiner
from tests.clips.shard_files import write_clips
from tests.stages.conftest import ROOT, fault, override, run
from tests.tiny import TINY

CHAIN = (
    ("prepare_clips",),
    ("quantize",),
    ("train_latent_mae",),
    ("train_drift", "drift"),
    ("train_drift", "paired"),
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
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, repo)
    for number in range(2):
        write_clips(folder / f"shard-{number:05d}.tar", range(30 * number, 30 * number + 30))
    override(repo, **TINY)
    override(
        repo,
        clips={"source": f"{folder}/shard-*.tar", "val_share": 0.2},
        corruption={"levels": 1, "min_keyframes": 2},
        conditions={"text_components": 4},
        drift={"K": 3},
        drift_evaluation={"components": 3, "strips": 1},
    )
    board = {"source": "data/clips", "clip": 0, "keyframes": [0, 2], "alpha": 1.0}
    override(repo, storyboards={"held_out": board})
    for name, *item in CHAIN:
        run(repo, name, *item)
    return repo


@pytest.fixture
def spoilt(trained: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "repo"))


def test_the_strand_runs_on_a_user_s_own_shards(trained: Path) -> None:
    figures = json.loads((trained / "metrics/drift.json").read_text())
    required = (
        "frechet_interpolated frechet_refined frechet_pca_interpolated frechet_pca_refined "
        "energy_interpolated energy_refined mse_missing_interpolated mse_missing_refined "
        "keyframe_mse_refined keyframe_mse_unclamped status"
    )
    assert set(required.split()) <= set(figures)
    assert figures["keyframe_mse_refined"] == 0
    assert list((trained / "plots/drift_evaluation").glob("*.gif"))
    made = load_file(trained / "data/storyboards/held_out.safetensors")["latents"]
    clips = open_clips(trained / "data/clips")
    given = clips.latents(clips.indices("test")[:1])[0]
    assert torch.equal(made[:, [0, 2]], given[:, [0, 2]])


@pytest.mark.parametrize("name", ["train_drift_drift", "train_drift_paired", "train_latent_mae"])
def test_trainings_leave_an_experiment_card(trained: Path, name: str) -> None:
    card = (trained / f"metrics/runtime/cards/{name}.md").read_text()
    for section in ("Header", "Data", "Model and loss", "Runtime", "Results"):
        assert f"## {section}" in card
    assert card.splitlines()[2].startswith(("**keep**: ", "**drop**: "))
    assert "| clips_estimated | 60 |" in card


@pytest.mark.parametrize(
    ("stage", "section", "change", "said"),
    [
        ("quantize", "drift", {"K": 10_000}, "drift.K"),
        ("train_drift", "corruption", {"min_keyframes": 99}, "corruption.min_keyframes is 99"),
        ("train_drift", "corruption", {"levels": 9}, "corruption.levels is 9"),
        ("train_drift", "corruption", {"student_replace_prob": 0.5}, "anchor"),
        ("train_drift", "refiner", {"heads": 5}, "refiner.dim is 12"),
        ("train_drift", "drift_features", {"families": ["edges"]}, "edges"),
        ("train_drift", "drift_batches", {"positives": 7}, "positives is 7, expected at most"),
    ],
)
def test_an_impossible_param_is_named(
    spoilt: Path, stage: str, section: str, change: dict[str, Any], said: str
) -> None:
    override(spoilt, **{section: change})
    item = ("drift",) if stage == "train_drift" else ()
    assert said in fault(spoilt, stage, *item)


def test_a_broken_encoder_is_named(spoilt: Path) -> None:
    (spoilt / "models/latent_mae/model.safetensors").write_bytes(b"broken")
    assert "models/latent_mae: expected config.json" in fault(spoilt, "train_drift", "drift")


def test_a_refiner_of_too_few_classes_or_a_missing_one_is_named(spoilt: Path) -> None:
    shutil.rmtree(spoilt / "models/drift/paired")
    assert "models/drift/paired: missing" in fault(spoilt, "evaluate_drift")


def test_a_user_s_storyboard_is_filled_in_and_a_wrong_one_is_named(
    spoilt: Path, tmp_path: Path
) -> None:
    clips = open_clips(spoilt / "data/clips")
    path = tmp_path / "mine.safetensors"
    latents = clips.latents([0])[0]
    save_file({"latents": latents, "embedding": clips.texts([0])[0]}, path)
    board = {"source": str(path), "clip": 0, "keyframes": [0, 1, 2], "alpha": 1.0}
    override(spoilt, storyboards={"mine": board})
    run(spoilt, "impute_storyboard", "mine")
    made = load_file(spoilt / "data/storyboards/mine.safetensors")["latents"]
    assert torch.equal(made, latents)  # every frame was given
    override(spoilt, storyboards={"mine": {**board, "keyframes": [0, 9]}})
    assert "keyframes are [0, 9], expected" in fault(spoilt, "impute_storyboard", "mine")
    override(spoilt, storyboards={"mine": board})
    path.write_bytes(b"broken")
    assert "mine.safetensors: expected" in fault(spoilt, "impute_storyboard", "mine")


def test_a_refiner_is_compiled_where_its_params_say_so(
    spoilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(Refiner, "compile", lambda refiner: compiled.append(refiner))
    recipe = {"objective": "paired", "steps": 2, "validate_every": 4}
    for wanted in (False, True):
        override(spoilt, refiners={"paired": {**recipe, "compile": wanted}})
        run(spoilt, "train_drift", "paired")
        assert len(compiled) == wanted
