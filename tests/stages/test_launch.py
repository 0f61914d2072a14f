"""The recipes for GPU machines, with stand-ins for DVC and ssh and two gloo processes for GPUs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from braid.stage.params import Params, load_params, load_yaml

ROOT = Path(__file__).parents[2]
PROCESSES = {"one_gpu": 1, "one_node": 8, "nodes": 32}
PLACES = {"IMAGENET": "/data/image net, k=1/train", "SD_VAE": "/data/sd-vae", "HOSTS": "a b c d"}


def stand_in(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Stand-ins of the folder first, then this Python's own commands."""
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **variables}


def command_line(recipe: str, folder: Path, *more: str) -> list[str]:
    """The arguments that DVC gets."""
    stand_in(folder, "dvc", 'printf "%s\\0" "$@"')
    command = [str(ROOT / "launch" / f"{recipe}.sh"), *more]
    done = subprocess.run(
        command, env=environment(folder, **PLACES), capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def overrides(words: list[str]) -> list[str]:
    return [word for flag, word in pairwise(words) if flag == "-S"]


def params_of(recipe: str, folder: Path, *more: str) -> Params:
    """params.yaml as DVC makes it of the recipe's overrides, checked as stages check it."""
    shutil.copy(ROOT / "params.yaml", folder)
    apply_overrides(folder / "params.yaml", overrides(command_line(recipe, folder, *more)))
    return load_params(folder / "params.yaml")


@pytest.mark.parametrize("recipe", PROCESSES)
def test_every_override_is_of_a_param_and_valid(recipe: str, tmp_path: Path) -> None:
    words = command_line(recipe, tmp_path)
    assert words[:2] == ["exp", "run"]
    stages = words[2 : words.index("-S")]
    assert set(stages) <= set(load_yaml(ROOT / "dvc.yaml")["stages"])
    assert len(words) == 2 + len(stages) + 2 * len(overrides(words))
    names = [word.split("=")[0] for word in overrides(words)]
    assert len(set(names)) == len(names)
    params = params_of(recipe, tmp_path)
    assert params.images.source == PLACES["IMAGENET"]
    assert params.images.sd_vae == PLACES["SD_VAE"]
    assert (params.image_mae.head_weight, params.image_mae.optimizer.lr) == (0.1, 0.004)
    assert params.image_drift.refiner.style == params.image_drift.refiner.dim == 768


@pytest.mark.parametrize(("recipe", "processes"), PROCESSES.items())
def test_effective_batches_are_those_of_the_paper(
    recipe: str, processes: int, tmp_path: Path
) -> None:
    params = params_of(recipe, tmp_path)
    drift, mae = params.image_drift, params.image_mae
    drawn = drift.batches.classes * drift.batches.generated
    assert drawn * drift.optimizer.accumulate * processes == 4096
    pretrained = mae.batch * mae.optimizer.accumulate
    assert pretrained * processes == 8192


def test_processes_are_those_that_the_launcher_starts(tmp_path: Path) -> None:
    assert params_of("one_gpu", tmp_path).launch.train == "python -m"
    assert "--nproc_per_node=8" in params_of("one_node", tmp_path).launch.train
    script = (ROOT / "launch/on_hosts.sh").read_text()
    assert "${PROCESSES:-8}" in script
    assert 8 * len(PLACES["HOSTS"].split()) == PROCESSES["nodes"]
    assert params_of("nodes", tmp_path).launch.train == "bash launch/on_hosts.sh -m"


def test_further_overrides_are_passed_on(tmp_path: Path) -> None:
    params = params_of("one_gpu", tmp_path, "-S", "image_drift.training.steps=7")
    assert params.image_drift.training.steps == 7


@pytest.mark.parametrize("missing", ["IMAGENET", "SD_VAE", "HOSTS"])
def test_a_place_that_is_not_given_is_named(missing: str, tmp_path: Path) -> None:
    stand_in(tmp_path, "dvc", "true")
    places = {name: value for name, value in PLACES.items() if name != missing}
    variables = environment(tmp_path, **places)
    variables.pop(missing, None)
    done = subprocess.run(
        [str(ROOT / "launch/nodes.sh")], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode
    assert f"{missing}: " in done.stderr


def on_two_hosts(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module on this machine twice, as if the second one were reached by ssh."""
    stand_in(folder, "ssh", 'echo "$2" >> "$0.hosts"; exec bash -c "$3"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    variables = environment(folder, HOSTS="127.0.0.1 second", PROCESSES="1", PORT=port)
    return subprocess.run(
        ["bash", "launch/on_hosts.sh", "-m", module, *arguments],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_two_hosts_train_together(tmp_path: Path) -> None:
    out = tmp_path / "a folder"
    out.mkdir()
    done = on_two_hosts(tmp_path, "tests.images.mean_of_ranks", str(out))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ssh.hosts").read_text() == "second\n"
    assert [(out / rank).read_text() for rank in "01"] == ["rank 0 of 2: 1.5", "rank 1 of 2: 1.5"]


def test_a_host_that_fails_ends_all(tmp_path: Path) -> None:
    stand_in(tmp_path, "torchrun", "[[ $2 != --node_rank=1 ]] && exec sleep 60; exit 3")
    assert on_two_hosts(tmp_path, "any").returncode == 3


def test_the_container_has_the_repository_s_own_environment() -> None:
    text = (ROOT / "docker/Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.13"
    assert "FROM python:3.11-slim" in text
    copied = next(line for line in text.splitlines() if line.startswith("COPY")).split()[1:-1]
    assert all((ROOT / name).is_file() for name in copied)
    assert "wan" in project["optional-dependencies"]
    assert "[wan]" in text
