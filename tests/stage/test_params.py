"""params.yaml as DVC writes it, and the one line that a wrong key gets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from braid.radiance.config import FeatureGroup
from braid.radiance.features.aggregation import aggregate
from braid.radiance.features.table import ALIASES
from braid.radiance.gaussians.gaussians import Gaussians
from braid.radiance.scenes.cells import CellGrid
from braid.stage.params import UndeclaredParam, declared_params, load_params, load_yaml

ROOT = Path(__file__).parents[2]


def write_changed(tmp_path: Path, section: str, key: str, value: Any) -> Path:
    params = load_yaml(ROOT / "params.yaml")
    params[section][key] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    return path


@pytest.mark.parametrize("text", ["1e-05", "1e-5", "2e-05", "0.00001", "1E-3", "3"])
def test_a_float_as_dvc_writes_it_is_a_float(tmp_path: Path, text: str) -> None:
    content = (ROOT / "params.yaml").read_text().replace("step: 0", f"step: {text}\n  #", 1)
    path = tmp_path / "params.yaml"
    path.write_text(content)
    assert load_params(path).student.step == pytest.approx(float(text))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("012", 12),
        ("1:30", "1:30"),
        ("2e3", 2000.0),
        ("~", None),
        ("50_000", 50000),
    ],
)
def test_scalars_follow_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(f"key: {text}\n")
    assert load_yaml(path)["key"] == value


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("hardware", "threads", 0, "hardware.threads"),
        ("hardware", "threads", -2, "hardware.threads"),
        ("hardware", "device", "tpu", "hardware.device"),
        ("student", "cells", "16", "student.cells"),
        ("student", "hiden", 32, "student.hiden"),
        ("evaluation", "chunk", 0, "evaluation.chunk"),
        ("sam3_evaluation", "images", 1, "sam3_evaluation.images"),
    ],
)
def test_an_impossible_param_is_named_in_one_line(
    tmp_path: Path, section: str, key: str, value: object, named: str
) -> None:
    with pytest.raises(ValueError, match=named) as fault:
        load_params(write_changed(tmp_path, section, key, value))
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(("text", "value"), [(".inf", math.inf), ("-.INF", -math.inf)])
def test_infinities_are_floats(tmp_path: Path, text: str, value: float) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(f"key: {text}\nother: .nan\n")
    assert load_yaml(path)["key"] == value
    assert math.isnan(load_yaml(path)["other"])


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    params = load_yaml(ROOT / "params.yaml")
    del params["student"]["hidden"]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=r"student\.hidden: Field required"):
        load_params(path)


def test_broken_yaml_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(ValueError, match="no such file"):
        load_yaml(path)
    path.write_text("a: [1,\n")
    with pytest.raises(ValueError, match=r"params\.yaml: not valid YAML"):
        load_yaml(path)
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ValueError, match=r"params\.yaml: not valid YAML"):
        load_yaml(path)


def test_one_declared_entry_does_not_open_its_neighbours() -> None:
    view = declared_params(load_params(ROOT / "params.yaml"), ["variants.sh"], "a@b")
    assert set(view.variants) == {"sh"}
    with pytest.raises(AttributeError, match=r"params\.yaml has no varyants"):
        _ = view.varyants


def test_one_declared_key_does_not_open_its_section() -> None:
    view = declared_params(load_params(ROOT / "params.yaml"), ["drift.K"], "quantize")
    assert view.drift.K == load_params(ROOT / "params.yaml").drift.K
    with pytest.raises(UndeclaredParam, match=r"reads the params section 'drift\.floor'"):
        _ = view.drift.floor


def test_groups_that_variants_may_name_are_those_of_the_features() -> None:
    gaussians = Gaussians(*(torch.zeros(2, *shape) for shape in ((3,), (3,), (4,), (), (4, 3))))
    gaussians.quaternions[:, 0] = 1
    table = aggregate(
        gaussians, CellGrid((-1, -1, -1), (1, 1, 1), (1, 1, 1)), weighting="mass", split="hard"
    )
    assert {*table.schema.groups, *ALIASES} == set(get_args(FeatureGroup))


def test_an_undeclared_section_fails_with_its_name() -> None:
    view = declared_params(load_params(ROOT / "params.yaml"), ["seed", "scenes.bricks"], "a@b")
    assert view.seed == load_params(ROOT / "params.yaml").seed
    assert set(view.scenes) == {"bricks"}
    message = "stage a@b reads the params section 'student', which dvc.yaml does not list"
    with pytest.raises(UndeclaredParam, match=message):
        _ = view.student
