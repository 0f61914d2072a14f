import numpy as np
import pytest
import torch

from braid.radiance.features.table import (
    CellFeatures,
    FeatureSchema,
    StoredFeatures,
    find_rows,
    fit_standardization,
    load_features,
    save_features,
)
from braid.radiance.scenes.grids import CellGrid
from tests.radiance.settings import aggregation_config

GROUPS = {"sh_dc": ("r", "g", "b"), "sh_rest": ("a", "c"), "opacity": ("tau",)}


def stored(weighting="mass"):
    grid = CellGrid((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (4, 4, 4))
    values = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    schema = FeatureSchema(grid, aggregation_config(weighting=weighting), GROUPS)
    cells = torch.tensor([1, 4, 20, 21, 63])
    features = CellFeatures(schema, cells, values, torch.ones(5), torch.rand(5))
    fitted = fit_standardization(values, schema.columns)
    return StoredFeatures(features, fitted, torch.arange(5) < 4)


def test_a_file_gives_back_what_was_saved_and_the_same_bytes(tmp_path):
    first = stored()
    save_features(tmp_path / "a.npz", first)
    again = load_features(tmp_path / "a.npz")
    save_features(tmp_path / "b.npz", again)
    assert again.features.schema == first.features.schema
    assert torch.equal(again.features.values, first.features.values)
    assert torch.equal(again.standardized, first.standardized)
    assert torch.equal(again.training, first.training)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_selected_groups_keep_their_columns_and_scales():
    chosen = stored().select(["opacity", "sh_dc"])
    assert list(chosen.features.schema.groups) == ["sh_dc", "opacity"]
    assert chosen.features.schema.columns == {"sh": slice(0, 3), "opacity": slice(3, 4)}
    assert torch.equal(chosen.standardized, stored().standardized[:, [0, 1, 2, 5]])


def test_sh_stands_for_both_of_its_groups():
    assert list(stored().select(["sh"]).features.schema.groups) == ["sh_dc", "sh_rest"]


def test_harmonics_are_one_group_and_end_at_a_degree():
    names = tuple(f"sh_{k}_{color}" for k in range(1, 16) for color in "rgb")
    groups = {"sh_dc": ("r", "g", "b"), "sh_rest": names, "opacity": ("tau",)}
    schema = FeatureSchema(stored().features.schema.grid, aggregation_config(), groups)
    assert schema.columns == {"sh": slice(0, 48), "opacity": slice(48, 49)}
    part = schema.select(["sh", "opacity"], harmonics=1)
    assert part.columns == {"sh": slice(0, 12), "opacity": slice(12, 13)}
    assert schema.index(part).tolist() == [*range(12), 48]
    assert list(schema.select(["sh"], harmonics=0).groups) == ["sh_dc"]


def test_an_unknown_group_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown feature group 'color'.*'opacity', 'sh'"):
        stored().select(["color"])


def test_the_hash_tells_schemas_apart():
    assert stored().features.schema.hash == stored().features.schema.hash
    assert stored("opacity").features.schema.hash != stored().features.schema.hash


def test_rows_are_found_by_cell_number():
    cells = torch.tensor([1, 4, 20, 63])
    index = torch.tensor([-1, 0, 1, 4, 5, 63, 62, 20])
    assert find_rows(cells, index).tolist() == [-1, -1, 0, 1, -1, 3, -1, 2]


def edited(path, **changes):
    with np.load(path, allow_pickle=False) as archive:
        content = {name: archive[name] for name in archive.files} | changes
    np.savez(path, **{name: array for name, array in content.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hash": np.array("0" * 64)}, "does not match its hash"),
        ({"values": np.zeros((5, 2), np.float32)}, r"expected values of shape \(5, 6\)"),
        ({"cells": np.zeros(0, np.int64)}, "at least one occupied cell"),
        ({"mean": None}, "expected a feature .npz"),
        ({"schema": np.array("{}")}, "expected a feature .npz"),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path, changes, message):
    path = tmp_path / "features.npz"
    save_features(path, stored())
    edited(path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_features(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_foreign_file_is_refused_by_name(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    for name in ("none.npz", "text.npz"):
        with pytest.raises(ValueError, match=rf"{name}: expected a feature .npz"):
            load_features(tmp_path / name)
