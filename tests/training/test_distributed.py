import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.training import checkpoint
from braid.training.distributed import ALONE, Process, launched, mean
from tests.training.toy import train_on_rows

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes ended with."""
    folder = tmp_path_factory.mktemp("two")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    command = [sys.executable, "-m", "tests.training.toy", "rank", str(folder)]
    running = [
        subprocess.Popen(command, cwd=ROOT, env={**environment, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    try:
        assert [each.wait(timeout=240) for each in running] == [0, 0]
    finally:
        for each in running:
            each.kill()
    states = [checkpoint.load(folder / f"{rank}.pt") for rank in (0, 1)]
    return [state for state in states if state is not None]


def test_two_processes_have_the_gradients_of_one_on_the_joint_batch(
    two_processes: list[dict[str, Any]],
) -> None:
    joint = train_on_rows()
    for state in two_processes:
        torch.testing.assert_close(state["gradients"], joint["gradients"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(state["weights"], joint["weights"], rtol=1e-4, atol=1e-5)


def test_two_processes_log_the_figures_of_one_on_the_joint_batch(
    two_processes: list[dict[str, Any]],
) -> None:
    joint = train_on_rows()
    for state in two_processes:
        for row, expected in zip(state["history"], joint["history"], strict=True):
            assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_two_processes_end_with_the_same_bits(two_processes: list[dict[str, Any]]) -> None:
    first, second = two_processes
    assert first["history"] == second["history"]
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])


def test_every_process_step_and_micro_step_draws_its_own(
    two_processes: list[dict[str, Any]],
) -> None:
    drawn = [value for state in two_processes for value in state["drawn"]]
    assert len(set(drawn)) == len(drawn) == 2 * 3 * 2


def test_a_process_is_alone_unless_a_launcher_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == ALONE
    assert ALONE.is_main
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launched() == Process(rank=5, world_size=8, local_rank=1)
    assert not launched().is_main


def test_the_mean_over_one_process_is_the_value_itself() -> None:
    values = torch.ones(3, requires_grad=True)
    assert mean(values) is values
