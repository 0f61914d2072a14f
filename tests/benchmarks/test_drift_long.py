"""Budgets of trainings are compared in seconds of one core, with what they start from."""

from __future__ import annotations

import pandas as pd
import pytest

from benchmarks.drift_long import ROOT, curve, draw, methods, objective_of, seconds_of
from benchmarks.drift_seeds import settings_of
from braid.common.io import read_json

DRIFT = settings_of("default")["drift"]


def test_seconds_are_updates_at_the_committed_speed_after_what_a_training_starts_from() -> None:
    steps = {name: DRIFT["refiners"][name]["steps"] for name in ("paired", "drift")}
    seconds = {}
    for name, clips in (("paired", 8 * 4), ("drift", 8 * 8)):
        speed = read_json(ROOT / f"metrics/runtime/train_drift/{name}.json")["clips_per_second"]
        seconds[name] = steps[name] * clips / speed
    assert seconds_of("paired", DRIFT) == pytest.approx(seconds["paired"])
    assert seconds_of("drift", DRIFT) == pytest.approx(seconds["paired"] + seconds["drift"])
    half = seconds["paired"] + seconds["drift"] / 2
    assert seconds_of("drift", DRIFT, steps["drift"] // 2) == pytest.approx(half)
    alone = settings_of("clips_long_alone")["drift"]
    assert objective_of("drift", alone["refiners"]) == "drifting alone"
    whole = seconds_of("drift", settings_of("clips_long")["drift"])
    # by clocks of the committed run, some of which it spent beside another strand
    assert seconds_of("drift", alone) == pytest.approx(whole, rel=0.3)


def test_rows_have_the_budget_of_their_training_and_whether_it_still_gained(tmp_path) -> None:
    curves = {name: curve(ROOT, name, DRIFT) for name in DRIFT["refiners"]}
    rows = methods(ROOT, DRIFT["evaluation"], curves).set_index("method")
    assert list(rows.index) == ["interpolated", "paired", "cold", "refined"]
    assert rows["updates"][["paired", "cold", "refined"]].tolist() == [700, 700, 40]
    assert rows["objective"]["refined"] == "regression, then drifting"
    errors = curves["paired"].set_index("step")["val_mse_missing"]
    assert rows["last_third"]["paired"] == pytest.approx(errors[700] / errors[400])
    draw(pd.concat([part.assign(run="default") for part in curves.values()]), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
