"""The one line that bad features, renders or params get from a stage."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.radiance.features.table import StoredFeatures, load_features, save_features
from braid.radiance.scenes.grids import Occupancy, load_space, save_space
from tests.stages.conftest import CHAIN, fault, override, run

# ---- Features and students -------------------------------------------------------------------


def empty_features(repo: Path) -> None:
    path = repo / "data/features/own.npz"
    features, standardization, training = load_features(path)
    empty = {name: getattr(features, name)[:0] for name in ("cells", "values", "count", "weight")}
    none = type(features)(schema=features.schema, **empty)
    save_features(path, StoredFeatures(none, standardization, training[:0]))


@pytest.mark.parametrize("stage", [("train_vae", "own"), ("distill_features", "own", "sh")])
def test_empty_features(repo: Path, stage: tuple[str, ...]) -> None:
    empty_features(repo)
    line = fault(repo, *stage)
    assert re.search(r"data/features/own\.npz: expected at least one occupied cell, got none", line)


def test_a_grid_with_no_occupied_cell(repo: Path) -> None:
    path = repo / "data/teacher/own/space.safetensors"
    occupancy, field = load_space(path)
    nothing = torch.zeros_like(occupancy.occupied)
    save_space(path, Occupancy(nothing, occupancy.low, occupancy.high), field)
    line = fault(repo, "distill_response", "own")
    assert re.search(r"space\.safetensors: the occupancy grid has no occupied voxel", line)


def test_renders_that_are_cut_short(repo: Path) -> None:
    path = repo / "data/teacher/own/train/rgba.npy"
    path.write_bytes(path.read_bytes()[:-8])
    line = fault(repo, "distill_response", "own")
    assert re.search(r"data/teacher/own/train: expected rgba\.npy, depth\.npy", line)


def test_a_student_of_another_architecture(repo: Path) -> None:
    path = repo / "models/student/own/response/config.json"
    config = json.loads(path.read_text())
    config["field"]["layers"] += 1
    path.write_text(json.dumps(config))
    line = fault(repo, "distill_features", "own", "sh")
    assert re.search(r"models/student/own/response: expected a stored student", line)


def test_a_vae_of_other_features(repo: Path) -> None:
    override(repo, {"radiance.features.cells": 5})
    run(repo, "export_features", "own")
    line = fault(repo, "distill_features", "own", "gaussian_all_vae")
    assert re.search(r"models/feature_vae/own: the VAE was trained on feature schema", line)


def test_a_variant_that_does_not_exist(repo: Path) -> None:
    line = fault(repo, "distill_features", "own", "color")
    assert line.startswith("dvc.yaml declares no stage distill_features@own-color (it has: ")
    assert "distill_features@own-sh_opacity" in line
    override(repo, {"radiance.students": ["response", "color"]})
    line = fault(repo, "prepare_scene", "own")
    assert re.search(r"students: expected response or a variant, got \['color'\]", line)


def test_a_feature_group_that_does_not_exist(repo: Path) -> None:
    override(repo, {"radiance.variants.sh.groups": ["sh", "color"]})
    line = fault(repo, "prepare_scene", "own")  # at once, not after the teacher's half hour
    place = "params.yaml: radiance.variants.sh.groups.1: "
    assert line.startswith(place + "Input should be 'position', 'sh'")
    assert line.endswith("(got 'color')")


# ---- Params ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", CHAIN, ids=lambda stage: stage[0])
@pytest.mark.parametrize("key", ["hardware.threads", "radiance.evaluation.chunk"])
@pytest.mark.parametrize("value", [0, -4])
def test_no_threads_or_an_empty_chunk(
    repo: Path, stage: tuple[str, ...], key: str, value: int
) -> None:
    override(repo, {key: value})
    expected = f"params.yaml: {key}: Input should be greater than 0 (got {value})"
    assert fault(repo, *stage) == expected


def test_pictures_of_views_that_there_are_not(repo: Path) -> None:
    override(repo, {"radiance.evaluation.figure_frames": [2, 9]})
    line = fault(repo, "evaluate_radiance", "own", "response")
    assert line == "radiance.evaluation.figure_frames: expected one of 0 to 1, got [2, 9]"


@pytest.mark.parametrize("scenes", [None, 3, "lego", ["lego"], {"own": None}])
def test_scenes_that_are_no_mapping(repo: Path, scenes: Any) -> None:
    override(repo, {"radiance.scenes": scenes})
    assert fault(repo, "prepare_scene", "own").startswith("params.yaml: radiance.scenes")
