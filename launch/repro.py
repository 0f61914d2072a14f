"""`dvc repro` with the strands side by side: `python -m launch.repro --jobs 2`.

Parts of the DAG that share no stage do not wait for one another: each is a `dvc repro` of its own,
as many at a time as there are jobs. DVC holds its lock only around a stage, not while one runs, so
several take turns. Every line of the log says which part it is of. A part that fails leaves the
others running; the exit status is then that of the first that failed. A closing `dvc repro` has
nothing to do, and shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO

from braid.stage.dag import Declaration, declarations
from braid.stage.params import load_params

DVC = (sys.executable, "-m", "dvc", "--wait-for-lock", "repro")
POLL = 0.2  # seconds between looks at what is running


@dataclass(frozen=True)
class Part:
    """Stages of the DAG that hang together, and share nothing with the others."""

    stages: tuple[Declaration, ...]
    targets: tuple[str, ...]  # stages that nothing else needs

    @property
    def name(self) -> str:
        """The last stage of dvc.yaml's order that nothing else needs."""
        return self.targets[-1].split("@")[0]

    def seconds(self, root: Path) -> float:
        """What the stages took when they were last run, as far as that is known."""
        files = ["/".join(["metrics/runtime", s.name, *s.item]) + ".json" for s in self.stages]
        return sum(_seconds(root / file) for file in files)


def parts(stages: Iterable[Declaration]) -> list[Part]:
    """The connected parts of the DAG, in dvc.yaml's order of their first stages."""
    groups: list[list[Declaration]] = []
    for stage in stages:
        joined = [group for group in groups if any(_touch(stage, other) for other in group)]
        merged = [other for group in joined for other in group] + [stage]
        groups = [group for group in groups if group not in joined] + [merged]
    return [Part(tuple(group), _targets(group)) for group in groups]


def _targets(stages: Sequence[Declaration]) -> tuple[str, ...]:
    needed = {s for s in stages for other in stages if s is not other and _needs(other, s)}
    return tuple(stage.address for stage in stages if stage not in needed)


def _touch(one: Declaration, other: Declaration) -> bool:
    return _needs(one, other) or _needs(other, one)


def _needs(stage: Declaration, maker: Declaration) -> bool:
    """Whether a dep of the stage is an out of the maker, lies in one, or holds one."""
    return any(
        dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/")
        for dep in stage.deps
        for out in maker.outs
    )


def _seconds(path: Path) -> float:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError):
        return 0.0


class Running:
    """A part's `dvc repro`, its lines printed as they come."""

    def __init__(self, part: Part, width: int, arguments: Sequence[str]) -> None:
        self.part = part
        self._process = subprocess.Popen(
            [*DVC, *arguments, *part.targets],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that all that it started can be stopped with it
        )
        assert self._process.stdout is not None
        label = f"{part.name:{width}} | "
        self._reader = Thread(target=_copy, args=(self._process.stdout, label), daemon=True)
        self._reader.start()

    def status(self) -> int | None:
        """The exit status; None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._reader.join()
        return code

    def stop(self) -> None:
        """Interrupt it and what it started, as Ctrl-C would, and wait."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
        self._process.wait()


def _copy(lines: IO[str], label: str) -> None:
    for line in lines:
        if line.strip():
            print(f"{label}{line.rstrip()}", flush=True)


def run(root: Path, jobs: int, arguments: Sequence[str] = ()) -> int:
    """Run every part, the longest first; 0, or the exit status of the first part that failed."""
    work = sorted(parts(declarations(root)), key=lambda part: -part.seconds(root))
    waiting, width = deque(work), max(len(part.name) for part in work)
    running: list[Running] = []
    failed: dict[str, int] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Running(waiting.popleft(), width, arguments))
            time.sleep(POLL)
            for done in [entry for entry in running if entry.status() is not None]:
                running.remove(done)
                if status := done.status():
                    failed[done.part.name] = status
    finally:
        for entry in running:
            entry.stop()
    for name, status in failed.items():
        print(f"error: {name} failed (exit status {status})", file=sys.stderr)
    return next(iter(failed.values()), 0)


def main() -> None:
    """Check params.yaml, run the parts, then DVC once more over all of them."""
    parser = argparse.ArgumentParser(prog="python -m launch.repro", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="parts at a time (2); 1: plain repro")
    parser.add_argument("arguments", nargs="*", help="passed on to dvc repro")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        load_params(Path.cwd() / "params.yaml")  # DVC names neither the key nor what it expects
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        status = run(Path.cwd(), options.jobs, options.arguments) if options.jobs > 1 else 0
        if status == 0:
            status = subprocess.run([*DVC, *options.arguments], check=False).returncode
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    sys.exit(status)


if __name__ == "__main__":
    main()
