"""Figures and plots of the working tree, of commits and of experiments, as bytes by path."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import resolve_rev
from scmrepo.exceptions import SCMError

WORKSPACE = "workspace"  # as DVC calls the working tree
KEPT = ("metrics/", "plots/")


@dataclass(frozen=True)
class Revision:
    """What `dvc repro` left in git at one revision."""

    name: str
    commit: str  # short hash
    files: dict[str, bytes]  # path to content, below metrics/ and plots/

    def below(self, path: str, *endings: str) -> list[str]:
        """The file of that path, or the files in that folder, that have one of the endings."""
        return sorted(
            name
            for name in self.files
            if (name == path or name.startswith(f"{path.rstrip('/')}/")) and name.endswith(endings)
        )

    def json(self, path: str) -> dict[str, Any]:
        """A JSON object.

        Raises:
            ValueError: the file is none; the message names it.
        """
        try:
            content = json.loads(self.files[path])
        except ValueError as error:
            raise ValueError(f"{self.name}: {path}: expected a JSON object ({error})") from None
        if not isinstance(content, dict):
            raise ValueError(f"{self.name}: {path}: expected a JSON object")
        return content


def open_revisions(root: Path, names: Sequence[str]) -> list[Revision]:
    """The working tree; or what is named, the first being what the others are compared with.

    One name is compared with the working tree, as `dvc metrics diff` does.

    Raises:
        ValueError: git or DVC knows no such revision.
    """
    if not names:
        return [_workspace(root)]
    named = [_commit(root, name) if name != WORKSPACE else _workspace(root) for name in names]
    return [*named, _workspace(root)] if len(named) == 1 else named


def _workspace(root: Path) -> Revision:
    paths = (path for top in KEPT for path in sorted((root / top).rglob("*")) if path.is_file())
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    files = {name: content for name, content in files.items() if "/.partial/" not in name}
    return Revision(
        WORKSPACE, _git(root, "rev-parse", "--short=12", "HEAD").decode().strip(), files
    )


def _commit(root: Path, name: str) -> Revision:
    try:
        with Repo(str(root)) as repo:
            commit = resolve_rev(repo.scm, name)
    except (DvcException, SCMError):
        raise ValueError(f"no commit, branch or experiment '{name}'") from None
    files: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", commit))) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None and member.name.startswith(KEPT):
                files[member.name] = content.read()
    return Revision(name, commit[:12], files)


def _git(root: Path, *arguments: str) -> bytes:
    command = ["git", "-C", str(root), *arguments]
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode:
        message = result.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"git {arguments[0]}: {message[-1] if message else 'failed'}")
    return result.stdout
