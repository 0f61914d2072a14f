"""What the params of the strand refuse as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from braid.radiance.config import RadianceConfig
from braid.stage.params import load_yaml

PARAMS = Path(__file__).parents[2] / "params.yaml"


def radiance(**values: Any) -> RadianceConfig:
    return RadianceConfig(**{**load_yaml(PARAMS)["radiance"], **values})


def test_students_are_the_response_or_a_variant() -> None:
    assert radiance(students=["response", "sh"]).students == ("response", "sh")
    with pytest.raises(ValueError, match=r"expected response or a variant, got \['color'\]"):
        radiance(students=["response", "color"])


@pytest.mark.parametrize("name", ["scenes", "variants", "students"])
def test_there_is_something_to_train_and_to_evaluate(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}\n.*at least 1 item"):
        radiance(**{name: [] if name == "students" else {}})


def test_a_student_is_evaluated_once() -> None:
    with pytest.raises(ValueError, match=r"students\n.*each once, got more of \['sh'\]"):
        radiance(students=["response", "sh", "sh"])


@pytest.mark.parametrize(
    ("groups", "line"),
    [
        (["opacity", "count", "opacity"], r"each once, got more of \['opacity'\]"),
        (["sh", "sh_rest"], r"sh holds \['sh_rest'\]: expected sh or its parts"),
    ],
)
def test_a_feature_group_counts_once(groups: list[str], line: str) -> None:
    content = load_yaml(PARAMS)["radiance"]
    with pytest.raises(ValueError, match=rf"vae\.groups\n.*{line}"):
        radiance(vae=content["vae"] | {"groups": groups})
    variant = content["variants"]["control"] | {"groups": groups}
    with pytest.raises(ValueError, match=rf"variants\.a\.groups\n.*{line}"):
        radiance(variants={"a": variant}, students=["a"])


@pytest.mark.parametrize("teacher", ["model.obj", "built_in.ply.txt", "fitted"])
def test_a_teacher_is_a_ply_or_built_in(teacher: str) -> None:
    scene = {"source": "built_in", "downsample": 1}
    assert radiance(scenes={"a": {**scene, "teacher": "x.ply"}}).scenes["a"].teacher == "x.ply"
    with pytest.raises(ValueError, match=r"scenes\.a\.teacher"):
        radiance(scenes={"a": {**scene, "teacher": teacher}})


def test_a_variant_through_the_vae_compares_what_the_vae_has() -> None:
    own = {"vae": True, "photos": 0.0, "length": 1.0}
    vae = load_yaml(PARAMS)["radiance"]["vae"] | {"groups": ["sh", "opacity"]}
    fitting = {"a": {**own, "groups": ["sh_dc", "opacity"]}}
    assert radiance(vae=vae, variants=fitting, students=["a"]).variants["a"].vae
    with pytest.raises(ValueError, match=r"variants\.a\.groups: \['std'\]: not in vae\.groups"):
        radiance(vae=vae, variants={"a": {**own, "groups": ["sh", "std"]}}, students=["a"])


def test_a_variant_s_length_is_in_steps_of_the_others() -> None:
    config = radiance()
    steps = config.distill.steps
    assert config.variants["control"].distillation(config.distill) == config.distill
    assert config.variants["photos"].distillation(config.distill).steps == 5 * steps
    assert config.variants["photos"].length == config.variants["control_long"].length


def test_a_variant_through_the_vae_has_groups_and_those_of_the_vae() -> None:
    content = load_yaml(PARAMS)["radiance"]

    def through(of_vae: list[str], groups: list[str]) -> RadianceConfig:
        variant = content["variants"]["gaussian_all_vae"] | {"groups": groups}
        vae = content["vae"] | {"groups": of_vae}
        return radiance(vae=vae, variants={"a": variant}, students=["a"])

    for of_vae, groups in ((["sh"], ["sh_dc", "sh_rest"]), (["sh_dc", "sh_rest"], ["sh"])):
        assert through(of_vae, groups).variants["a"].vae
    with pytest.raises(ValueError, match=r"variants\.a\.groups: \['sh'\]: not in vae\.groups"):
        through(["sh_dc"], ["sh"])
    with pytest.raises(ValueError, match=r"variants\.a\.groups: expected one or more with vae"):
        through(["sh"], [])


def test_some_rays_are_drawn_uniformly() -> None:
    rays = load_yaml(PARAMS)["radiance"]["rays"]
    with pytest.raises(ValueError, match=r"rays\.hard\n.*less than 1"):
        radiance(rays=rays | {"hard": 1.0})
