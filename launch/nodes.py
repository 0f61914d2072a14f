"""Trainings on all nodes of a job, where the engine starts one command a node.

`python -m launch.nodes -m stages.train_drift drift` on the first node, as DVC calls it, leaves the
command in BRAID_SCRATCH/nodes/BRAID_RUN, a folder that all nodes see, and starts torchrun. On each
of the others `python -m launch.nodes --follow` finds it there and starts torchrun too, until the
first node says `--end`. They find one another by torchrun's c10d rendezvous at RENDEZVOUS, a host
and a port of the first node; NODES and PROCESSES, those of a node, say how many there are.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

NEEDED = ("BRAID_SCRATCH", "BRAID_RUN", "RENDEZVOUS", "NODES", "PROCESSES")
POLL = 0.5  # seconds between looks into the folder
END = "end"


def folder() -> Path:
    """Where this job's commands are left.

    Raises:
        ValueError: a variable is not set.
    """
    for name in NEEDED:
        if not os.environ.get(name):
            raise ValueError(f"{name} is not set; `python -m launch` writes jobs that set it")
    run = re.sub(r"[^\w.-]", "_", os.environ["BRAID_RUN"])
    place = Path(os.environ["BRAID_SCRATCH"]) / "nodes" / run
    place.mkdir(parents=True, exist_ok=True)
    return place


def torchrun(number: int, words: Sequence[str]) -> int:
    """Run the job's command of this number together with the other nodes; its exit status."""
    variables = {name: os.environ[name] for name in NEEDED}
    command = [
        "torchrun",
        f"--nnodes={variables['NODES']}",
        f"--nproc-per-node={variables['PROCESSES']}",
        "--rdzv-backend=c10d",
        f"--rdzv-id={folder().name}.{number}",  # torchrun makes a folder of that name
        f"--rdzv-endpoint={variables['RENDEZVOUS']}",
        *words,
    ]
    return subprocess.run(command, check=False).returncode


def lead(words: Sequence[str]) -> int:
    """Leave the command for the other nodes, and run it with them."""
    place = folder()
    number = len(list(place.glob("*.json")))
    partial = place / f"{number:04d}.partial"
    partial.write_text(json.dumps(list(words)), encoding="utf-8")
    partial.rename(place / f"{number:04d}.json")
    return torchrun(number, words)


def follow() -> int:
    """Run each command that the first node leaves; what fails there fails the job there."""
    place, number = folder(), 0
    while True:
        command = place / f"{number:04d}.json"
        if command.exists():
            torchrun(number, json.loads(command.read_text(encoding="utf-8")))
            number += 1
        elif (place / END).exists():
            return 0
        else:
            time.sleep(POLL)


def main() -> int:
    """Lead, follow or end; a fault ends in one line."""
    words = sys.argv[1:]
    try:
        if words == ["--follow"]:
            return follow()
        if words == ["--end"]:
            (folder() / END).touch()
            return 0
        return lead(words)
    except ValueError as error:
        sys.exit(f"error: launch: {error}")


if __name__ == "__main__":
    sys.exit(main())
