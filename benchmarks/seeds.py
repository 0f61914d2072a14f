"""What benchmarks over seeds share: stages in a temporary copy of the repository, t-intervals."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from scipy import stats

ROOT = Path(__file__).parents[1]
CODE = ("stages", "braid", "dvc.yaml", "none", "built_in")


def copy_parts(copy: Path, parts: Iterable[str] = ()) -> None:
    """Fill a folder with the stages' code, and with some files and folders of the repository."""
    for part in (*CODE, *parts):
        copied = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copied(ROOT / part, copy / part)


def run_stage(copy: Path, name: str, *item: str) -> None:
    """Run a stage in the copy; the state of its training stays there."""
    environment = {**os.environ, "BRAID_SCRATCH": str(copy / "scratch")}
    command = [sys.executable, "-m", f"stages.{name}", *item]
    subprocess.run(command, cwd=copy, env=environment, check=True)


def half_width(values: pd.Series) -> float:
    """Half of the 95 % interval of the mean (Student's t); that of one value is NaN."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
