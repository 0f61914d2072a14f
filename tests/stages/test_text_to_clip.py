"""Text to clip from end to end: what the stages leave, that params have a say, and bad input."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.stages.conftest import ROOT, fault, run
from tests.tiny import TINY, override

SMALL: dict[str, Any] = {
    key: value for key, value in TINY.items() if key.startswith(("clips.", "drift.", "hardware."))
}
SMALL |= {
    "training.log_every": 4,
    "drift.refiners.drift.start": "none",
    "drift.refiners.drift.encoder": "none",
    "drift.refiners.drift.features.encoder_weight": 0.0,
    "drift.refiners.drift.steps": 4,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which the stages have run once, for prompts of a file."""
    repo = tmp_path_factory.mktemp("text_to_clip") / "repo"
    repo.mkdir()
    for name in ("braid", "stages"):
        (repo / name).symlink_to(ROOT / name)
    for name in ("params.yaml", "dvc.yaml", "none", "built_in"):
        shutil.copy(ROOT / name, repo)
    (repo / "mine.txt").write_text(
        "a red seven grows, over black\n\na blue one spins clockwise, over navy\n"
    )
    override(repo, SMALL | {"drift.text_to_clip.prompts": "mine.txt"})
    run(repo, "prepare_clips")
    run(repo, "quantize")
    run(repo, "train_drift", "drift")
    for name in ("paired", "drift"):
        run(repo, "train_keyframes", name)
    run(repo, "generate_clips")
    return repo


@pytest.fixture
def repo(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "repo", symlinks=True))


def weights(repo: Path, name: str = "drift") -> bytes:
    return (repo / f"models/keyframes/{name}/model.safetensors").read_bytes()


def test_what_the_stages_leave(made: Path) -> None:
    figures = json.loads((made / "metrics/text_to_clip.json").read_text())
    wanted = "reader_digit reader_motion reader_digit_shuffled reader_digit_real frechet coverage"
    assert set(figures) == {*wanted.split(), "status"}
    with (made / "metrics/tables/text_to_clip.csv").open() as content:
        rows = {row["method"]: row for row in csv.DictReader(content)}
    methods = "generated paired closed_form interpolated shuffled true_keyframes real chance"
    assert set(rows) == set(methods.split())
    assert rows["generated"]["calls"] == "2"
    assert rows["generated"]["frechet"] == rows["shuffled"]["frechet"]  # the same clips
    assert (made / "data/generated/prompts.txt").read_text().splitlines() == [
        "a red seven grows, over black",
        "a blue one spins clockwise, over navy",
    ]
    clips = load_file(made / "data/generated/clips.safetensors")["latents"]
    assert clips.shape == (2, 16, 5, 4, 4)
    assert not clips[0].equal(clips[1])
    pictures = {path.name for path in (made / "plots/text_to_clip").iterdir()}
    assert {"first.png", "worst.png", "clip_0.gif", "prompt_0.gif", "prompt_1.png"} <= pictures


def test_the_same_seed_gives_the_same_bytes(repo: Path) -> None:
    before, clips = weights(repo), (repo / "data/generated/clips.safetensors").read_bytes()
    run(repo, "train_keyframes", "drift")
    run(repo, "generate_clips")
    assert weights(repo) == before
    assert (repo / "data/generated/clips.safetensors").read_bytes() == clips


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_weight", 3.0),
        ("network.bandwidth", 0.9),
        ("network.ridge", 0.5),
        ("network.clips", 40),
        ("trainings.drift.sigma", 0.2),
    ],
)
def test_each_param_has_a_say(repo: Path, name: str, value: Any) -> None:
    override(
        repo, {f"drift.keyframes.{name}": value, "drift.keyframes.trainings.drift.start": "none"}
    )
    before = weights(repo)
    override(repo, {f"drift.keyframes.{name}": value})
    run(repo, "train_keyframes", "drift")
    assert weights(repo) != before


@pytest.mark.parametrize(
    ("content", "message"),
    [("\n", "mine.txt: expected prompts"), ("word " * 17, "has 17 words, expected at most 16")],
)
def test_bad_prompts_are_named_before_work_starts(repo: Path, content: str, message: str) -> None:
    (repo / "mine.txt").write_text(content)
    assert message in fault(repo, "generate_clips")


def test_a_network_that_is_not_trained_is_refused(repo: Path) -> None:
    override(repo, {"drift.text_to_clip.keyframes": "other"})
    assert "text_to_clip.keyframes is other, expected a training: " in fault(repo, "generate_clips")
