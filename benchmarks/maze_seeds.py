"""How much do trajectories owe to the seed, and to what is varied? Mazes over seeds and recipes.

    python -m benchmarks.maze_seeds 0 1 2
    python -m benchmarks.maze_seeds 0 1 2 maze_attraction maze_repulsion
    python -m benchmarks.maze_seeds          only tabulates what has been run

makes mazes, trains every network and evaluates them in a temporary copy of the repository, once
for each seed, and then with each recipe, which trains what it changes alone. It writes a row a run
to benchmarks/results/maze_seeds.csv, in the place of an earlier one: all figures of
metrics/drift_maze.json, its status too, and collisions of the other methods with the fewest
keyframes. Means over seeds, and statuses, go to docs/results/maze_ablations.csv; means are printed
with 95 % t-intervals.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.drift_seeds import in_order, intervals, numbers
from braid.stage.params import load_yaml
from recipes.overrides import resolve

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/maze_seeds.csv"
ABLATIONS = ROOT / "docs/results/maze_ablations.csv"
PARTS = ("stages", "braid", "dvc.yaml", "none", "built_in")
METHODS = ("interpolated", "paired", "cold", "projected", "refined", "shuffled", "permuted")


def main() -> None:
    """Train, tabulate, print."""
    seeds = [word for word in sys.argv[1:] if word.isdigit()]
    recipes = [word for word in sys.argv[1:] if not word.isdigit()]
    RESULTS.parent.mkdir(exist_ok=True)
    rows: list[dict[Any, Any]] = pd.read_csv(RESULTS).to_dict("records") if RESULTS.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            copied = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copied(ROOT / part, Path(folder) / part)
        for seed in seeds:
            trained: dict[str, Any] = {}
            for recipe in ["default", *recipes]:
                figures, trained = run(Path(folder), int(seed), recipe, trained)
                row = {"recipe": recipe, "seed": int(seed), **figures}
                rows = [one for one in rows if (one["recipe"], one["seed"]) != (recipe, int(seed))]
                rows.append(row)
                pd.DataFrame(rows).to_csv(RESULTS, index=False, float_format="%.4f")
    table = pd.DataFrame(rows)
    means = table.groupby("recipe", sort=False).mean(numeric_only=True).drop(columns="seed")
    means.insert(0, "seeds", table.groupby("recipe")["seed"].count())
    means["status"] = table.groupby("recipe")["status"].agg(statuses)
    means.to_csv(ABLATIONS, float_format="%.4f", index_label="run")
    for name in table["recipe"].unique():
        part = table[table["recipe"] == name].drop(columns=["recipe", "status"])
        print(f"\n{name}\n{intervals(part).to_string(index=False, float_format='{:.3f}'.format)}")


def run(
    copy: Path, seed: int, recipe: str, trained: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The held-out figures, and what each stage has been run with; what stays so is not rerun."""
    params = load_yaml(ROOT / "params.yaml")
    settings = (params if recipe == "default" else resolve(ROOT, recipe, params)) | {"seed": seed}
    (copy / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    drift = settings["maze_drift"]
    wanted: dict[str, Any] = {"prepare_mazes": [seed, settings["mazes"]]}
    shared = {name: part for name, part in drift.items() if name not in ("refiners", "evaluation")}
    # After what each starts from, and after phase 1, whose keyframes some take.
    refiners = {name: drift["refiners"][name] for name in in_order(drift["refiners"])}
    for name, own in sorted(refiners.items(), key=lambda pair: pair[1]["anchors"] != "none"):
        others = [
            wanted.get(f"train_drift_maze {Path(own[key]).name}") for key in ("start", "anchors")
        ]
        common = {**shared, "loss": shared["loss"] if own["features"] else None}
        wanted[f"train_drift_maze {name}"] = [wanted["prepare_mazes"], common, others, own]
    for stage, key in wanted.items():
        if trained.get(stage) != key:
            _stage(copy, stage.split())
    _stage(copy, ["evaluate_drift_maze"])
    figures = json.loads((copy / "metrics/drift_maze.json").read_text())
    status = {"status": figures["status"]}
    return dict(numbers(figures)) | _of_tables(copy) | status, wanted


def statuses(values: pd.Series[str]) -> str:
    """`ok: 2, one_way_only`, how many seeds ended so, the most frequent first."""
    counts = values.value_counts().items()
    return ", ".join(f"{name}: {count}" if count > 1 else str(name) for name, count in counts)


def _stage(copy: Path, words: Sequence[str]) -> None:
    name, *item = words
    environment = {**os.environ, "BRAID_SCRATCH": str(copy / "scratch")}
    command = [sys.executable, "-m", f"stages.{name}", *item]
    subprocess.run(command, cwd=copy, env=environment, check=True)


def _of_tables(copy: Path) -> dict[str, float]:
    """With the fewest keyframes, collisions of each method; spread between two ways."""
    rows = [row for row in _table(copy, "drift_maze") if row["keyframes"]]
    fewest = min((row["keyframes"] for row in rows), key=int)
    few = {row["method"]: row for row in rows if row["keyframes"] == fewest}
    ways = {row["method"]: row for row in _table(copy, "drift_maze_two_ways")}
    return {
        "spread_ratio": float(ways["phase1_refined"]["spread_ratio"]),
        **{f"collision_{method}": float(few[method]["collision"]) for method in METHODS},
    }


def _table(copy: Path, name: str) -> list[dict[str, str]]:
    with (copy / f"metrics/tables/{name}.csv").open() as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
