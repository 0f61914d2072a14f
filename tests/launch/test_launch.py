"""Jobs of many nodes: what is rendered, and two nodes that find one another; the container."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.__main__ import render
from launch.nodes import END
from tests.recipes.test_recipes import as_dvc_writes_it
from tests.training.test_distributed import free_port

ROOT = Path(__file__).parents[2]
FIELDS: dict[str, Any] = {"nodes": 4, "gpus": 8, "gpu": "H200", "image": "mine:1"}
FIELDS |= {"folder": "/shared/braid"}


def checked(script: str, folder: Path, **variables: str) -> list[str]:
    """The words that a job's script gives to `python -m recipes`, by running it with a stand-in."""
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    stand_in = folder / ".venv/bin/python"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text('#!/bin/bash\n[ "$2" = recipes ] && printf "%s\\n" "${@:3}" || exit 0\n')
    stand_in.chmod(0o755)
    path = f"{stand_in.parent}{os.pathsep}{os.environ['PATH']}"
    script = script.replace("/shared/braid", shlex.quote(str(folder)))
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": path, **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def launched_by(words: list[str], folder: Path) -> list[str]:
    """Launchers of trainings and of data that DVC makes of the words."""
    assert words[0] == "imagenet_one_gpu"
    assert words[-1] == "evaluate_drift_image"
    params = yaml.safe_load(as_dvc_writes_it(words, folder).read_text())
    return [params["launch"]["train"], params["launch"]["data"]]


def test_slurm_starts_each_training_on_all_nodes(tmp_path: Path) -> None:
    script = render("slurm", "imagenet_one_gpu", FIELDS, [])
    assert "#SBATCH --nodes=4\n" in script
    assert "#SBATCH --gpus-per-node=8\n" in script
    scontrol = tmp_path / ".venv/bin/scontrol"
    nodes = {"SLURM_JOB_NODELIST": "n[1-4]", "SLURM_JOB_ID": "7"}
    words = checked("scontrol() { echo n1; }\n" + script, tmp_path, **nodes)
    train, data = launched_by(words, tmp_path)
    assert train == data
    assert train.startswith("srun --ntasks-per-node=1 torchrun --nnodes=4 --nproc-per-node=8 ")
    # As variables: with a job's own numbers in it every job would train anew.
    assert "--rdzv-id=$SLURM_JOB_ID --rdzv-endpoint=$RENDEZVOUS -m" in train
    assert not scontrol.exists()


def test_skypilot_s_first_node_leads_and_the_others_follow(tmp_path: Path) -> None:
    task = yaml.safe_load(render("sky", "imagenet_one_gpu", FIELDS, []))
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (4, "H200:8")
    nodes = {"SKYPILOT_TASK_ID": "t", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    words = checked(task["run"], tmp_path, SKYPILOT_NODE_RANK="0", **nodes)
    assert launched_by(words, tmp_path) == ["python -m launch.nodes -m"] * 2
    shutil.rmtree(tmp_path / ".venv")
    assert checked(task["run"], tmp_path, SKYPILOT_NODE_RANK="1", **nodes) == []


def test_kubernetes_s_master_leads_and_workers_follow(tmp_path: Path) -> None:
    job = yaml.safe_load(render("k8s", "imagenet_one_gpu", FIELDS, []))
    master, worker = (job["spec"]["pytorchReplicaSpecs"][kind] for kind in ("Master", "Worker"))
    assert (job["kind"], master["replicas"], worker["replicas"]) == ("PyTorchJob", 1, 3)
    assert master["template"] == worker["template"]
    (container,) = master["template"]["spec"]["containers"]
    assert (container["name"], container["image"]) == ("pytorch", "mine:1")
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    words = checked(container["args"][0], tmp_path, HOSTNAME="braid-x-master-0")
    assert launched_by(words, tmp_path) == ["python -m launch.nodes -m"] * 2
    shutil.rmtree(tmp_path / ".venv")
    assert checked(container["args"][0], tmp_path, HOSTNAME="braid-x-worker-1") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "none"}, "no recipe 'none'"),
        ({"nodes": 1}, "--nodes is 1, expected 2 or more"),
        ({"folder": "here"}, "--folder is here, expected an absolute path"),
        ({"engine": "pbs"}, "no engine 'pbs', expected one of slurm, sky, k8s"),
    ],
)
def test_what_cannot_be_a_job_is_said_in_one_line(changes: dict[str, Any], message: str) -> None:
    wanted = {"engine": "slurm", "recipe": "wan", **FIELDS, **changes}
    engine, recipe = wanted.pop("engine"), wanted.pop("recipe")
    with pytest.raises(ValueError, match=message):
        render(engine, recipe, wanted, [])


def node(folder: Path, port: int, *arguments: str) -> subprocess.Popen[str]:
    """One of two nodes, both this machine."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    job = {"BRAID_RUN": "a run/1", "BRAID_SCRATCH": str(folder), "NODES": "2", "PROCESSES": "1"}
    rendezvous = {"RENDEZVOUS": f"127.0.0.1:{port}", "OMP_NUM_THREADS": "1", "PATH": path}
    return subprocess.Popen(
        [sys.executable, "-m", "launch.nodes", *arguments],
        cwd=ROOT,
        env={**os.environ, **job, **rendezvous},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_nodes_find_one_another_and_train_together(tmp_path: Path) -> None:
    port, out = free_port(), tmp_path / "a folder"
    out.mkdir()
    follower = node(tmp_path, port, "--follow")
    try:
        leader = node(tmp_path, port, "-m", "tests.images.mean_of_ranks", str(out))
        assert leader.wait(timeout=180) == 0, leader.communicate()[1]
        ranks = sorted((out / rank).read_text() for rank in "01")
        assert ranks == ["rank 0 of 2: 1.5", "rank 1 of 2: 1.5"]
        (tmp_path / "nodes/a_run_1" / END).touch()
        assert follower.wait(timeout=60) == 0
    finally:
        follower.kill()


def test_the_container_has_the_repository_s_own_environment() -> None:
    text = (ROOT / "docker/Dockerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.13"
    assert "FROM python:3.11-slim" in text
    copied = next(line for line in text.splitlines() if line.startswith("COPY")).split()[1:-1]
    assert all((ROOT / name).is_file() for name in copied)
    assert "wan" in project["optional-dependencies"]
    assert "[wan]" in text
