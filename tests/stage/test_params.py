"""params.yaml as DVC writes it, and the one line that a wrong key gets."""

from __future__ import annotations

import math
import re
import shutil
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from braid.radiance.config import AggregationConfig, FeatureGroup
from braid.radiance.features.aggregation import aggregate
from braid.radiance.features.table import ALIASES
from braid.radiance.gaussians.gaussians import Gaussians
from braid.radiance.scenes.grids import CellGrid
from braid.stage.params import (
    MODELS,
    Params,
    UndeclaredParam,
    check_params,
    declared_params,
    load_params,
    load_yaml,
)
from tests.tiny import override

ROOT = Path(__file__).parents[2]


def write_changed(tmp_path: Path, key: str, value: Any) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    override(tmp_path, {key: value})
    return tmp_path / "params.yaml"


@pytest.mark.parametrize("text", ["1e-05", "1e-5", "2e-05", "0.00001", "1E-3", "3"])
def test_a_float_as_dvc_writes_it_is_a_float(tmp_path: Path, text: str) -> None:
    content = (ROOT / "params.yaml").read_text().replace("step: 0", f"step: {text}\n  #", 1)
    path = tmp_path / "params.yaml"
    path.write_text(content)
    assert load_params(path).radiance.student.step == pytest.approx(float(text))


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
    ("key", "value"),
    [
        ("hardware.threads", 0),
        ("hardware.threads", -2),
        ("hardware.device", "tpu"),
        ("radiance.student.cells", "16"),
        ("radiance.student.hiden", 32),
        ("radiance.evaluation.chunk", 0),
        ("sam3.evaluation.images", 1),
        ("sam3.data.val", 1),
        ("sam3.phases", {}),
        ("sam3.students", {}),
        ("radiance.scenes", {}),
        ("drift.refiners", {}),
        ("drift.refiner.wan.density", 0.0),
        ("drift.refiner.backbone", "unet"),
        ("maze_drift.refiners", {}),
        ("radiance.students", ["sh", "sh"]),
        ("radiance.evaluation.figure_frames", [1, 1]),
        ("drift.loss.temperatures", [0.02, 0.2, 0.02]),
        ("image_drift.features.families", ["clip", "clip"]),
        ("sam3.prompts.withheld", ["red star", "red star"]),
        ("seed", 2**32),
        ("radiance.optimizer.lr", float("inf")),
        ("radiance.variants.photos.length", float("nan")),
    ],
)
def test_an_impossible_param_is_named_in_one_line(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{key}: ") as fault:
        load_params(write_changed(tmp_path, key, value))
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("drift.evaluation.refiner", "nope", "drift: .*evaluation.refiner is nope, expected a ref"),
        ("maze_drift.evaluation.keyframes", "paired", "expected a refiner whose task is keyframes"),
        ("maze_drift.evaluation.refiner", "keyframes", "expected .* whose task is refinement: pai"),
        ("drift.refiner.wan.rank", 4, r"drift.refiner: .*rank is positive, expected a folder"),
    ],
)
def test_params_that_do_not_fit_one_another_are_named(
    tmp_path: Path, key: str, value: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_params(write_changed(tmp_path, key, value))


RENAMED = load_yaml(ROOT / "braid/stage/renamed.yaml")


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_is_refused_with_its_new_name(old: str) -> None:
    values = load_yaml(ROOT / "params.yaml")
    *sections, name = old.split(".")
    place = values
    for section in sections:
        place = place.setdefault(section, {})
    place.setdefault(name, 1)
    with pytest.raises(ValueError, match=rf"{re.escape(old)}: is now {re.escape(RENAMED[old])}"):
        check_params(values, "params.yaml")


def test_every_leaf_of_an_old_section_is_named() -> None:
    values = load_yaml(ROOT / "params.yaml") | {"drift_batches": {"queue": 64, "classes": 3}}
    expected = (
        "params.yaml: drift_batches.queue: is now drift.batches.bank; "
        "drift_batches.classes: is now drift.batches.classes"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        check_params(values, "params.yaml")


def test_new_names_are_there() -> None:
    values = load_yaml(ROOT / "params.yaml")
    for new in RENAMED.values():
        reduce(getitem, new.split("."), values)


def test_a_key_that_never_was_gets_no_new_name() -> None:
    values = load_yaml(ROOT / "params.yaml") | {"refine": 1}
    with pytest.raises(ValueError, match=r"params\.yaml: refine: no such key$"):
        check_params(values, "params.yaml")


@pytest.mark.parametrize("name", ["my scene", "a@b", "lego.v2", 360, True, "-x", ""])
def test_a_name_that_a_stage_cannot_carry_is_refused_by_its_form(name: Any) -> None:
    values = load_yaml(ROOT / "params.yaml")
    values["radiance"]["scenes"] = {name: values["radiance"]["scenes"]["bricks"]}
    message = r"^params\.yaml: radiance\.scenes: expected a name of letters, digits, _ and -"
    with pytest.raises(ValueError, match=message):
        check_params(values, "params.yaml")


@pytest.mark.parametrize("name", ["lego-v2", "360", "true", "Lego", "légo", "x_1"])
def test_other_names_are_taken(name: str) -> None:
    values = load_yaml(ROOT / "params.yaml")
    values["radiance"]["scenes"] = {name: values["radiance"]["scenes"]["bricks"]}
    assert list(check_params(values, "params.yaml").radiance.scenes) == [name]


def test_the_models_are_those_of_the_annotations() -> None:
    annotations = dict(Params.__annotations__)
    assert annotations.pop("seed") == "int"
    assert annotations == {section: place.split(".")[-1] for section, place in MODELS.items()}


@pytest.mark.parametrize(("text", "value"), [(".inf", math.inf), ("-.INF", -math.inf)])
def test_infinities_are_floats(tmp_path: Path, text: str, value: float) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(f"key: {text}\nother: .nan\n")
    assert load_yaml(path)["key"] == value
    assert math.isnan(load_yaml(path)["other"])


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    params = load_yaml(ROOT / "params.yaml")
    del params["radiance"]["student"]["hidden"]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    with pytest.raises(ValueError, match=r"radiance\.student\.hidden: Field required"):
        load_params(path)


def test_broken_yaml_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(ValueError, match="no such file"):
        load_yaml(path)
    path.write_text("a: [1,\n")
    with pytest.raises(ValueError, match=r"params\.yaml: not valid YAML"):
        load_yaml(path)
    path.write_text("a: {b: 1, c: 2}\nd: {c: 1, e: {f: 1, f: 2}}\n")
    with pytest.raises(ValueError, match=r"params\.yaml: d\.e\.f: stands there twice$"):
        load_yaml(path)
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(ValueError, match=r"params\.yaml: not valid YAML"):
        load_yaml(path)


def test_one_declared_entry_does_not_open_its_neighbors() -> None:
    params = load_params(ROOT / "params.yaml")
    view = declared_params(params, ["radiance.variants.sh"], "a@b")
    assert view.radiance.variants["sh"] == params.radiance.variants["sh"]
    with pytest.raises(UndeclaredParam, match=r"reads the params 'radiance\.variants\.control'"):
        _ = view.radiance.variants["control"]
    with pytest.raises(AttributeError, match=r"params\.yaml has no radience"):
        _ = view.radience


def test_one_declared_key_does_not_open_its_section() -> None:
    view = declared_params(load_params(ROOT / "params.yaml"), ["drift.K"], "quantize")
    assert view.drift.K == load_params(ROOT / "params.yaml").drift.K
    with pytest.raises(UndeclaredParam, match=r"reads the params 'drift\.loss'"):
        _ = view.drift.loss


def test_groups_that_variants_may_name_are_those_of_the_features() -> None:
    gaussians = Gaussians(*(torch.zeros(2, *shape) for shape in ((3,), (3,), (4,), (), (4, 3))))
    gaussians.quaternions[:, 0] = 1
    how = AggregationConfig(weighting="mass", split="hard")
    table = aggregate(gaussians, CellGrid((-1, -1, -1), (1, 1, 1), (1, 1, 1)), how)
    assert {*table.schema.groups, *ALIASES} == set(get_args(FeatureGroup))


def test_an_undeclared_section_fails_with_its_name() -> None:
    params = load_params(ROOT / "params.yaml")
    view = declared_params(params, ["seed", "radiance.student"], "a@b")
    assert view.seed == params.seed
    assert view.radiance.student == params.radiance.student
    message = "stage a@b reads the params 'hardware', which dvc.yaml does not list"
    with pytest.raises(UndeclaredParam, match=message):
        _ = view.hardware
