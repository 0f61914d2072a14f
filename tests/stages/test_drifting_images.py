"""The image pivot from end to end: what its stages leave, and that every param has a say."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from braid.drifting.image.refiner import ImageRefiner
from tests.stages.conftest import ROOT, fault, run
from tests.tiny import TINY, override

CHAIN = (
    "prepare_images",
    "train_image_mae",
    "train_drift_image",
    "evaluate_drift_image",
    "evaluate_image_representation",
)
SMALL = {
    key: value
    for key, value in TINY.items()
    if key.startswith(
        ("image_mae.", "image_drift.", "clips.representation.", "hardware.", "training.")
    )
}
SHORT = {"image_mae.steps": 4, "image_drift.training.steps": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which the stages have run once."""
    repo = tmp_path_factory.mktemp("images") / "repo"
    repo.mkdir()
    for name in ("braid", "stages"):  # copies of the repository share the code
        (repo / name).symlink_to(ROOT / name)
    for name in ("params.yaml", "dvc.yaml", "none"):
        shutil.copy(ROOT / name, repo)
    override(repo, SMALL | SHORT)
    for stage in CHAIN:
        run(repo, stage)
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


def methods(repo: Path) -> dict[str, dict[str, str]]:
    """The rows of the evaluation's table by method."""
    return {row["method"]: row for row in table(repo, "metrics/tables/drift_image")}


def results(repo: Path, *names: str) -> dict[str, bytes]:
    """What the clock has no say in."""
    paths = [path for name in names for path in sorted((repo / name).rglob("*")) if path.is_file()]
    paths += [repo / name for name in names if (repo / name).is_file()]
    return {str(path.relative_to(repo)): path.read_bytes() for path in paths}


def test_every_level_and_every_method_is_evaluated(trained: Path) -> None:
    levels = table(trained, "plots/drift_image_levels")
    assert [row["given"] for row in levels] == ["8", "4", "0"]
    assert {row["given_error_clamped"] for row in levels[:2]} == {"0"}
    assert all(float(row["given_error_unclamped"]) > 0 for row in levels[:2])
    sweep = table(trained, "plots/drift_image_alpha")
    assert [(row["alpha"], row["trained"]) for row in sweep] == [("1", "1"), ("2", "1"), ("4", "0")]
    assert {row["images"] for row in methods(trained).values()} == {"100"}
    assert methods(trained)["refined"]["frechet"] == methods(trained)["unclamped"]["frechet"]
    assert methods(trained)["clamped"]["frechet"] == levels[1]["frechet_clamped"]
    figures = metrics(trained, "drift_image")
    assert figures["accuracy"]["real"] > 0.8
    for method, frechet in figures["frechet"].items():
        assert f"{frechet:.7g}" == methods(trained)[method]["frechet"]
    pictures = {path.name for path in (trained / "plots/drift_image_evaluation").iterdir()}
    assert pictures == {"classes.png", "levels.png"}


def test_validation_images_are_evaluated_at_every_level(trained: Path) -> None:
    (row,) = table(trained, "plots/drift_image/validation")
    assert row["step"] == "4"
    assert {"frechet_0", "recall_4", "variance_ratio_8"} <= set(row)
    rows = table(trained, "metrics/tables/drift_image_training")
    assert [(row["given"], row["method"]) for row in rows] == [
        (given, method) for given in "840" for method in ("interpolated", "refined")
    ]
    assert rows[-1]["frechet"] == row["frechet_0"]
    assert rows[-1]["classes"] == "10"
    figures = metrics(trained, "drift_image_training")
    assert set(figures) == {"frechet", "recall", "status"}
    assert f"{figures['frechet']['generated']:.7g}" == row["frechet_0"]


def test_encoders_are_evaluated_by_the_images_classes(trained: Path) -> None:
    rows = {row["space"]: row for row in table(trained, "metrics/tables/image_representation")}
    assert list(rows) == ["pixels", "image_mae", "untrained_mae"]
    assert {row["clips"] for row in rows.values()} == {"60"}
    probes = [float(row["linear_probe"]) for row in rows.values()]
    assert min(probes) > 0.5 > float(rows["pixels"]["linear_probe_chance"])
    assert (trained / "plots/image_representation/neighbors_image_mae.png").exists()


