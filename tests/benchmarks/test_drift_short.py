"""Short trainings: each case has params that go together, and a row of its own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from benchmarks import drift_short
from benchmarks.drift_short import CASES, REFINER, UPDATES, save, short
from braid.stage.params import check_params


@pytest.mark.parametrize("case", CASES)
def test_a_case_is_the_default_s_regression_but_for_what_it_is_named_after(case: str) -> None:
    drift = check_params(short(CASES[case]), case).drift
    own, usual = drift.refiners[REFINER], drift.refiners["paired"]
    assert (drift.evaluation.refiner, own.steps) == (REFINER, UPDATES)
    assert own.objective == "paired" == usual.objective
    changed = {"noise": drift.corruption.noise, "sigma": drift.corruption.sigma}
    changed |= {"target": own.target, "beside": drift.refiner.beside}
    assert (own.target == "finer") == (case == "finer")
    assert (drift.refiner.beside == case) == (case in ("text", "embedding"))
    noise, _, sigma = case.partition("_")
    assert (changed["noise"] == "none") == (not sigma)
    assert not sigma or (changed["noise"], changed["sigma"]) == (noise, float(sigma))


def test_rows_are_replaced_and_stand_in_the_order_of_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_short, "TABLE", tmp_path / "short.csv")
    for case, value in (("text", 0.5), ("default", 0.4), ("text", 0.25)):
        save(case, dict.fromkeys(drift_short.VARIED, value))
    table = pd.read_csv(tmp_path / "short.csv")
    assert table["case"].tolist() == ["default", "text"]
    assert table["frechet_ratio"].tolist() == [0.4, 0.25]
