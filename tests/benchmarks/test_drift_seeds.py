"""Refiners are trained after what they start from; figures get t-intervals over seeds."""

from __future__ import annotations

import pandas as pd
import pytest
from scipy import stats

from benchmarks.drift_seeds import FOLDERS, ROOT, in_order, intervals, numbers
from braid.stage.params import load_yaml


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
