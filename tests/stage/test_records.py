"""Records: deterministic JSON and CSV."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from braid.stage.records import read_json, tensorboard, write_csv, write_json


def test_json_has_sorted_keys_and_the_same_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1.0, "a": None})
    write_json(tmp_path / "b.json", {"a": None, "b": 1.0})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": None, "b": 1.0}


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_broken_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json: expected a JSON object"):
        read_json(tmp_path / "a.json")


def test_csv_keeps_columns_that_appear_late(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"step": 0, "loss": 1 / 3}, {"step": 1, "cka": 0.5}])
    table = pd.read_csv(tmp_path / "a.csv")
    assert list(table.columns) == ["step", "loss", "cka"]
    assert table.loss[0] == pytest.approx(1 / 3, rel=1e-6)
    assert table.loss.isna()[1]


def test_tensorboard_holds_a_point_per_logged_row(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = tensorboard(tmp_path)
    for step in range(3):
        log({"step": step, "loss": float(step)})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [point.value for point in events.Scalars("loss")] == [0.0, 1.0, 2.0]
    assert [point.step for point in events.Scalars("loss")] == [0, 1, 2]
    assert events.Tags()["scalars"] == ["loss"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nested_figure_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    message = r"^a\.json: frechet\.refined is (nan|inf), expected a finite number or null$"
    with pytest.raises(ValueError, match=message):
        write_json(tmp_path / "a.json", {"frechet": {"real": 0.1, "refined": bad}})
    assert not (tmp_path / "a.json").exists()
