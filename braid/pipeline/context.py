"""The context of a running stage: its declared paths and params, its outs, its records.

    def main() -> None:
        with open_stage("fit_teacher") as stage:
            scene = stage.dep("data/scenes")          # the one declared dep below that folder
            settings = stage.params.teacher           # only sections that dvc.yaml declares
            ...
            save(stage.out("models/teacher"))         # appears under its name when all is well

What follows `python -m stages.fit_teacher` on the command line is the stage's item (a scene, a
variant), as dvc.yaml spells it. Within the context every access to a repository file that was not
declared fails (`braid.pipeline.guard`). Outs are written beside their place and renamed at the
end, so a killed stage leaves no half file.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from braid.pipeline import record
from braid.pipeline.dag import Declaration, declaration
from braid.pipeline.guard import UndeclaredAccess, guarded
from braid.pipeline.params import UndeclaredParam, declared_params, load_params, load_yaml
from braid.pipeline.sections import Params

_EXPECTED = (ValueError, OSError, FloatingPointError, UndeclaredAccess, UndeclaredParam)


class Stage:
    """What a stage script works with; made by `open_stage`."""

    def __init__(self, root: Path, declared: Declaration, params: Params) -> None:
        self._root = root
        self._declared = declared
        self._rank = int(os.environ.get("RANK", "0"))
        self._started = time.perf_counter()
        self._staging = root / ".partial" / f"{declared.address}.{self._rank}"
        self.item = declared.item
        self.address = declared.address
        self.params = declared_params(params, declared.params, declared.address)
        self.outs = declared.outs
        self.runtime: dict[str, Any] = {}  # what the clock and the hardware say

    def dep(self, folder: str) -> Path:
        """The one declared dep below `folder`.

        Raises:
            ValueError: none or several are declared, or it does not exist.
        """
        return self._existing(self._only(folder, self._declared.deps, "deps"))

    def deps(self, folder: str) -> list[Path]:
        """All declared deps below `folder`, in dvc.yaml's order."""
        found = [each for each in self._declared.deps if _below(each, folder)]
        return [self._existing(each) for each in found]

    def out(self, folder: str) -> Path:
        """Where to write the one declared out below `folder` (or named `folder` itself)."""
        return self._staged(self._only(folder, self._declared.outs, "outs"))

    def scratch(self) -> Path:
        """A folder for training state, keyed by params, code, inputs and process count.

        A stage that was killed finds its own checkpoints here; one with other params, another
        version of the code or other data gets another folder.
        """
        folder = self._scratch_of_stage() / self._key()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def logger(self) -> Callable[[Mapping[str, float]], None] | None:
        """A callback that shows logged rows in TensorBoard (`tensorboard --logdir runs`)."""
        if self._rank:
            return None
        return record.tensorboard(self._root / "runs" / self.address / time.strftime("%m%d-%H%M%S"))

    def settings(self) -> dict[str, Any]:
        """The declared params as params.yaml has them, `drift.K` and the like under that name."""
        raw = load_yaml(self._root / "params.yaml")
        names = sorted(self._declared.params)
        return {name: reduce(getitem, name.split("."), raw) for name in names}

    def usage(self) -> dict[str, Any]:
        """What the run has taken so far, and what the stage put into `runtime`."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            "seconds": round(time.perf_counter() - self._started, 2),
            "peak_rss_mib": round(peak / _RSS_UNITS_PER_MIB, 1),
            "commit": _commit(self._root),
            **self.runtime,
        }

    def write_metrics(self, values: Mapping[str, Any]) -> None:
        """Write the stage's deterministic scalars to its declared metrics file."""
        declared = [each for each in self._declared.outs if not _below(each, "metrics/runtime")]
        record.write_json(self._staged(self._only("metrics", declared, "metrics")), values)

    def write_curve(
        self, folder: str, rows: Sequence[record.Row], columns: Sequence[str] = ()
    ) -> None:
        """Write rows to the one declared CSV below `folder`; `columns` are there without rows."""
        record.write_csv(self.out(folder), rows, columns)

    def _only(self, folder: str, declared: Sequence[str], kind: str) -> str:
        found = list(dict.fromkeys(each for each in declared if _below(each, folder)))
        if len(found) != 1:
            raise ValueError(f"dvc.yaml lists {len(found)} {kind} below {folder}, expected one")
        return found[0]

    def _existing(self, declared: str) -> Path:
        path = self._root / declared
        if not path.exists():
            raise ValueError(
                f"{declared}: missing; `dvc repro` makes it, or params.yaml names it wrongly"
            )
        return path

    def _staged(self, declared: str) -> Path:
        path = self._staging / declared
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _scratch_of_stage(self) -> Path:
        base = Path(os.environ.get("BRAID_SCRATCH", self._root / "scratch"))
        return base / self.address

    def _key(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        digest.update(os.environ.get("WORLD_SIZE", "1").encode())
        for name, value in self.settings().items():
            digest.update(json.dumps([name, value], sort_keys=True).encode())
        for dep in sorted(set(self._declared.deps)):
            digest.update(dep.encode() + _content_hash(self._root / dep))
        return digest.hexdigest()

    def _publish(self) -> None:
        """Move the finished outs to their places; only rank 0 has any to show."""
        if self._rank == 0:
            self._write_runtime()
            missing = [out for out in self._declared.outs if not (self._staging / out).exists()]
            if missing:
                raise ValueError(f"declared but not written: {', '.join(missing)}")
            for out in self._declared.outs:
                final = self._root / out
                final.parent.mkdir(parents=True, exist_ok=True)
                if final.is_dir():
                    shutil.rmtree(final)
                (self._staging / out).replace(final)
            shutil.rmtree(self._scratch_of_stage(), ignore_errors=True)
        shutil.rmtree(self._staging, ignore_errors=True)

    def _write_runtime(self) -> None:
        below = [each for each in self._declared.outs if _below(each, "metrics/runtime")]
        for path in below:
            if path.endswith(".json"):  # experiment cards stand there as well
                record.write_json(self._staged(path), self.usage())


@contextmanager
def open_stage(name: str) -> Iterator[Stage]:
    """Open the context of stage `name`; its item stands on the command line.

    Expected faults (bad input, an undeclared access, a diverged training) end the process with
    one line on standard error; BRAID_TRACEBACK=1 shows the traceback as well.
    """
    try:
        root = Path.cwd()
        params = load_params(root / "params.yaml")
        declared = declaration(root, name, tuple(sys.argv[1:]))
        stage = Stage(root, declared, params)
        shutil.rmtree(stage._staging, ignore_errors=True)
        readable = [root / path for path in declared.deps]
        writable = [stage._staging.parent, stage._scratch_of_stage().parent, root / "runs"]
        with guarded(root, declared.address, readable=readable, writable=writable):
            yield stage
        stage._publish()
    except _EXPECTED as error:
        if os.environ.get("BRAID_TRACEBACK"):
            raise
        line = " ".join(str(error).split())
        sys.exit(f"error: {' '.join([name, *sys.argv[1:]])}: {line}")


_RSS_UNITS_PER_MIB = 2**20 if sys.platform == "darwin" else 2**10


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _content_hash(path: Path) -> bytes:
    """A hash of a file, or of a folder's names and files."""
    digest = hashlib.blake2b(digest_size=16)
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    for file in files:
        if "__pycache__" not in file.parts:
            digest.update(file.relative_to(path).as_posix().encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "blake2b").digest())
    return digest.digest()


def _commit(root: Path) -> str | None:
    """The checked-out commit; None outside of git."""
    command = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
