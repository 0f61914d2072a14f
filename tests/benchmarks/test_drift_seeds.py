"""Refiners are trained after what they start from; figures get t-intervals over seeds."""

from __future__ import annotations

import pandas as pd
import pytest
from scipy import stats

from benchmarks.drift_seeds import (
    FOLDERS,
    VARIED,
    figures_of,
    in_order,
    inputs,
    intervals,
    numbers,
    save_ablations,
    save_seeds,
)
from benchmarks.seeds import ROOT
from braid.stage.params import load_yaml
from recipes.overrides import resolve


def test_a_refiner_comes_after_the_one_it_starts_from() -> None:
    starts = {"c": "models/drift/b", "a": "none", "b": "models/drift/a", "d": "/models/other"}
    order = in_order({name: {"start": start} for name, start in starts.items()})
    assert sorted(order) == ["a", "b", "c", "d"]
    assert order.index("a") < order.index("b") < order.index("c")
    with pytest.raises(ValueError, match="a, b start from one another"):
        in_order({"a": {"start": "models/drift/b"}, "b": {"start": "models/drift/a"}})


def test_what_the_stages_read_is_in_the_copy() -> None:
    stages = load_yaml(ROOT / "dvc.yaml")["stages"]
    for stage in (stages["train_drift"]["do"], stages["evaluate_drift"]):
        read = {dep for dep in stage["deps"] if dep.startswith(("data/", "models/"))}
        assert {dep for dep in read if not dep.startswith("models/drift/")} <= set(FOLDERS)


def test_numbers_have_dotted_names_and_words_are_left_out() -> None:
    figures = {"frechet": {"refined": 0.5}, "steps": 3, "status": "ok"}
    assert dict(numbers(figures)) == {"frechet.refined": 0.5, "steps": 3.0}


def test_intervals_are_student_s() -> None:
    values = [0.2, 0.3, 0.7]
    (row,) = intervals(pd.DataFrame({"seed": [0, 1, 2], "x": values})).to_dict("records")
    low, high = stats.t.interval(0.95, 2, loc=0.4, scale=stats.sem(values))
    assert row.pop("figure") == "x"
    assert row == pytest.approx({"mean": 0.4, "low": low, "high": high})
    (alone,) = intervals(pd.DataFrame({"seed": [0], "x": [0.2]})).to_dict("records")
    assert pd.isna(alone["low"])


@pytest.mark.parametrize(
    ("recipe", "paired", "drift"),
    [
        ("drift_sinkhorn", True, False),
        ("drift_own", True, False),
        ("drift_encoder", True, False),
        ("drift_unclamped", False, False),
    ],
)
def test_a_refiner_is_taken_over_if_nothing_that_it_reads_is_varied(recipe, paired, drift) -> None:
    params = load_yaml(ROOT / "params.yaml")
    before, after = inputs(params), inputs(resolve(ROOT, recipe, params))
    assert (before["paired"] == after["paired"], before["drift"] == after["drift"]) == (
        paired,
        drift,
    )
    assert inputs(params | {"seed": 7})["paired"] != before["paired"]


def test_figures_are_those_of_the_committed_run() -> None:
    figures = figures_of(ROOT, "drift")
    interpolated, refined = figures["interpolated.frechet"], figures["refined.frechet"]
    assert figures["frechet_ratio"] == pytest.approx(refined / interpolated, rel=1e-4)
    assert figures["last_over_best"] >= 1


def test_a_recipe_s_row_is_replaced_and_others_stay(tmp_path) -> None:
    path = tmp_path / "ablations.csv"
    path.write_text(f"recipe,{','.join(VARIED)},last_over_best\na,1,1,1,1,1\nb,2,2,2,2,1\n")
    values = {name: [3.0, 4.0] for name in (*VARIED, "last_over_best")}
    save_ablations(pd.DataFrame({"recipe": ["a", "a"], "seed": [0, 1], **values}), path)
    table = pd.read_csv(path, index_col="recipe")
    assert table["frechet_ratio"].to_dict() == {"b": 2, "a": 3.5}
    assert table["seeds"].to_dict() == {"b": 1, "a": 2}


def test_a_seed_is_added_to_those_of_the_file(tmp_path) -> None:
    path = tmp_path / "seeds.csv"
    for seed, value in ((0, 9.0), (0, 0.2), (1, 0.3), (2, 0.7)):
        save_seeds(pd.DataFrame([{"recipe": "default", "seed": seed, "x": value}]), path)
    (row,) = pd.read_csv(path).to_dict("records")
    assert (row["seed_0"], row["seed_1"], row["seed_2"]) == (0.2, 0.3, 0.7)
    low, high = stats.t.interval(0.95, 2, loc=0.4, scale=stats.sem([0.2, 0.3, 0.7]))
    assert [row[key] for key in ("mean", "low", "high")] == pytest.approx([0.4, low, high], 1e-3)
