"""How much do refined clips owe to the seed? The clips' refiners, trained and evaluated over seeds.

    python -m benchmarks.drift_seeds 0 1 2

needs clips, quantizer and latent MAE (`dvc repro`), which stay the same. In a temporary
copy of the repository it trains every refiner once per seed and evaluates them on held-out clips,
writes all figures of metrics/drift.json to benchmarks/results/drift_seeds.csv, a row a seed, and
prints their means with 95 % t-intervals.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from scipy import stats

from braid.stage.params import load_yaml

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/drift_seeds.csv"
FOLDERS = (
    *("stages", "braid", "data/clips", "data/pseudo_classes"),
    *("models/quantizer", "models/latent_mae"),
)
FILES = ("dvc.yaml", "none", "built_in")


def main() -> None:
    """Train, tabulate, print."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in FOLDERS:
            shutil.copytree(ROOT / part, copy / part)
        for part in FILES:
            shutil.copy(ROOT / part, copy)
        for seed in sys.argv[1:]:
            rows.append({"seed": int(seed), **_train(copy, int(seed))})
            table = pd.DataFrame(rows)
            table.to_csv(RESULTS, index=False, float_format="%.4f")
    print(intervals(table).to_string(index=False, float_format="{:.3f}".format))


def _train(copy: Path, seed: int) -> dict[str, float]:
    """The held-out figures of one seed."""
    params = load_yaml(ROOT / "params.yaml")
    (copy / "params.yaml").write_text(yaml.safe_dump({**params, "seed": seed}))
    environment = {**os.environ, "BRAID_SCRATCH": str(copy / "scratch")}
    stages = [["train_drift", name] for name in in_order(params["drift"]["refiners"])]
    for name, *item in (*stages, ["evaluate_drift"]):
        command = [sys.executable, "-m", f"stages.{name}", *item]
        subprocess.run(command, cwd=copy, env=environment, check=True)
    return dict(numbers(json.loads((copy / "metrics/drift.json").read_text())))


def in_order(refiners: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The refiners, each after the one whose weights it starts from."""
    names: list[str] = []
    while left := [name for name in refiners if name not in names]:
        ready = [n for n in left if Path(refiners[n]["start"]).name not in {*left} - {n}]
        names += ready
        if not ready:
            raise ValueError(f"drift.refiners: {', '.join(left)} start from one another")
    return names


def numbers(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a metrics file by their dotted names."""
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)


def intervals(
    table: pd.DataFrame,  # a row a seed
) -> pd.DataFrame:
    """Mean over seeds of each figure, with its 95 % t-interval; that of one seed is unknown."""
    rows = []
    for name, values in table.drop(columns="seed").items():
        half = float("nan")
        if len(values) > 1:
            half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        mean = values.mean()
        rows.append({"figure": name, "mean": mean, "low": mean - half, "high": mean + half})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
