"""A copy of the repository at a tiny size, in which the whole DAG has run once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import TINY, override

ROOT = Path(__file__).parents[1]


# Files that take minutes: first, so that no worker is left alone with one at the end.
LONGEST = ("test_whole_dag.py", "test_half_precision.py", "test_bad_input.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


class TinyRepo:
    """A temporary clone with tiny params; runs its stages and DVC as a user would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        binaries = str(Path(sys.executable).parent)
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "DVC_SITE_CACHE_DIR": str(root.parent / "site"),
            "MPLBACKEND": "Agg",
        }

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            command,
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and result.returncode:
            raise AssertionError(f"{' '.join(command)}:\n{result.stdout}\n{result.stderr}")
        return result

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def copy_tracked(target: Path) -> None:
    """Copy what git tracks or would track."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"],
        capture_output=True,
        check=True,
    )
    for name in filter(None, listing.stdout.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("metrics/", "plots/")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def make_tiny_repo(root: Path) -> TinyRepo:
    copy_tracked(root)
    (root / "dvc.lock").unlink(missing_ok=True)
    repo = TinyRepo(root)
    override(root, TINY)
    repo.run("git", "init", "-q")
    repo.run("git", "config", "user.email", "test@example.org")
    repo.run("git", "config", "user.name", "test")
    repo.run("git", "add", "-A")
    repo.run("git", "commit", "-qm", "tiny")
    return repo


@pytest.fixture(scope="session")
def tiny_repo(tmp_path_factory: pytest.TempPathFactory) -> TinyRepo:
    """The whole DAG at a tiny size, after one run, strands side by side, that is committed."""
    repo = make_tiny_repo(tmp_path_factory.mktemp("tiny") / "repo")
    repo.run("python", "-m", "launch.repro")
    repo.run("git", "add", "-A")
    repo.run("git", "commit", "-qm", "results")
    return repo
