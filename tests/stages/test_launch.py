"""Several machines, with a stand-in for ssh and two gloo processes for GPUs; the container."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """Stand-ins of the folder first, then this Python's own commands."""
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **variables}


def test_the_hosts_must_be_named(tmp_path: Path) -> None:
    variables = environment(tmp_path)
    variables.pop("HOSTS", None)
    command = [str(ROOT / "launch/on_hosts.sh"), "-m", "any"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "HOSTS: " in done.stderr


def on_two_hosts(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module on this machine twice, as if the second one were reached by ssh.

    Without a terminal (-tt) what runs on a real one would not end with the connection.
    """
    command = '[[ $1 == -tt* ]] || exit 9; echo "$2" >> "$0.hosts"; exec bash -c "$3"'
    stand_in(folder, "ssh", command)
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
