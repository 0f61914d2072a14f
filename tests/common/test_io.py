"""A stored model: the same bytes for the same weights, one line for a broken one."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from braid.common.io import load_model, read_json, save_model, write_csv, write_json


def build(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs)


def test_a_model_makes_a_round_trip_in_equal_bytes(tmp_path: Path) -> None:
    model = build(3, 2)
    for folder in ("one", "two"):
        save_model(tmp_path / folder, model, {"inputs": 3, "outputs": 2})
    config, loaded = load_model(tmp_path / "one", build, "line")
    assert config == {"inputs": 3, "outputs": 2}
    assert torch.equal(loaded.weight, model.weight)
    written = [(tmp_path / each / "model.safetensors").read_bytes() for each in ("one", "two")]
    assert written[0] == written[1]


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors"])
def test_a_broken_or_missing_file_is_named_with_what_it_is(tmp_path: Path, broken: str) -> None:
    save_model(tmp_path / "line", build(3, 2), {"inputs": 3, "outputs": 2})
    (tmp_path / "line" / broken).write_bytes(b"{")
    with pytest.raises(
        ValueError, match=r"line: expected config\.json and model\.safetensors of a line"
    ):
        load_model(tmp_path / "line", build, "line")
    (tmp_path / "line" / broken).unlink()
    with pytest.raises(ValueError, match="of a line"):
        load_model(tmp_path / "line", build, "line")


def test_a_config_of_another_model_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path / "line", build(3, 2), {"inputs": 4, "outputs": 2})
    with pytest.raises(ValueError, match="of a line"):
        load_model(tmp_path / "line", build, "line")


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nested_figure_that_is_not_finite_is_named(tmp_path: Path, bad: float) -> None:
    message = r"^a\.json: frechet\.refined is (nan|inf), expected a finite number or null$"
    with pytest.raises(ValueError, match=message):
        write_json(tmp_path / "a.json", {"frechet": {"real": 0.1, "refined": bad}})
    assert not (tmp_path / "a.json").exists()


def test_csv_keeps_columns_that_appear_late(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"step": 0, "loss": 1 / 3}, {"step": 1, "cka": 0.5}])
    table = pd.read_csv(tmp_path / "a.csv")
    assert list(table.columns) == ["step", "loss", "cka"]
    assert table.loss[0] == pytest.approx(1 / 3, rel=1e-6)
    assert table.loss.isna()[1]
