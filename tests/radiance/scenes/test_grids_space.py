"""The teacher's space on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braid.radiance.scenes.grids import FieldPoints, Occupancy, load_space, save_space
from tests.radiance.tiny_teacher import seeded


def space(occupied: bool = True) -> tuple[Occupancy, FieldPoints]:
    voxels = torch.rand(4, 5, 6, generator=seeded()) < (0.3 if occupied else 0.0)
    occupancy = Occupancy(voxels, torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 3.0]))
    points = torch.rand(4, 7, 3, generator=seeded(1))
    return occupancy, FieldPoints(points[0], points[1], points[2, :, 0], points[3])


def test_a_stored_space_comes_back_exactly_with_the_same_bytes(tmp_path: Path) -> None:
    occupancy, field = space()
    for name in ("a", "b"):
        save_space(tmp_path / name, occupancy, field)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again, points = load_space(tmp_path / "a")
    for name, stored in occupancy.state().items():
        assert torch.equal(again.state()[name], stored), name
    assert again.occupied.dtype == torch.bool
    for name in ("points", "directions", "sigma", "rgb"):
        assert torch.equal(getattr(points, name), getattr(field, name)), name


def test_chosen_points_keep_what_belongs_together() -> None:
    _, field = space()
    chosen = field[torch.tensor([5, 0, 5])]
    assert (len(field), len(chosen)) == (7, 3)
    for name in ("points", "directions", "sigma", "rgb"):
        assert torch.equal(getattr(chosen, name), getattr(field, name)[[5, 0, 5]]), name
    moved = field.to(torch.device("meta"))
    assert {tensor.device.type for tensor in vars(moved).values()} == {"meta"}


@pytest.mark.parametrize("content", [None, b"", b"no safetensors at all"])
def test_a_missing_or_broken_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "space.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"space\.safetensors: expected an occupied space"):
        load_space(tmp_path / "space.safetensors")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "space.safetensors"
    save_space(path, *space())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"space\.safetensors: expected an occupied space"):
        load_space(path)


def test_a_space_with_no_occupied_voxel_is_named(tmp_path: Path) -> None:
    path = tmp_path / "space.safetensors"
    save_space(path, *space(occupied=False))
    with pytest.raises(ValueError, match=r"space\.safetensors: .* no occupied voxel"):
        load_space(path)
