"""Regression, drifting, and one after the other, at equal updates, equal seconds and convergence.

    python -m benchmarks.drift_long

needs what `dvc repro` makes. Beside the embedded default it runs the recipes clips_long, which
goes on until its curves are flat, drift_alone, which has as many updates as the default, and
clips_long_alone, as benchmarks/drift_seeds.py does. It writes to docs/clips_long

    methods.csv   a row a run and method: updates and seconds of its training, figures on held-out
                  clips, and by how much its last third lowered the score of validation clips
    curves.csv    validation scores of each refiner of each run by update and second
    curves.png    the same, drawn
    first.png     the first held-out clip of each motion: interpolated, refined, real; worst.png

Seconds are those of an idle core, by the clips per second of the committed run. 40 minutes there.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from benchmarks.drift_seeds import FOLDERS, OF_METHODS, adopted, evaluated, run, settings_of
from benchmarks.seeds import ROOT, copy_parts
from braid.common.io import read_json
from braid.common.plotting import BLUE, GREEN, ORANGE, save, styled

FOLDER = ROOT / "docs/clips_long"
RUNS = ("default", "clips_long", "drift_alone", "clips_long_alone")
PICTURES = ("first.png", "worst.png")
COLORS = {"regression": BLUE, "regression, then drifting": ORANGE, "drifting alone": GREEN}
SCORES = {"val_frechet": "Fréchet distance", "val_mse_missing": "error of missing frames"}


def main() -> None:
    """Run, tabulate, draw."""
    seed = settings_of("default")["seed"]
    FOLDER.mkdir(exist_ok=True)
    rows: list[pd.DataFrame] = []
    curves: list[pd.DataFrame] = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_parts(copy, FOLDERS)
        trained = adopted(copy, seed)
        for recipe in sys.argv[1:] or RUNS:
            _, trained = run(copy, seed, recipe, trained, evaluated)
            root, drift = ROOT if recipe == "default" else copy, settings_of(recipe)["drift"]
            each = {name: curve(root, name, drift) for name in drift["refiners"]}
            curves += [part.assign(run=recipe) for part in each.values()]
            rows.append(methods(root, drift["evaluation"], each).assign(run=recipe))
            pd.concat(rows).to_csv(FOLDER / "methods.csv", index=False, float_format="%.4g")
            pd.concat(curves).to_csv(FOLDER / "curves.csv", index=False, float_format="%.4g")
            if recipe == "clips_long":
                for name in PICTURES:
                    shutil.copy(root / "plots/drift_evaluation" / name, FOLDER)
    draw(pd.concat(curves), FOLDER / "curves.png")
    print(pd.concat(rows).to_string(index=False, float_format="{:.3f}".format))


def objective_of(name: str, refiners: Mapping[str, Any]) -> str:
    """What a refiner was trained for, and the one that it started from."""
    if refiners[name]["objective"] == "paired":
        return "regression"
    return "drifting alone" if refiners[name]["start"] == "none" else "regression, then drifting"


def seconds_of(name: str, drift: Mapping[str, Any], updates: int | None = None) -> float:
    """What some updates of a refiner take, or all, after the training that it starts from."""
    own = drift["refiners"][name]
    speed = "paired" if own["objective"] == "paired" else "drift"
    clips = drift["batches"]["classes"] * own["generated"]
    rate = read_json(ROOT / f"metrics/runtime/train_drift/{speed}.json")["clips_per_second"]
    start = Path(own["start"]).name
    before = seconds_of(start, drift) if start in drift["refiners"] else 0.0
    return before + (own["steps"] if updates is None else updates) * clips / float(rate)


def curve(root: Path, name: str, drift: Mapping[str, Any]) -> pd.DataFrame:
    """The validation scores of one training, by update and second."""
    scores = pd.read_csv(root / f"plots/drift_validation/{name}.csv")
    seconds = [seconds_of(name, drift, step) for step in scores["step"]]
    return scores.assign(
        refiner=name, objective=objective_of(name, drift["refiners"]), seconds=seconds
    )


def methods(
    root: Path, evaluation: Mapping[str, Any], curves: Mapping[str, pd.DataFrame]
) -> pd.DataFrame:
    """Held-out figures of interpolation, of both refiners and of multi-step sampling."""
    figures = pd.read_csv(root / "plots/drift_methods.csv", index_col="method")
    of = {"refined": evaluation["refiner"], "paired": evaluation["paired"]}
    rows: list[dict[str, Any]] = []
    for method in ("interpolated", "paired", "cold", "refined"):
        row = {"method": method, **{name: figures[name][method] for name in OF_METHODS}}
        if method != "interpolated":
            row |= training(curves[of.get(method, evaluation["paired"])])
        rows.append(row)
    return pd.DataFrame(rows)


def training(scores: pd.DataFrame) -> dict[str, Any]:
    """How long one was, and whether its score still fell: last over the one at two thirds."""
    last = scores.iloc[-1]
    score = "val_mse_missing" if last["objective"] == "regression" else "val_frechet"
    earlier = scores[scores["step"] <= 2 / 3 * last["step"]].iloc[-1]
    return {
        "objective": last["objective"],
        "updates": last["step"],
        "seconds": last["seconds"],
        "last_third": last[score] / earlier[score],
        "last_over_best": last[score] / scores[score].min(),
    }


def draw(curves: pd.DataFrame, path: Path) -> None:
    """Both validation scores by second; the embedded budget is dotted."""
    with styled():
        figure, panels = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
        for panel, (score, name) in zip(panels, SCORES.items(), strict=True):
            for _, part in curves.groupby(["run", "refiner"], sort=False):
                long = str(part["run"].iloc[0]).startswith("clips_long")
                color = COLORS[part["objective"].iloc[0]]
                panel.plot(part["seconds"], part[score], "-" if long else ":", color=color)
            panel.set(yscale="log", xlabel="seconds of one core", title=name)
        handles = [Line2D([], [], color=color) for color in COLORS.values()]
        figure.legend(handles, COLORS, loc="outside lower center", ncols=3, frameon=False)
        save(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    main()
