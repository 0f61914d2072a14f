"""A stored model: the same bytes for the same weights, one line for a broken one."""

from pathlib import Path

import pytest
import torch
from torch import nn

from braid.common.io import load_model, save_model


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
