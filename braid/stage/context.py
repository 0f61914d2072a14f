"""The context of a running stage: its declared paths and params, its outs, its records.

    def main() -> None:
        with open_stage("train_latent_mae") as stage:
            clips = open_clips(stage.dep("data/clips"))    # the one declared dep below that folder
            config = stage.params.latent_mae               # only params that dvc.yaml declares
            run = stage.training()                         # seed, device, process, scratch, logger
            ...
            save(stage.out("models/latent_mae"))           # appears there when all is well

What follows `python -m stages.fit_teacher` on the command line is the stage's item (a scene, a
variant), as dvc.yaml spells it. Within the context every access to a repository file that was not
declared fails (`braid.stage.guard`). Outs are written to `.partial` in the output folder that they
belong to, so on its disk, and renamed at the end: a killed stage leaves no half file. What the
clock and the hardware say goes to `metrics/runtime/<stage>[/<item>].json` by itself.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathspec import GitIgnoreSpec

from braid.common.config import NONE
from braid.common.io import Row, read_json, write_csv, write_json
from braid.common.timing import peak_rss_mib
from braid.stage.dag import Declaration, declaration
from braid.stage.guard import UndeclaredAccess, guarded
from braid.stage.params import Params, UndeclaredParam, declared_params, load_params, load_yaml

if TYPE_CHECKING:
    import torch

    from braid.training.trainer import Run

RUNTIME = "metrics/runtime"  # what the clock and the hardware say
HEADLINES = 5  # figures in the line of a finished stage
_EXPECTED = (ValueError, OSError, FloatingPointError, UndeclaredAccess, UndeclaredParam)


class Stage:
    """What a stage script works with; made by `open_stage`."""

    def __init__(self, root: Path, declared: Declaration, params: Params) -> None:
        self._root = root
        self._declared = declared
        self._rank = int(os.environ.get("RANK", "0"))
        self._started = time.perf_counter()
        self._scratch: Path | None = None
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

    def optional_dep(self, value: str) -> Path | None:
        """The declared dep that a param names; None for the word `none`."""
        return None if value == NONE else self.dep(value)

    def out(self, folder: str) -> Path:
        """Where to write the one declared out below `folder` (or named `folder` itself)."""
        return self._staged(self._only(folder, self._declared.outs, "outs"))

    def device(self) -> torch.device:
        """Set up device, threads and determinism by the params, and give the device."""
        from braid.training.device import set_up
        from braid.training.distributed import launched

        hardware, process = self.params.hardware, launched()
        return set_up(hardware.device, hardware.threads, self.params.seed, process.local_rank)

    def training(self) -> Run:
        """What all trainings of the stage share: device, process, cadence, scratch, logger."""
        from braid.training.distributed import launched
        from braid.training.trainer import Run

        cadence = self.params.training
        return Run(
            seed=self.params.seed,
            device=self.device(),
            precision=self.params.hardware.precision,
            process=launched(),
            log_every=cadence.log_every,
            checkpoint_every=cadence.checkpoint_every,
            scratch=self.scratch(),
            on_log=self._logger(),
        )

    def scratch(self) -> Path:
        """A folder for training state, keyed by params, code, inputs, processes, torch and device.

        A stage that was killed finds its own checkpoints here; one with other params, another
        version of the code or other data gets another folder, and so does one that would go on
        with other roundings than it began with.
        """
        if self._scratch is None:
            self._scratch = self._scratch_of_stage() / self._key()
            self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    def settings(self) -> dict[str, Any]:
        """The declared params as params.yaml has them, by their dotted names."""
        raw = load_yaml(self._root / "params.yaml")
        names = sorted(self._declared.params)
        return {name: reduce(getitem, name.split("."), raw) for name in names}

    def usage(self) -> dict[str, Any]:
        """What the run has taken so far, and what the stage put into `runtime`."""
        return {
            "seconds": round(time.perf_counter() - self._started, 2),
            "peak_rss_mib": round(peak_rss_mib(), 1),
            "commit": git("rev-parse", "--short=12", "HEAD"),
            **self.runtime,
        }

    def write_metrics(self, values: Mapping[str, Any]) -> None:
        """Write the stage's deterministic scalars to its declared metrics file."""
        declared = [out for out in self._declared.outs if not _below(out, RUNTIME)]
        write_json(self._staged(self._only("metrics", declared, "metrics", ".json")), values)

    def write_table(self, folder: str, rows: Sequence[Row], columns: Sequence[str] = ()) -> None:
        """Write rows to the one declared CSV below `folder`; `columns` are there without rows."""
        write_csv(self.out(folder), rows, columns)

    def summary(self) -> str:
        """What a finished stage says on the terminal: seconds, headline figures, pictures.

        A status comes first; figures that do not fit on the line are in the metrics file.
        """
        outs = [out for out in self._declared.outs if not _below(out, RUNTIME)]
        files = [out for out in outs if _below(out, "metrics") and out.endswith(".json")]
        figures = {
            f"{Path(file).stem} {name}" if len(files) > 1 else name: value
            for file in files
            for name, value in _leaves(read_json(self._root / file))
        }
        order = sorted(figures, key=lambda name: not name.endswith("status"))
        parts = [f"{time.perf_counter() - self._started:.1f} s"]
        if order:
            parts.append(", ".join(f"{n} {_figure(figures[n])}" for n in order[:HEADLINES]))
        if shown := [out for out in outs if _has_pictures(self._root / out)]:
            parts.append(f"pictures: {', '.join(shown)}")
        return f"{self.address}: {'; '.join(parts)}"

    def _logger(self) -> Callable[[Mapping[str, float]], None] | None:
        """A callback that shows logged rows in TensorBoard (`tensorboard --logdir runs`)."""
        if self._rank:
            return None
        folder = self._root / "runs" / self.address / time.strftime("%m%d-%H%M%S")
        return _tensorboard(folder)

    def _only(self, folder: str, declared: Sequence[str], kind: str, ending: str = "") -> str:
        below = {path for path in declared if _below(path, folder) and path.endswith(ending)}
        if len(below) != 1:
            raise ValueError(f"dvc.yaml lists {len(below)} {kind} below {folder}, expected one")
        return below.pop()

    def _existing(self, declared: str) -> Path:
        path = self._root / declared
        if not path.exists():
            raise ValueError(
                f"{declared}: missing; `dvc repro` makes it, or params.yaml names it wrongly"
            )
        return path

    def _staging(self, top: str) -> Path:
        """Where outs below the output folder `top` are written: on its disk."""
        return self._root / top / ".partial" / f"{self.address}.{self._rank}"

    def _staged(self, declared: str) -> Path:
        path = self._staging(Path(declared).parts[0]) / declared
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _tops(self) -> set[str]:
        return {Path(out).parts[0] for out in self._declared.outs}

    def _scratch_of_stage(self) -> Path:
        base = Path(os.environ.get("BRAID_SCRATCH", self._root / "scratch"))
        return base / self.address

    def _key(self) -> str:
        import torch

        from braid.training.device import pick_device

        machine = os.environ.get("WORLD_SIZE", "1"), torch.__version__, pick_device("auto").type
        digest = hashlib.blake2b(digest_size=8)
        digest.update(" ".join(machine).encode())
        for name, value in self.settings().items():
            digest.update(json.dumps([name, value], sort_keys=True).encode())
        ignored = _dvc_ignored(self._root)
        for dep in sorted(set(self._declared.deps)):
            digest.update(dep.encode() + _content_hash(self._root / dep, self._root, ignored))
        return digest.hexdigest()

    def _publish(self) -> None:
        """Move the finished outs to their places; only rank 0 has any to show."""
        if self._rank == 0:
            self._write_runtime()
            missing = [out for out in self._declared.outs if not self._staged(out).exists()]
            if missing:
                raise ValueError(f"declared but not written: {', '.join(missing)}")
            for out in self._declared.outs:
                _move(self._staged(out), self._root / out)
            self._forget_training()
            print(self.summary(), flush=True)
        self._clear_staging()

    def _forget_training(self) -> None:
        """Remove this run's own training state; that of other runs of the stage stays."""
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            with suppress(OSError):
                self._scratch.parent.rmdir()

    def _prepare_staging(self) -> None:
        for out in self._declared.outs:
            _require_inside(self._root, out)
        for top in self._tops():
            shutil.rmtree(self._staging(top), ignore_errors=True)
            _make(self._staging(top))

    def _clear_staging(self) -> None:
        for top in self._tops():
            shutil.rmtree(self._staging(top), ignore_errors=True)
            with suppress(OSError):  # not empty: of another stage or process, or with outs
                self._staging(top).parent.rmdir()
                (self._root / top).rmdir()

    def _write_runtime(self) -> None:
        write_json(self._staged(runtime_file(self._declared)), self.usage())