def test_trainings_leave_an_experiment_card(trained: Path) -> None:
    cards = trained / "metrics/runtime/cards"
    drift, mae = ((cards / f"{name}.md").read_text() for name in CHAIN[2:0:-1])
    for card in (drift, mae):
        assert "| source | built_in |" in card
        assert card.splitlines()[2].startswith(("**keep**: ", "**drop**: "))
    assert "| encoder | frozen |" in drift
    assert "| image_drift.features.encoder | latent_mae |" in drift
    assert "| frechet.generated | " in drift


@pytest.mark.parametrize(
    ("stage", "outs"),
    [
        ("train_drift_image", ["models/drift_image", "plots/drift_image"]),
        ("evaluate_drift_image", ["metrics/drift_image.json", "plots/drift_image_evaluation"]),
    ],
)
def test_the_same_seed_gives_the_same_bytes(repo: Path, stage: str, outs: Sequence[str]) -> None:
    before = results(repo, *outs)
    shutil.rmtree(repo / "scratch", ignore_errors=True)
    run(repo, stage)
    assert results(repo, *outs) == before


def test_encoders_that_do_not_count_are_not_run(repo: Path) -> None:
    curves = "plots/drift_image/train"
    assert "encoder" in table(repo, curves)[0]
    (repo / "models/image_mae/model.safetensors").unlink()
    assert "models/image_mae: expected config.json" in fault(repo, "train_drift_image")
    override(repo, {"image_drift.features.encoder_weight": 0})
    run(repo, "train_drift_image")
    assert not [name for name in table(repo, curves)[0] if name.startswith("encoder")]
    card = (repo / "metrics/runtime/cards/train_drift_image.md").read_text()
    assert "| encoder | none |" in card


TRAINING_CHANGES = [
    ("corruption.given", [9, 4, 0]),
    ("corruption.interpolator", "harmonic"),
    ("corruption.noise", 0.2),
    ("loss.temperatures", [0.05]),
    ("loss.attraction", 1.5),
    ("loss.floor", 0.01),
    ("loss.self_mask", 1.0e-3),
    ("loss.weighting", "logit"),
    ("loss.reduction", "sum"),
    ("loss.scale_scope", "class"),
    ("features.families", ["clip"]),
    ("features.locations", 3),
    ("features.encoder_weight", 0.1),
    ("features.vanilla_weight", 0),
    ("batches.negatives", 0),
    ("batches.alpha_max", 1),
    ("batches.alpha_power", 0),
    ("refiner.patch", 1),
    ("refiner.spread", 1),
    ("refiner.keep_anchors_fixed", True),
    ("optimizer.accumulate", 2),
    ("training.steps", 5),
]


@pytest.mark.parametrize(("key", "value"), TRAINING_CHANGES)
def test_training_params_have_a_say(repo: Path, key: str, value: Any) -> None:
    before = results(repo, "models/drift_image")
    override(repo, {f"image_drift.{key}": value})
    run(repo, "train_drift_image")
    after = results(repo, "models/drift_image")
    assert after["models/drift_image/model.safetensors"] not in before.values()


@pytest.mark.parametrize(
    ("key", "value"),
    [("head_weight", 0), ("head_fraction", 1), ("mask_ratio", 0.9), ("batch", 9), ("steps", 5)],
)
def test_masked_autoencoder_params_have_a_say(repo: Path, key: str, value: float) -> None:
    before = results(repo, "models/image_mae")
    override(repo, {f"image_mae.{key}": value})
    run(repo, "train_image_mae")
    after = results(repo, "models/image_mae")
    assert after["models/image_mae/model.safetensors"] not in before.values()
    assert ("accuracy" in metrics(repo, "image_mae")) == (key != "head_weight")


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("train_images", 210, "metrics/tables/drift_image.csv"),
        ("test_images", 90, "metrics/tables/drift_image.csv"),
        ("components", 7, "metrics/tables/drift_image.csv"),
        ("neighbors", 4, "metrics/tables/drift_image.csv"),
        ("alpha", 2.0, "metrics/tables/drift_image.csv"),
        ("alphas", [1.5], "plots/drift_image_alpha.csv"),
        ("samples", 1, "plots/drift_image_evaluation/classes.png"),
    ],
)
def test_evaluation_params_have_a_say(repo: Path, key: str, value: Any, changed: str) -> None:
    before = results(repo, changed)
    override(repo, {f"image_drift.evaluation.{key}": value})
    run(repo, "evaluate_drift_image")
    assert results(repo, changed) != before


