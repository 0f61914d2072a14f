"""Every recipe is one that DVC takes, params.yaml can have and the DAG can be made of."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import reduce
from itertools import pairwise
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides

from braid.stage.dag import declarations
from braid.stage.params import Params, check_params, load_params, load_yaml
from recipes import __main__ as command_line_tool
from recipes.overrides import DVC_FLAGS, command, merge, names, overrides, resolve

ROOT = Path(__file__).parents[2]
PARAMS = load_yaml(ROOT / "params.yaml")
HEAD = re.compile(
    r"(?:# .*\n)+#\n"
    r"# command: +(?P<command>.+)\n"
    r"# hardware: +\S.*\n(?:# {5,}.*\n)*"
    r"# cost: +\S.*\n(?:# {5,}.*\n)*"
    r"# expected: +\S.*\n(?:# {5,}.*\n)*"
    r"\n"
)
DEFAULTS = {"ga_ablate", "ga_softmask_30", "ga_vae_integ"}  # experiments that the default runs


def set_params(words: list[str]) -> list[str]:
    return [word for flag, word in pairwise(words) if flag == "-S"]


def as_dvc_writes_it(words: list[str], folder: Path) -> Path:
    """params.yaml after a command's `-S`, by DVC's own functions."""
    path = Path(shutil.copy(ROOT / "params.yaml", folder))
    changes = to_path_overrides(set_params(words))
    apply_overrides(path, changes.get("params.yaml", []))
    assert set(changes) <= {"params.yaml"}
    return path


def leaves(values: Mapping[str, Any], *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, *above, key)
        else:
            yield (*above, key), value


def at(values: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    try:
        return reduce(getitem, keys, values)
    except KeyError:
        return "absent"


@pytest.mark.parametrize("name", names(ROOT))
def test_dvc_makes_of_the_command_what_the_recipe_says(name: str, tmp_path: Path) -> None:
    settings = resolve(ROOT, name, PARAMS)
    words = command(ROOT, name, ["--queue"])
    assert words[:3] == ["dvc", "exp", "run"]
    assert len(words) == 4 + 2 * len(set_params(words))
    assert load_yaml(as_dvc_writes_it(words, tmp_path)) == settings


@pytest.mark.parametrize("name", names(ROOT))
def test_params_and_dag_are_valid(name: str, tmp_path: Path) -> None:
    load_params(as_dvc_writes_it(command(ROOT, name, []), tmp_path))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    outs = [out for stage in declarations(tmp_path) for out in stage.outs]
    assert len(outs) == len(set(outs)) > 0


@pytest.mark.parametrize("name", names(ROOT))
def test_no_line_is_dead(name: str) -> None:
    recipe = load_yaml(ROOT / f"recipes/{name}.yaml")
    base = recipe.pop("base", None)
    before = PARAMS if base is None else resolve(ROOT, base, PARAMS)
    changed = dict(leaves(recipe))
    assert changed or name in DEFAULTS
    for keys, value in changed.items():
        assert at(before, keys) != value, f"{'.'.join(keys)} is {value!r} anyway"


@pytest.mark.parametrize("name", names(ROOT))
def test_the_head_says_command_hardware_cost_and_figure(name: str, tmp_path: Path) -> None:
    head = HEAD.match((ROOT / f"recipes/{name}.yaml").read_text())
    assert head
    tool, target, *variables = shlex.split(head["command"])
    assert (tool, target, variables[0]) == ("make", "exp", f"RECIPE={name}")
    targets = [word for each in variables[1:] for word in each.removeprefix("ARGS=").split()]
    as_dvc_writes_it(command(ROOT, name, []), tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    stages = {stage.address for stage in declarations(tmp_path)}
    assert targets
    assert set(targets) <= stages


PROCESSES = {"imagenet_one_gpu": 1, "imagenet_eight_gpus": 8, "imagenet_four_machines": 32}


def recipe_params(name: str) -> Params:
    return check_params(resolve(ROOT, name, PARAMS), name)


@pytest.mark.parametrize(("name", "processes"), PROCESSES.items())
def test_effective_batches_are_those_of_the_paper(name: str, processes: int) -> None:
    params = recipe_params(name)
    drawn = params.image_drift.batches.classes * params.image_drift.batches.generated
    assert drawn * params.image_drift.optimizer.accumulate * processes == 4096
    pretrained = params.image_mae.batch * params.image_mae.optimizer.accumulate
    assert pretrained * processes == 8192
    assert params.image_drift.refiner.style == params.image_drift.refiner.dim == 768


def test_processes_are_those_that_the_launcher_starts() -> None:
    assert recipe_params("imagenet_one_gpu").launch.train == "python -m"
    assert "--nproc_per_node=8" in recipe_params("imagenet_eight_gpus").launch.train
    assert recipe_params("imagenet_four_machines").launch.train == "python -m"  # the job sets it


def test_the_latent_mae_of_wan_sees_the_paper_s_batch() -> None:
    params = recipe_params("wan")
    assert "--nproc_per_node=8" in params.launch.train
    assert params.latent_mae.batch * params.latent_mae.optimizer.accumulate * 8 == 8192


def test_further_arguments_are_passed_on_and_the_last_value_counts(tmp_path: Path) -> None:
    further = ["-S", "radiance.scenes.lego.source=/mine", "-S", "drift.K=512", "--queue", "-n", "x"]
    words = command(ROOT, "lego_800", further)
    assert words[-len(further) :] == further
    params = load_params(as_dvc_writes_it(words, tmp_path))
    assert params.radiance.scenes["lego"].source == "/mine"
    assert set(params.radiance.scenes) == {"lego"}
    assert params.drift.K == 512


NASTY = [
    "torchrun --nproc_per_node=8 -m",
    "/data/image net, k=1/[tr]{ain}:#~/shard-*.tar",
    r"""it's "quoted" \' and \ ends in \\""",
    "${not.a.key}",
    "true",
    "1e-5",
    "null",
    "",
]