def _make(folder: Path) -> None:
    """Make a folder whose parents a stage that ends may remove meanwhile, as they are empty."""
    for _ in range(100):
        with suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
            return
    folder.mkdir(parents=True, exist_ok=True)


def _tensorboard(folder: Path) -> Callable[[Mapping[str, float]], None]:
    """A callback that appends a logged row, by its `step`, to TensorBoard events in `folder`."""
    from torch.utils.tensorboard import SummaryWriter  # costs a second to import

    writer = SummaryWriter(str(folder))

    def log(row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                writer.add_scalar(name, value, int(row["step"]))
        writer.flush()

    return log


def runtime_file(declared: Declaration) -> str:
    """Where a stage's runtime figures go: `metrics/runtime/<stage>[/<item>].json`."""
    return "/".join([RUNTIME, declared.name, *declared.item]) + ".json"


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
        if not declared.launched:  # what a pod or a shell has set is meant for trainings
            for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
                os.environ.pop(variable, None)
        stage = Stage(root, declared, params)
        stage._prepare_staging()
        readable = [root / path for path in declared.deps]
        staging = [stage._staging(top).parent for top in stage._tops()]
        writable = [*staging, stage._scratch_of_stage().parent, root / "runs"]
        with guarded(root, declared.address, readable=readable, writable=writable):
            yield stage
        stage._publish()
    except _EXPECTED as error:
        if os.environ.get("BRAID_TRACEBACK"):
            raise
        line = " ".join(str(error).split())
        sys.exit(f"error: {' '.join([name, *sys.argv[1:]])}: {line}")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of nested mappings, less what could not be had."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _has_pictures(out: Path) -> bool:
    files = out.rglob("*") if out.is_dir() else [out]
    return any(file.suffix in (".png", ".gif") for file in files)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _require_inside(root: Path, out: str) -> None:
    """DVC takes no out that a link leads out of the repository; say so before the work."""
    if not (root / out).parent.resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"{out}: a link leads out of the repository, which DVC refuses; expected a folder or a "
            "mount (`dvc cache dir` with `cache.type symlink` keeps files on another disk)"
        )


