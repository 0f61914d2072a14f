import os
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.training import checkpoint, trainer
from braid.training.distributed import ALONE, Process, launched, mean
from tests.training.toy import Counter, Toy, one_run, optimizer_config, train_on_rows

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_two(*arguments: str) -> list[int]:
    """Run the toy script as two gloo processes; their exit codes."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    command = [sys.executable, "-m", "tests.training.toy", *arguments]
    running = [
        subprocess.Popen(command, cwd=ROOT, env={**environment, "RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    try:
        first = running[0].wait(timeout=240)
        if first:
            running[1].kill()  # as torchrun ends all others
        return [first, running[1].wait(timeout=240)]
    finally:
        for process in running:
            process.kill()


def ends(folder: Path, name: str) -> list[dict[str, Any]]:
    """What the two processes saved at their end."""
    states = [checkpoint.load(folder / f"{name}{rank}.pt") for rank in (0, 1)]
    return [state for state in states if state is not None]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes ended with."""
    folder = tmp_path_factory.mktemp("two")
    assert run_two("rank", str(folder)) == [0, 0]
    return ends(folder, "")


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


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The ends of two processes with memory banks of their own."""
    folder = tmp_path_factory.mktemp("banked")
    assert run_two("banked", str(folder), "after 99") == [0, 0]
    assert {path.name for path in folder.glob("state*")} == {"state.pt", "state.rank1.12.pt"}
    first, second = ends(folder, "end")
    assert not torch.equal(first["bank"], second["bank"])
    return [first, second]


@pytest.mark.parametrize(("kill_at", "saved"), [("after 2", None), ("after 7", 6), ("in 9", 6)])
def test_two_processes_killed_and_resumed_end_with_the_bytes_of_those_never_killed(
    never_killed: list[dict[str, Any]], tmp_path: Path, kill_at: str, saved: int | None
) -> None:
    assert run_two("banked", str(tmp_path), kill_at)[0] == -signal.SIGKILL
    state = checkpoint.load(tmp_path / "state.pt")
    assert (state and state["done"]) == saved
    assert run_two("banked", str(tmp_path), "after 99") == [0, 0]
    for resumed, whole in zip(ends(tmp_path, "end"), never_killed, strict=True):
        assert resumed["history"] == whole["history"]
        assert torch.equal(resumed["bank"], whole["bank"])
        for name, weight in whole["weights"].items():
            assert torch.equal(resumed["weights"][name], weight)
    assert {path.name for path in tmp_path.glob("state*")} == {"state.pt", "state.rank1.12.pt"}


def test_machines_that_find_states_of_different_steps_say_so(tmp_path: Path) -> None:
    for rank in "01":
        (tmp_path / rank).mkdir()
    assert run_two("apart", str(tmp_path)) == [0, 0]
    for rank, step in (("0", 1), ("1", 0)):
        message = (tmp_path / f"{rank}.txt").read_text()
        assert f"states of different steps, this one {step}; expected BRAID_SCRATCH" in message


def test_a_checkpoint_of_other_processes_or_without_a_part_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def resume(process: Process) -> None:
        run = one_run(scratch=tmp_path, process=process)
        monkeypatch.setattr(trainer, "joined", lambda *_: nullcontext())
        trainer.train(
            Toy(), optimizer_config(), run, steps=3, name="state", stateful={"n": Counter()}
        )

    checkpoint.save(tmp_path / "state.pt", {"done": 3, "processes": 2, "stateful": {}})
    with pytest.raises(ValueError, match=r"state\.pt: of 2 processes, expected 1; delete it to"):
        resume(ALONE)
    with pytest.raises(ValueError, match=r"state\.rank1\.3\.pt: missing; delete state\.pt to"):
        resume(Process(rank=1, world_size=2))


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
