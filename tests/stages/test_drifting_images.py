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
from tests.stages.conftest import ROOT, fault, override, run
from tests.tiny import TINY

CHAIN = ("prepare_images", "train_image_mae", "train_drift_image", "evaluate_drift_image")
SECTIONS = [name for name in TINY if name.startswith("image_")]
NO_WEIGHT = {"encoder_weight": 0, "vanilla_weight": 0}
SHORT = {"image_mae": {"steps": 4}, "image_training": {"steps": 4}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which the four stages have run once."""
    repo = tmp_path_factory.mktemp("images") / "repo"
    repo.mkdir()
    for name in ("braid", "stages"):  # copies of the repository share the code
        (repo / name).symlink_to(ROOT / name)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, repo)
    override(repo, **{name: TINY[name] for name in ("hardware", "cadence", *SECTIONS)})
    override(repo, **SHORT)
    for stage in CHAIN:
        run(repo, stage)
    return repo


@pytest.fixture
def repo(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "repo", symlinks=True))


def metrics(repo: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((repo / f"metrics/{name}.json").read_text())
    return content


def table(repo: Path, name: str) -> list[dict[str, str]]:
    with (repo / f"plots/{name}.csv").open() as content:
        return list(csv.DictReader(content))


def results(repo: Path, *names: str) -> dict[str, bytes]:
    """What the clock has no say in."""
    paths = [path for name in names for path in sorted((repo / name).rglob("*")) if path.is_file()]
    paths += [repo / name for name in names if (repo / name).is_file()]
    return {str(path.relative_to(repo)): path.read_bytes() for path in paths}


def test_every_level_and_every_method_is_judged(trained: Path) -> None:
    levels = table(trained, "drift_image_levels")
    assert [row["known"] for row in levels] == ["8", "4", "0"]
    assert {row["known_error_clamped"] for row in levels[:2]} == {"0"}
    assert all(float(row["known_error_unclamped"]) > 0 for row in levels[:2])
    sweep = table(trained, "drift_image_alpha")
    assert [(row["alpha"], row["trained"]) for row in sweep] == [("1", "1"), ("2", "1"), ("4", "0")]
    figures = metrics(trained, "drift_image")
    assert figures["images"] == 100
    assert figures["accuracy_real"] > 0.8
    assert figures["frechet_refined"] == figures["frechet_unclamped"]
    looked = table(trained, "drift_image/validation")
    assert [row["step"] for row in looked] == ["4"]
    assert {"frechet_0", "recall_4", "variance_ratio_8"} <= set(looked[0])
    pictures = {path.name for path in (trained / "plots/drift_image_evaluation").iterdir()}
    assert pictures == {"classes.png", "levels.png"}


def test_trainings_leave_an_experiment_card(trained: Path) -> None:
    cards = trained / "metrics/runtime/cards"
    drift, mae = ((cards / f"{name}.md").read_text() for name in CHAIN[2:0:-1])
    for card in (drift, mae):
        assert "| source | digits |" in card
        assert card.splitlines()[2].startswith(("**keep**: ", "**drop**: "))
    assert "| encoder | frozen |" in drift
    assert "| image_features.encoder | latent_mae |" in drift


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
    assert "encoder" in table(repo, "drift_image/train")[0]
    (repo / "models/image_mae/model.safetensors").unlink()
    assert "models/image_mae: expected config.json" in fault(repo, "train_drift_image")
    override(repo, image_features={"encoder_weight": 0})
    run(repo, "train_drift_image")
    assert not [name for name in table(repo, "drift_image/train")[0] if name.startswith("encoder")]
    card = (repo / "metrics/runtime/cards/train_drift_image.md").read_text()
    assert "| encoder | none |" in card


TRAINING_CHANGES = [
    ("image_corruption", {"known": [9, 4, 0]}),
    ("image_corruption", {"interpolator": "harmonic"}),
    ("image_corruption", {"noise": 0.2}),
    ("image_drift", {"temperatures": [0.05]}),
    ("image_drift", {"attraction": 1.5}),
    ("image_drift", {"floor": 0.01}),
    ("image_drift", {"self_mask": 1.0e-3}),
    ("image_drift", {"weighting": "logit"}),
    ("image_drift", {"reduction": "sum"}),
    ("image_drift", {"scale_scope": "class"}),
    ("image_features", {"families": ["clip"]}),
    ("image_features", {"locations": 3}),
    ("image_features", {"encoder_weight": 0.1}),
    ("image_features", {"vanilla_weight": 0}),
    ("image_batches", {"negatives": 0}),
    ("image_batches", {"alpha_max": 1}),
    ("image_batches", {"alpha_power": 0}),
    ("image_refiner", {"patch": 1}),
    ("image_refiner", {"spread": 1}),
    ("image_refiner", {"keep_anchors_fixed": True}),
    ("image_refiner_optimisation", {"accumulate": 2}),
    ("image_training", {"steps": 5}),
]


@pytest.mark.parametrize(("section", "change"), TRAINING_CHANGES)
def test_training_params_have_a_say(repo: Path, section: str, change: dict[str, Any]) -> None:
    before = results(repo, "models/drift_image")
    override(repo, **{section: change})
    run(repo, "train_drift_image")
    after = results(repo, "models/drift_image")
    assert after["models/drift_image/model.safetensors"] not in before.values()


@pytest.mark.parametrize(
    "change",
    [{"head_weight": 0}, {"head_share": 1}, {"mask_ratio": 0.9}, {"batch": 9}, {"steps": 5}],
)
def test_masked_autoencoder_params_have_a_say(repo: Path, change: dict[str, Any]) -> None:
    before = results(repo, "models/image_mae")
    override(repo, image_mae=change)
    run(repo, "train_image_mae")
    after = results(repo, "models/image_mae")
    assert after["models/image_mae/model.safetensors"] not in before.values()
    assert ("head_accuracy" in metrics(repo, "image_mae")) == (change.get("head_weight") != 0)


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"train_images": 210}, "metrics/drift_image.json"),
        ({"test_images": 90}, "metrics/drift_image.json"),
        ({"components": 7}, "metrics/drift_image.json"),
        ({"neighbours": 4}, "metrics/drift_image.json"),
        ({"alpha": 2.0}, "metrics/drift_image.json"),
        ({"alphas": [1.5]}, "plots/drift_image_alpha.csv"),
        ({"samples": 1}, "plots/drift_image_evaluation/classes.png"),
    ],
)
def test_evaluation_params_have_a_say(repo: Path, change: dict[str, Any], changed: str) -> None:
    before = results(repo, changed)
    override(repo, image_evaluation=change)
    run(repo, "evaluate_drift_image")
    assert results(repo, changed) != before


def test_without_generation_its_figures_are_null_with_a_reason(repo: Path) -> None:
    override(repo, image_corruption={"known": [8, 4]})
    run(repo, "train_drift_image")
    run(repo, "evaluate_drift_image")
    figures = metrics(repo, "drift_image")
    assert figures["status"] is figures["frechet_generated"] is figures["recall"] is None
    assert figures["status_reason"] == "image_corruption.known has no 0"
    assert figures["frechet_refined"] > 0


def test_known_patches_stay_as_they_are_where_the_refiner_was_told_so(repo: Path) -> None:
    override(repo, image_refiner={"keep_anchors_fixed": True})
    run(repo, "train_drift_image")
    run(repo, "evaluate_drift_image")
    figures = metrics(repo, "drift_image")
    assert figures["known_error_refined"] == 0 < figures["known_error_unclamped"]
    assert figures["frechet_refined"] == figures["frechet_clamped"]


def test_pseudo_classes_and_latents_go_all_the_way(repo: Path) -> None:
    noise = {"source": "fake", "fake_images": 400, "size": 64, "input_space": "latent"}
    override(repo, images={**noise, "conditions": "kmeans", "K": 3})
    for stage in CHAIN:
        run(repo, stage)
    assert metrics(repo, "images")["channels"] == 4
    assert metrics(repo, "drift_image_training")["classes"] == 3
    assert 0 < metrics(repo, "drift_image")["accuracy_real"] <= 1


def test_a_refiner_is_compiled_where_its_params_say_so(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(ImageRefiner, "compile", lambda refiner: compiled.append(refiner))
    override(repo, image_refiner={"compile": True})
    run(repo, "train_drift_image")
    assert len(compiled) == 1


@pytest.mark.parametrize(
    ("stage", "section", "change", "said"),
    [
        ("train_image_mae", "image_mae", {"width": 6}, "image_mae.width"),
        ("train_drift_image", "image_corruption", {"known": [4, 8]}, "known is [4, 8], expected"),
        ("train_drift_image", "image_corruption", {"known": [16]}, "from below 16"),
        ("train_drift_image", "image_corruption", {"interpolator": "x"}, "interpolator"),
        ("train_drift_image", "image_refiner", {"patch": 3}, "image_refiner.patch is 3"),
        ("train_drift_image", "image_refiner", {"heads": 3}, "image_refiner.dim is 8"),
        ("train_drift_image", "image_features", {"families": ["motion"]}, "['motion'], expected"),
        ("train_drift_image", "image_features", NO_WEIGHT, "encoder_weight and vanilla_weight are"),
        ("train_drift_image", "image_batches", {"positives": 9}, "expected at most queue: 8"),
        ("train_drift_image", "image_evaluation", {"components": 65}, "expected at most"),
        ("evaluate_drift_image", "image_evaluation", {"components": 65}, "expected at most"),
        ("evaluate_drift_image", "image_evaluation", {"neighbours": 100}, "more than 100"),
        ("evaluate_drift_image", "image_corruption", {"known": [8, 6, 4, 0]}, "at 4 levels"),
    ],
)
def test_an_impossible_param_is_named(
    repo: Path, stage: str, section: str, change: dict[str, Any], said: str
) -> None:
    override(repo, **{section: change})
    assert said in fault(repo, stage)


def test_a_refiner_of_other_images_is_refused(repo: Path) -> None:
    override(repo, images={"source": "fake", "fake_images": 100, "size": 16, "K": 2})
    run(repo, "prepare_images")
    assert "models/drift_image: refines images [1, 8, 8]" in fault(repo, "evaluate_drift_image")