def _move(source: Path, final: Path) -> None:
    """Put a finished out in its place, whole or not at all, over what is there."""
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        _replace(source, final)
    except OSError as error:  # a folder further down is a disk of its own
        if error.errno != errno.EXDEV:
            raise
        beside = final.with_name(f".{final.name}.partial")
        if source.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(source, beside)
        else:
            shutil.copy2(source, beside)
        _replace(beside, final)


def _replace(source: Path, final: Path) -> None:
    if final.is_symlink():
        final.unlink()
    elif final.is_dir() and source.stat().st_dev == final.parent.stat().st_dev:
        shutil.rmtree(final)
    source.replace(final)


def _dvc_ignored(root: Path) -> GitIgnoreSpec:
    """What DVC leaves out of folders: editors' and systems' files, caches."""
    path = root / ".dvcignore"
    return GitIgnoreSpec.from_lines(path.read_text().splitlines() if path.exists() else [])


def _content_hash(path: Path, root: Path, ignored: GitIgnoreSpec) -> bytes:
    """A hash of a file, or of the names and content of the files that DVC counts to a folder."""
    digest = hashlib.blake2b(digest_size=16)
    for file in _counted(path, root, ignored):
        digest.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "blake2b").digest())
    return digest.digest()


def _counted(path: Path, root: Path, ignored: GitIgnoreSpec) -> Iterable[Path]:
    if not path.is_dir() or not path.is_relative_to(root):
        return [path] if path.is_file() else sorted(filter(Path.is_file, path.rglob("*")))
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [file for file in files if not ignored.match_file(file.relative_to(root).as_posix())]


def git(*arguments: str) -> str | None:
    """What git says about the repository that the stage runs in; None outside of one."""
    command = ["git", "--no-optional-locks", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or None
