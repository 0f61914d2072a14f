"""How much do refined clips owe to the seed, and to what is varied? Refiners over both.

    python -m benchmarks.drift_seeds 0 1 2
    python -m benchmarks.drift_seeds 0 drift_sinkhorn drift_own

needs what `dvc repro` makes; clips, quantizer and latent MAE stay the same. In a temporary copy of
the repository it trains and evaluates the refiners on held-out clips, once for each seed, or for
each seed and recipe. A refiner is trained anew where something that it reads has changed, and what
`dvc repro` trained and evaluated is taken as it is.

Seeds alone give docs/results/drift_seeds.csv: each headline figure, and some of each method, by
seed and as a mean over these and earlier seeds with its 95 % t-interval; three minutes a seed.
Recipes give rows of docs/results/drift_ablations.csv, means over the seeds, and leave its other
rows; half a minute each, for they are read by no reader and drawn in no picture.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

from benchmarks.seeds import ROOT, copy_parts, half_width, run_stage
from braid.clips.preparation.moving_digits import read_words
from braid.clips.shards.dataset import open_clips
from braid.common.rng import generator
from braid.drifting.config import DriftConfig
from braid.drifting.evaluation.clips import ClipEvaluator, Sample, complete
from braid.drifting.evaluation.clips import headline as clips_headline
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.refiner import load_refiner
from braid.metrics.distances import PcaSpace, RandomConvolutions
from braid.pseudo_classes.quantizer import load_quantizer
from braid.stage.params import load_yaml
from recipes.overrides import resolve

SEEDS = ROOT / "docs/results/drift_seeds.csv"
ABLATIONS = ROOT / "docs/results/drift_ablations.csv"
FOLDERS = ("data/clips", "data/pseudo_classes", "models/quantizer", "models/latent_mae")
METHODS = ("interpolated", "refined", "paired", "cold")
OF_METHODS = (
    *("frechet", "frechet_pca", "mse_missing", "motion_energy"),
    *("digit_missing", "motion_missing", "ghost"),
)
VARIED = ("frechet_ratio", "frechet_pca_ratio", "paired_error_ratio", "motion_energy")

Inputs = dict[str, Any]  # what each refiner was trained with


def main() -> None:
    """Train, tabulate, print."""
    seeds = [int(word) for word in sys.argv[1:] if word.isdigit()]
    recipes = [word for word in sys.argv[1:] if not word.isdigit()]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        copy_parts(copy, FOLDERS)
        for seed in seeds:
            trained = adopted(copy, seed)
            for recipe in recipes or ["default"]:
                score = figures_without_reader if recipes else evaluated
                figures, trained = run(copy, seed, recipe, trained, score)
                rows.append({"recipe": recipe, "seed": seed, **figures})
                table = pd.DataFrame(rows)
                save_ablations(table) if recipes else save_seeds(table)
    print(table.to_string(index=False, float_format="{:.3f}".format))


def settings_of(recipe: str) -> dict[str, Any]:
    """params.yaml with a recipe in it."""
    params = load_yaml(ROOT / "params.yaml")
    return params if recipe == "default" else resolve(ROOT, recipe, params)


def adopted(copy: Path, seed: int) -> Inputs:
    """Take over what `dvc repro` trained, if it did with this seed."""
    params = settings_of("default")
    if seed != params["seed"] or not (ROOT / "models/drift").is_dir():
        return {}
    for part in ("models/drift", "metrics/tables/drift_training", "plots/drift_validation"):
        shutil.copytree(ROOT / part, copy / part, dirs_exist_ok=True)
    return inputs(params)


def run(
    copy: Path,
    seed: int,
    recipe: str,
    trained: Inputs,
    score: Callable[[Path, Mapping[str, Any]], dict[str, float]],
) -> tuple[dict[str, float], Inputs]:
    """The held-out figures, and what the refiners in the copy were trained with."""
    settings = settings_of(recipe) | {"seed": seed}
    wanted, drift = inputs(settings), settings["drift"]
    if recipe == "default" and wanted == trained:
        return figures_of(ROOT, drift["evaluation"]["refiner"]), wanted
    (copy / "params.yaml").write_text(yaml.safe_dump(settings))
    for name in in_order(drift["refiners"]):
        if trained.get(name) != wanted[name]:
            run_stage(copy, "train_drift", name)
    return score(copy, settings), wanted


def inputs(settings: Mapping[str, Any]) -> Inputs:
    """What each refiner is trained with; of the loss and of most of a batch regression has none."""
    drift: Inputs = {}
    shared = {part: settings["drift"][part] for part in ("corruption", "refiner", "optimizer")}
    for name in in_order(refiners := settings["drift"]["refiners"]):
        own, batches = refiners[name], settings["drift"]["batches"]
        compared = {"loss": settings["drift"]["loss"], "batches": batches}
        if own["objective"] == "paired":
            compared = {"classes": batches["classes"]}
        start = drift.get(Path(own["start"]).name)
        drift[name] = {"seed": settings["seed"], **shared, **compared, **own, "start": start}
    return drift


def evaluated(copy: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    """All figures, by the stage that makes them."""
    run_stage(copy, "evaluate_drift")
    return figures_of(copy, settings["drift"]["evaluation"]["refiner"])


def figures_without_reader(copy: Path, settings: Mapping[str, Any]) -> dict[str, float]:
    """The figures of an ablation: distances and errors, as `evaluate_drift` has them."""
    drift = DriftConfig(**settings["drift"])
    config, quantizer = drift.evaluation, load_quantizer(copy / "models/quantizer")
    clips = open_clips(copy / "data/clips", text=quantizer.text)
    train = Sample.of(clips, "train", config.train_clips, read_words)
    test = Sample.of(clips, "test", config.test_clips, read_words)
    folder = copy / "models/drift"
    completed = complete(
        test,
        quantizer.assign,
        Corruption(clips.shape[1], drift.corruption),
        load_refiner(folder / config.refiner),
        load_refiner(folder / config.paired),
        config,
        generator(settings["seed"], "test"),
        quantizer.encoder.of_some,
    )
    spaces = RandomConvolutions(clips.shape[0]), PcaSpace(train.latents, config.components)
    evaluator = ClipEvaluator(test.latents, completed, *spaces, torch.device("cpu"))
    figures: dict[str, dict[str, float]] = {
        name: evaluator.distances(method.clips) | evaluator.errors(method.clips)
        for name, method in completed.methods.items()
        if name in ("interpolated", "refined")
    }
    headline = numbers(clips_headline(figures | {"real": {}}))
    return {**dict(headline), "last_over_best": last_over_best(copy, config.refiner)}


def last_over_best(root: Path, refiner: str) -> float:
    """The validation score at the end of a training over its best."""
    scores = pd.read_csv(root / f"metrics/tables/drift_training/{refiner}.csv", index_col="method")
    return float(scores["frechet"]["last"] / scores["frechet"]["refined"])


def figures_of(
    root: Path,
    refiner: str,  # the one that is evaluated
) -> dict[str, float]:
    """Headline figures, how far the end of the training is from its best, figures of methods."""
    headline = dict(numbers(json.loads((root / "metrics/drift.json").read_text())))
    headline["last_over_best"] = last_over_best(root, refiner)
    methods = pd.read_csv(root / "plots/drift_methods.csv", index_col="method")
    each = {
        f"{method}.{figure}": float(methods[figure][method])
        for method in METHODS
        for figure in OF_METHODS
    }
    return {**headline, **each}


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
        mean, half = values.mean(), half_width(values)
        rows.append({"figure": name, "mean": mean, "low": mean - half, "high": mean + half})
    return pd.DataFrame(rows)


def save_seeds(
    table: pd.DataFrame,  # a row a seed
    path: Path = SEEDS,
) -> None:
    """Write a row a figure: its mean and interval over these and the file's seeds, and each one."""
    each = table.drop(columns="recipe").set_index("seed").T.add_prefix("seed_")
    if path.exists():
        old = pd.read_csv(path, index_col="figure").filter(like="seed_")
        each = pd.concat([old.drop(columns=each.columns, errors="ignore"), each], axis=1)
    each = each[sorted(each, key=str)]
    means = intervals(each.T.rename_axis("seed").reset_index()).set_index("figure")
    means.join(each).to_csv(path, index_label="figure", float_format="%.4g")


def save_ablations(
    table: pd.DataFrame,  # a row a recipe and seed
    path: Path = ABLATIONS,
) -> None:
    """Write a row a recipe, the mean over its seeds, after those of other recipes."""
    columns: Sequence[str] = (*VARIED, "last_over_best")
    means = table.groupby("recipe", sort=False)[list(columns)].mean()
    means["seeds"] = table.groupby("recipe", sort=False)["seed"].count()
    old = pd.read_csv(path, index_col="recipe")
    old = old.assign(seeds=old.get("seeds", 1))
    kept = old.drop(index=means.index, errors="ignore")
    pd.concat([kept, means]).to_csv(path, float_format="%.3f")


if __name__ == "__main__":
    main()
