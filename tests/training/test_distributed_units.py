"""Work shared by one, two and three processes: the same bytes, whatever ends in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.training.distributed import shared, shared_rows, units
from tests.training.test_distributed import free_port

ROOT = Path(__file__).parents[2]


def run(
    folder: Path,
    processes: int,
    *arguments: str,
    dies: bool = False,  # the second one, which ends the others
    module: str = "tests.training.shared_work",
) -> list[int]:
    """Run a module as processes that share units of work; the exit code of each."""
    environment = {
        **os.environ,
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    folder.mkdir(exist_ok=True)
    running = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(folder), *arguments],
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(processes)
    ]
    try:
        if dies:
            running[1].wait(timeout=60)
            for process in running:
                process.kill()  # as torchrun ends all others
        return [process.wait(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()


def test_alone_a_process_takes_all() -> None:
    assert list(units(3)) == [0, 1, 2]


def test_rows_are_read_in_chunks_and_kept_in_order(tmp_path: Path) -> None:
    rows, sizes = np.arange(70)[::-1].copy(), []

    def read(chunk: NDArray[np.int64]) -> dict[str, Tensor]:
        sizes.append(len(chunk))
        return {"twice": torch.from_numpy(2 * chunk)}

    for scratch in (tmp_path, tmp_path, None):  # the second time it is there
        values = shared_rows(rows, read, scratch, "rows", 8)
        assert torch.equal(values["twice"], torch.from_numpy(2 * rows))
    assert sizes == 2 * ([8] * 8 + [6])


def test_a_folder_that_is_not_shared_is_named(tmp_path: Path) -> None:
    shared_units = shared(["a.pt"], lambda number: {"n": number}, tmp_path, "count", "unit")
    (tmp_path / "a.pt").unlink()
    with pytest.raises(ValueError, match=r"a\.pt: missing; expected BRAID_SCRATCH to be a folder"):
        list(shared_units)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process ends with."""
    folder = tmp_path_factory.mktemp("alone")
    assert run(folder, 1) == [0]
    return end(folder)


def end(folder: Path) -> dict[str, bytes]:
    """The finished parts, and what the first process made of them."""
    files = [*folder.glob("scratch/views*"), *folder.glob("first/*/*.npy")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_three_processes_end_with_the_files_of_one(alone: dict[str, bytes], tmp_path: Path) -> None:
    assert run(tmp_path, 3) == [0, 0, 0]
    assert end(tmp_path) == alone
    takers = [(tmp_path / f"taken{rank}.txt").read_text().split() for rank in range(3)]
    taken = sorted(int(unit) for of_process in takers for unit in of_process)
    assert taken == list(range(8))
    assert len(takers[0]) < 4  # the first is slow


def test_after_a_death_two_processes_go_on_with_what_is_finished(
    alone: dict[str, bytes], tmp_path: Path
) -> None:
    assert run(tmp_path, 2, "die", dies=True)[1] == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("scratch/views*")}
    assert 0 < len(finished) < 8
    assert run(tmp_path, 2) == [0, 0]
    assert all(path.stat().st_mtime_ns == written for path, written in finished.items())
    assert end(tmp_path) == alone
