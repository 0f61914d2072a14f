"""One rehearsal: its folder, its inputs, its copy of the repository, its `dvc exp run`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from braid.common.io import read_json
from braid.stage.dag import declarations
from braid.stage.params import check_params, load_yaml
from recipes.overrides import overrides, resolve
from rehearse.plans import Plan

KEPT = ("metrics/", "plots/", "dvc.lock")  # which the stages of the copy write
SHIM = '#!/bin/sh\nexec "{python}" -m rehearse.measured "$@"\n'


def value_at(settings: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key."""
    return reduce(getitem, key.split("."), settings)


@dataclass(frozen=True)
class Rehearsal:
    """A plan and where it is carried out."""

    root: Path  # of the repository
    name: str  # of the recipe
    plan: Plan
    folder: Path

    @property
    def copy(self) -> Path:
        """The repository that the stages run in."""
        return self.folder / "repository"

    @property
    def log(self) -> Path:
        """What was measured, a file a stage."""
        return self.folder / "measured"

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The settings at full size."""
        return resolve(self.root, self.name, load_yaml(self.root / "params.yaml"))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of the rehearsal: paths of its inputs, and the cuts."""
        settings = resolve(self.root, self.name, load_yaml(self.root / "params.yaml"))
        changes = {part.param: str(self.folder / "inputs" / part.name) for part in self.plan.inputs}
        for key, value in {**changes, **{cut.key: cut.value for cut in self.plan.cuts}}.items():
            *sections, last = key.split(".")
            value_at(settings, ".".join(sections))[last] = value
        check_params(settings, f"the rehearsal of {self.name}")
        return settings

    def run(self, gib: float, more: Sequence[str] = ()) -> int:
        """Make what is missing and run what is left; DVC's exit status."""
        self._make_inputs()
        self._update_copy()
        given = [*overrides(load_yaml(self.copy / "params.yaml"), self.settings), *more]
        flags = [word for override in given for word in ("-S", override)]
        words = ["dvc", "exp", "run", *flags, *self.plan.targets]
        environment = self._environment(gib)
        return subprocess.run(words, cwd=self.copy, env=environment, check=False).returncode

    def records(self) -> Iterator[dict[str, Any]]:
        """What was measured, in the order of dvc.yaml."""
        for stage in declarations(self.copy):
            path = self.log / f"{stage.address}.json"
            if path.exists():
                yield read_json(path)

    def _make_inputs(self) -> None:
        for part in self.plan.inputs:
            path = self.folder / "inputs" / part.name
            if not path.exists():
                print(f"{self.name}: makes {path}", flush=True)
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f"partial.{path.name}")
                part.make(partial)
                partial.rename(path)

    def _update_copy(self) -> None:
        """Bring the copy to the state of the repository; what its stages made stays."""
        self.copy.mkdir(parents=True, exist_ok=True)
        if not (self.copy / ".git").exists():
            self._git("init", "-q")
        files = {name for name in _tracked(self.root) if not name.startswith(KEPT)}
        for name in files:
            (self.copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / name, self.copy / name)
        for name in _tracked(self.copy):
            if name not in files and not name.startswith(KEPT):
                (self.copy / name).unlink()
        author = ("-c", "user.name=rehearse", "-c", "user.email=rehearse@localhost")
        self._git("add", "-A")
        self._git(*author, "commit", "-q", "--allow-empty", "-m", "The state of the repository")

    def _git(self, *arguments: str) -> None:
        subprocess.run(["git", "-C", str(self.copy), *arguments], check=True)

    def _environment(self, gib: float) -> dict[str, str]:
        """That of the stages, in which `python` is one that measures."""
        shim = self.folder / "bin/python"
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(SHIM.format(python=sys.executable))
        shim.chmod(0o755)
        self.log.mkdir(exist_ok=True)
        paths = [str(shim.parent), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
        return {
            **os.environ,
            "PATH": os.pathsep.join(paths),
            "REHEARSE_LOG": str(self.log),
            "REHEARSE_GIB": str(gib),
        }


def _tracked(root: Path) -> list[str]:
    """What git tracks or would track, and is there."""
    command = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (root / name).is_file()]
