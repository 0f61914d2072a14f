"""One of several processes that run stages which make data; the second may die."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from braid.clips.preparation import moving_digits
from braid.pseudo_classes import quantizer
from braid.radiance.evaluation import hardware
from braid.representation import evaluation
from braid.training import checkpoint, distributed
from braid.training.distributed import launched


def main(folder: Path, death: bool, steps: list[str]) -> None:
    """Run the steps, each of a repository, a stage and a port, and note what this process made."""
    process, taken, notes = launched(), [], folder / f"made{launched().rank}.txt"
    notes.write_text("")
    units, save, write_shard = distributed.units, checkpoint.save, moving_digits.write_shard

    def noted(total: int) -> Iterator[int]:
        for unit in units(total):
            taken.append(unit)
            if process.rank == 1 and death and len(taken) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.1 if process.world_size > 1 else 0)  # so that none takes all
            yield unit

    def note(path: Path) -> None:
        with notes.open("a") as file:
            print(path.name.removesuffix(".partial"), file=file)

    distributed.units = noted
    checkpoint.save = lambda path, state: (note(path), save(path, state))
    moving_digits.write_shard = lambda path, rows: (note(path), write_shard(path, rows))
    measure = hardware.measure_frames
    hardware.measure_frames = lambda *given: (note(Path("frames")), measure(*given))[1]
    distributed.CHUNKS = 1
    quantizer._CHUNK = evaluation._CHUNK = 16
    for step in steps:
        port, repo, stage, *item = step.split()
        os.environ["MASTER_PORT"] = port  # that of an earlier stage may still be taken
        os.chdir(folder / repo)
        sys.argv = [stage, *item]
        importlib.import_module(f"stages.{stage}").main()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "die", sys.argv[3:])
