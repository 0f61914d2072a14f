"""One of several processes that render a ball; the first is slow, another may die."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch

from braid.radiance.gaussians import field
from braid.radiance.scenes.renders import save_renders
from braid.training import distributed
from braid.training.distributed import launched, working
from tests.radiance.tiny_teacher import ball, views


def main(folder: Path, death: bool) -> None:
    process, taken, scratch = launched(), [], folder / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    own = distributed.units

    def noted(total: int):
        for unit in own(total):
            taken.append(unit)
            if process.rank == 1 and death and len(taken) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1.0 if process.is_main and process.world_size > 1 else 0)
            yield unit

    distributed.units = noted
    field.VIEWS = 2
    poses = {"train": views(10, 16), "random": views(6, 16)}
    with working():
        renders = field.render_sets(ball(), poses, torch.device("cpu"), scratch)
    for name, rendered in renders.items():
        save_renders(folder / "first" / name, rendered)
    (folder / f"taken{process.rank}.txt").write_text(" ".join(map(str, taken)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), death=len(sys.argv) > 2)