def test_without_generation_its_figures_are_null_with_a_reason(repo: Path) -> None:
    override(repo, {"image_drift.corruption.given": [8, 4]})
    run(repo, "train_drift_image")
    run(repo, "evaluate_drift_image")
    assert metrics(repo, "drift_image_training")["frechet"]["generated"] is None
    figures = metrics(repo, "drift_image")
    assert figures["status"] is figures["frechet"]["generated"] is figures["recall"] is None
    reason = methods(repo)["generated"]["status_reason"]
    assert reason == "image_drift.corruption.given has no 0"
    assert figures["frechet"]["refined"] > 0


def test_given_patches_stay_as_they_are_where_the_refiner_keeps_them(repo: Path) -> None:
    override(repo, {"image_drift.refiner.keep_anchors_fixed": True})
    run(repo, "train_drift_image")
    run(repo, "evaluate_drift_image")
    rows = methods(repo)
    assert float(rows["refined"]["given_error"]) == 0 < float(rows["unclamped"]["given_error"])
    assert rows["refined"]["frechet"] == rows["clamped"]["frechet"]


def test_pseudo_classes_and_latents_go_all_the_way(repo: Path) -> None:
    noise = {"source": "noise", "noise_images": 400, "size": 64, "input_space": "latent"}
    conditions = {"conditions": "kmeans", "K": 3}
    override(repo, {f"images.{key}": value for key, value in (noise | conditions).items()})
    for stage in CHAIN:
        run(repo, stage)
    assert table(repo, "metrics/tables/images")[0]["channels"] == "4"
    assert table(repo, "metrics/tables/drift_image_training")[1]["classes"] == "3"
    assert 0 < metrics(repo, "drift_image")["accuracy"]["real"] <= 1


def test_a_refiner_is_compiled_where_its_params_say_so(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(ImageRefiner, "compile", lambda refiner: compiled.append(refiner))
    override(repo, {"image_drift.training.compile": True})
    run(repo, "train_drift_image")
    assert len(compiled) == 1


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        ("train_image_mae", {"image_mae.width": 6}, "image_mae.width"),
        ("train_drift_image", {"corruption.given": [4, 8]}, "given is [4, 8], expected"),
        ("train_drift_image", {"corruption.given": [16]}, "from below 16"),
        ("train_drift_image", {"corruption.interpolator": "x"}, "corruption.interpolator: Input"),
        ("train_drift_image", {"refiner.patch": 3}, "refiner.patch is 3"),
        ("train_drift_image", {"refiner.heads": 3}, "refiner.dim is 8"),
        ("train_drift_image", {"features.families": ["motion"]}, "features.families.0: Input"),
        (
            "train_drift_image",
            {"features.encoder_weight": 0, "features.vanilla_weight": 0},
            "encoder_weight and vanilla_weight are",
        ),
        ("train_drift_image", {"features.encoder": "resnet"}, "features.resnet is none"),
        ("train_drift_image", {"batches.positives": 9}, "expected at most bank: 8"),
        ("train_drift_image", {"evaluation.components": 65}, "expected at most"),
        ("evaluate_drift_image", {"evaluation.components": 65}, "expected at most"),
        ("evaluate_drift_image", {"evaluation.neighbors": 100}, "more than 100"),
        ("evaluate_drift_image", {"corruption.given": [8, 6, 4, 0]}, "at 4 levels"),
    ],
)
def test_an_impossible_param_is_named(
    repo: Path, stage: str, changes: dict[str, Any], message: str
) -> None:
    section = "" if stage == "train_image_mae" else "image_drift."
    override(repo, {f"{section}{key}": value for key, value in changes.items()})
    assert message in fault(repo, stage)


def test_a_refiner_of_other_images_is_refused(repo: Path) -> None:
    other = {"images.source": "noise", "images.noise_images": 100, "images.size": 16, "images.K": 2}
    override(repo, other)
    run(repo, "prepare_images")
    assert "the refiner is of images [1, 8, 8]" in fault(repo, "evaluate_drift_image")