@pytest.mark.parametrize("text", NASTY)
def test_any_string_arrives_as_it_is(text: str, tmp_path: Path) -> None:
    recipe = {"clips": {"source": text}, "sam3": {"prompts": {"withheld": [text, "b"]}}}
    settings = merge(PARAMS, recipe)
    words = [word for each in overrides(PARAMS, settings) for word in ("-S", each)]
    assert load_yaml(as_dvc_writes_it(words, tmp_path)) == settings


def test_entries_are_added_replaced_and_taken_away(tmp_path: Path) -> None:
    recipe = {
        "radiance": {
            "scenes": {"bricks": None, "chair": {"source": "/c", "teacher": "built_in"}},
            "vae": {"hidden": [64], "optimizer": {"clip_norm": 1e-5}},
            "optimizer": {"clip_norm": None},
        },
        "sam3": {"student": {"backbone_options": {"embed_dim": None, "depth": [1, 2, 3, 4]}}},
        "drift": {"storyboards": {"held_out": None}, "refiners": {"second": {}}},
    }
    settings = merge(PARAMS, recipe)
    assert settings["radiance"]["scenes"] == {"chair": {"source": "/c", "teacher": "built_in"}}
    assert settings["drift"]["storyboards"] == {}
    words = [word for each in overrides(PARAMS, settings) for word in ("-S", each)]
    assert {"~radiance.scenes.bricks", "+radiance.scenes.chair.source='/c'"} <= set(words)
    assert load_yaml(as_dvc_writes_it(words, tmp_path)) == settings


def test_a_recipe_runs_where_it_was_run_before() -> None:
    """`dvc exp run` leaves its params in the workspace."""
    after = resolve(ROOT, "lego_200", PARAMS)
    assert resolve(ROOT, "lego_200", after) == after
    assert list(overrides(after, after)) == []


def test_a_recipe_goes_on_from_its_base() -> None:
    base, further = (resolve(ROOT, name, PARAMS) for name in ("lego_200", "ga_vae_data_lego"))
    assert further["radiance"]["teacher"] == base["radiance"]["teacher"]
    assert further["radiance"]["features"]["cells"] == 128


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with no recipe but what a test writes."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/empty.yaml").write_text("{}\n")
    return tmp_path


def refusal(root: Path, name: str, *arguments: str) -> str:
    with pytest.raises(ValueError, match=r"^[^\n]+$") as fault:
        command(root, name, arguments)
    return str(fault.value)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"refiner": {"dim": 64}}, "recipes/mine.yaml: refiner.dim: is now drift.refiner.dim"),
        ({"drift": {"k": 5}}, "recipes/mine.yaml: drift.k: no such key"),
        ({"hardware": {"threads": 0}}, "recipes/mine.yaml: hardware.threads: Input should"),
        ({"launch": None}, "recipes/mine.yaml: launch: Field required"),
        ({"base": "nothing"}, "no recipe 'nothing'; there are empty, mine"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(
    root: Path, recipe: dict[str, Any], message: str
) -> None:
    (root / "recipes/mine.yaml").write_text(yaml.safe_dump(recipe))
    assert refusal(root, "mine").startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-S", "refiner.dim=64"], "refiner.dim: is now drift.refiner.dim"),
        (["-Srefiner.dim=64"], "refiner.dim: is now drift.refiner.dim"),
        (["-fS", "refiner.dim=64"], "refiner.dim: is now drift.refiner.dim"),
        (["-fvSrefiner.dim=64"], "refiner.dim: is now drift.refiner.dim"),
        (["--set-param=refiner.dim=64"], "refiner.dim: is now drift.refiner.dim"),
        (["-S", "params.yaml:distill.l2=1"], "distill.l2: is now radiance.distill.l2"),
        (["-S", "~scenes.bricks"], "scenes.bricks: is now radiance.scenes.bricks"),
        (["-S", "+scenes.chair={source: /c}"], "scenes.chair: is now radiance.scenes.chair"),
        (["-S", "seed=1", "--set-param", "drift.k=5"], "drift.k: no such key"),
        (["-S", "~drift.K.deep"], "drift.K.deep: no such key"),
        (["--queue", "-S"], "argument -S/--set-param: expected one argument"),
        (["-S", "drift.K=[1"], "-S: no viable alternative at input '[1'"),
    ],
)
def test_a_wrong_key_on_the_command_line_is_refused_in_one_line(
    root: Path, arguments: list[str], message: str
) -> None:
    assert refusal(root, "empty", *arguments).startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("images.sd_vae=null", "-S: images.sd_vae: Input should be a valid string, the word none"),
        ("drift.K=8.0", "-S: drift.K: Input should be a valid integer (got 8.0)"),
        ("drift.K=8,many", "-S: drift.K: Input should be a valid integer (got 'many')"),
        ("~drift.K", "-S: drift.K: Field required"),
        ("++drift.k=1", "-S: drift.k: no such key"),
    ],
)
def test_a_wrong_value_on_the_command_line_is_refused_in_one_line(
    root: Path, given: str, message: str
) -> None:
    """DVC would end in «unexpected error» where it names a dep, and else start its stages."""
    assert refusal(root, "empty", "--queue", "-S", given).startswith(message)


