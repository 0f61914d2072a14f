"""A student in memory and on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from braid.radiance.scenes.occupancy import Occupancy
from braid.radiance.student.student import build_student, load_student, save_student
from tests.radiance.tiny_teacher import seeded, student, views


def image(of, view: int = 0) -> torch.Tensor:
    return of.render(views(), view, chunk=100, stop=0.0).rgb


def test_a_stored_student_renders_the_same_bytes(tmp_path: Path) -> None:
    made = student()
    save_student(tmp_path / "s", made)
    again = load_student(tmp_path / "s")
    assert again.step == made.step
    assert again.field.config == made.field.config
    assert image(made).max() > 0
    assert torch.equal(image(again), image(made))
    for name, each in made.occupancy.state().items():
        assert torch.equal(again.occupancy.state()[name], each), name


def test_a_snapshot_has_other_weights_and_all_else_alike(tmp_path: Path) -> None:
    early, late = student(0), student(1)
    save_student(tmp_path / "s", late, {"warm": early.field.state_dict()})
    assert torch.equal(image(load_student(tmp_path / "s")), image(late))
    assert torch.equal(image(load_student(tmp_path / "s", "warm")), image(early))
    assert not torch.equal(image(early), image(late))


def test_equal_students_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made = student()
        save_student(tmp_path / name, made, {"warm": made.field.state_dict()})
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["config.json", "model.safetensors", "warm.safetensors"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_grid_has_the_cells_of_the_networks() -> None:
    made = student()
    points = made.occupancy.sample(500, seeded())
    share = made.field.shares(points)
    cell = made.grid.index(points)
    assert made.grid.resolution == tuple(made.field.config["resolution"])
    assert torch.equal(share.network, made.field.network_of_cell.view(-1)[cell])
    place = made.grid.local(points)
    torch.testing.assert_close(place - place.floor(), (share.local + 1) / 2, atol=1e-4, rtol=0)


def test_every_occupied_voxel_lies_in_a_cell_with_a_network() -> None:
    made = student()
    share = made.field.shares(made.occupancy.sample(5000, seeded()))
    assert torch.equal(share.point, torch.arange(5000))


def test_extent_is_the_longest_side_and_steps_are_in_voxels() -> None:
    occupied = torch.zeros(10, 10, 10, dtype=torch.bool)
    occupied[2:4, 3:9, 5] = True
    occupancy = Occupancy(occupied, torch.zeros(3), torch.full((3,), 5.0))
    made = build_student(occupancy, seeded(), cells=3, density_scale=8.0, step=0.5, hidden=32)
    assert made.extent == pytest.approx(3.0, rel=1e-2)
    assert made.step == pytest.approx(0.25)
    assert made.grid.resolution == (1, 3, 1)
    assert made.field.density_scale == pytest.approx(8.0, rel=1e-2)  # an edge is 1 scene unit
    low, high = torch.tensor(made.grid.lower), torch.tensor(made.grid.upper)
    assert (low <= torch.tensor([1.0, 1.5, 2.5])).all()
    assert (high >= torch.tensor([2.0, 4.5, 3.0])).all()


def test_parameters_are_all_trained_numbers() -> None:
    made = student()
    assert made.parameters == made.field.weights.numel()
    assert made.parameters == made.field.config["networks"] * made.field.architecture.parameters


def test_no_occupied_voxel_is_no_student() -> None:
    empty = Occupancy(torch.zeros(4, 4, 4).bool(), torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="no occupied voxel"):
        build_student(empty, seeded(), cells=2, density_scale=8.0, step=0.5)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "warm.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[1]", b"{}"])
def test_a_missing_or_broken_file_is_named(
    tmp_path: Path, file: str, content: bytes | None
) -> None:
    made = student()
    save_student(tmp_path / "s", made, {"warm": made.field.state_dict()})
    (tmp_path / "s" / file).unlink()
    if content is not None:
        (tmp_path / "s" / file).write_bytes(content)
    with pytest.raises(ValueError, match=r"/s: expected a stored student"):
        load_student(tmp_path / "s", "warm")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    save_student(tmp_path / "s", student())
    path = tmp_path / "s/config.json"
    config = json.loads(path.read_text())
    config["field"]["hidden"] = 64
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="expected a stored student"):
        load_student(tmp_path / "s")
    config["field"] = {"height": 2}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="expected a stored student"):
        load_student(tmp_path / "s")
