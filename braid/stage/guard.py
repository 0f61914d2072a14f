"""Stop a stage that reads or writes a file of the repository it did not declare.

DVC cannot see an undeclared read: the stage would be skipped as up to date when that file changes.
Python's audit hook sees every file that Python code opens (builtin open, numpy, pandas, PIL on an
open file), not those which compiled readers open by path: library code here always goes through
Python.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ALWAYS_READABLE = ("params.yaml", "dvc.yaml", ".dvcignore", ".venv", ".git")
# Which arguments of an event are changed paths, each with the argument that is the descriptor (-1:
# none) of the folder it is relative to. `shutil.rmtree` works with such; it has its own event.
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, None),),
    "shutil.rmtree": ((0, 1),),
}


class UndeclaredAccess(RuntimeError):
    """A stage touched a repository file that dvc.yaml does not declare for it."""


class _Guard:
    def __init__(
        self, root: Path, stage: str, readable: Iterable[Path], writable: Iterable[Path]
    ) -> None:
        self.root = str(root)
        self.stage = stage
        self.writable = tuple(str(path) for path in writable)
        self.readable = (
            *(str(path) for path in readable),
            *(str(root / name) for name in _ALWAYS_READABLE),
            *self.writable,
        )
        self.violations: list[str] = []

    def check(self, path: Any, writing: bool) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return  # an already open file descriptor
        name = os.path.abspath(os.fsdecode(path))
        if not _within(name, self.root) or "__pycache__" in name:
            return
        allowed = self.writable if writing else self.readable
        if any(_within(name, path) for path in allowed) or name == self.root:
            return
        if not writing and not os.path.isfile(name):
            return  # listing a folder reads no declared content; what is not there has none
        relative = os.path.relpath(name, self.root)
        verb, kind = ("writes", "outs") if writing else ("reads", "deps")
        message = (
            f"stage {self.stage} {verb} {relative}, which dvc.yaml does not list in its {kind}"
        )
        self.violations.append(message)
        raise UndeclaredAccess(message)


_active: _Guard | None = None
_installed = False


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _active is None:
        return
    if event == "open":
        path, mode, flags = arguments
        writing = bool((flags or 0) & _WRITING) or bool(mode and set("wax+") & set(mode))
        _active.check(path, writing)
    for path, folder in _CHANGES.get(event, ()):
        if folder is None or arguments[folder] in (None, -1):
            _active.check(arguments[path], writing=True)


@contextmanager
def guarded(
    root: Path, stage: str, *, readable: Iterable[Path], writable: Iterable[Path]
) -> Iterator[None]:
    """While open, any undeclared access below `root` raises `UndeclaredAccess`.

    A library that swallows the exception does not hide it: it is raised again at the end.
    """
    global _active, _installed
    if not _installed:
        sys.addaudithook(_hook)
        _installed = True
    guard = _Guard(root, stage, readable, writable)
    _active = guard
    try:
        yield
    finally:
        _active = None
    if guard.violations:
        raise UndeclaredAccess(guard.violations[0])