def test_keys_that_are_there_or_added_are_passed_on(root: Path) -> None:
    chair = "+radiance.scenes.chair={source: /c, teacher: built_in, downsample: 1}"
    further = ["-S", "seed=1", "-S", chair, "-S", "o.yaml:a.b=1", "-S", "drift.K=64,512"]
    assert command(root, "empty", further) == ["dvc", "exp", "run", *further]


@pytest.mark.parametrize("name", ["", "no_such", "../params"])
def test_an_unknown_recipe_lists_what_there_is(root: Path, name: str) -> None:
    fault = f"no recipe '{name}'" if name else "no recipe is named (RECIPE=…)"
    assert refusal(root, name) == f"{fault}; there are empty"


def test_flags_of_dvc_are_known(root: Path) -> None:
    """All those without a value; a flag that is not known would hide the `S` behind it."""
    usage = subprocess.run(["dvc", "exp", "run", "-h"], capture_output=True, text=True, check=True)
    flags = re.findall(r"^  -(\w)(?:, --[\w-]+)? +[A-Z]", usage.stdout, re.MULTILINE)
    assert set(flags) - {"h"} == set(DVC_FLAGS)


def test_the_tool_ends_in_one_line_or_becomes_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda _, words: started.append(words))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("sys.argv", ["recipes", "ga_softmask_45", "--queue"])
    command_line_tool.main()
    assert started == [["dvc", "exp", "run", "-S", "radiance.distill.threshold=0.45", "--queue"]]
    assert shutil.which("dvc")
    monkeypatch.setattr("sys.argv", ["recipes", "ga_smoke", "-S", "refiner.dim=64"])
    with pytest.raises(SystemExit, match=r"^error: refiner\.dim: is now drift\.refiner\.dim$"):
        command_line_tool.main()


def test_make_passes_recipe_and_arguments_on() -> None:
    arguments = """ARGS=-S 'launch.train=python -m' --queue"""
    printed = subprocess.run(
        ["make", "--no-print-directory", "-n", "exp", "RECIPE=wan", arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    last = shlex.split(printed.stdout.splitlines()[-1])
    assert last == ["python", "-m", "recipes", "wan", "-S", "launch.train=python -m", "--queue"]


def documents() -> str:
    listing = [*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("recipes/*.yaml")]
    texts = (path.read_text() for path in listing if path.name != "CHANGELOG.md")
    return "\n".join(texts)


def test_documents_name_recipes_that_exist_and_all_of_them() -> None:
    named = re.findall(r"(?:RECIPE=|-m recipes )(\w+)", documents())
    assert set(named) - {"name"} <= set(names(ROOT))
    page = (ROOT / "docs/recipes.md").read_text()
    assert [name for name in names(ROOT) if f"`RECIPE={name}`" not in page] == []


def test_documents_override_keys_that_exist() -> None:
    given = re.findall(r"-S ['\"]?(\+?)([A-Za-z][\w.]*)=", documents())
    assert len(given) > 10
    added = {key for sign, key in given if sign}
    everywhere = [PARAMS, *(resolve(ROOT, name, PARAMS) for name in names(ROOT))]
    for _, key in given:
        below = key.rpartition(".")[0] if key in added else key
        assert any(at(each, tuple(below.split("."))) != "absent" for each in everywhere), key


def test_recipes_do_not_add_up(tmp_path: Path) -> None:
    """What an experiment left in the workspace is put back by the next recipe."""
    root = tmp_path / "repo"
    (root / "recipes").mkdir(parents=True)
    (root / "recipes/k512.yaml").write_text("drift:\n  K: 512\n")
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    git = ["git", "-C", str(root), "-c", "user.email=a@b.c", "-c", "user.name=a"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    changed = (root / "params.yaml").read_text().replace("seed: 0", "seed: 7", 1)
    (root / "params.yaml").write_text(changed)
    words = command(root, "k512", [])
    assert words == ["dvc", "exp", "run", "-S", "seed=0", "-S", "drift.K=512"]
