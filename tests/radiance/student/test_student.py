"""A student in memory and on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from braid.radiance.scenes.grids import Occupancy
from braid.radiance.student.student import (
    Student,
    build_student,
    halved,
    load_student,
    save_student,
    stored_bytes,
)
from tests.radiance.settings import evaluation_config, student_config
from tests.radiance.tiny_teacher import seeded, student, views


def image(trained: Student, view: int = 0) -> torch.Tensor:
    return trained.render(views(), view, chunk=100, stop=0.0).rgb


def test_a_stored_student_renders_the_same_bytes(tmp_path: Path) -> None:
    trained = student()
    save_student(tmp_path / "s", trained)
    again = load_student(tmp_path / "s")
    assert again.step == trained.step
    assert again.field.config == trained.field.config
    assert image(trained).max() > 0
    assert torch.equal(image(again), image(trained))
    for name, tensor in trained.occupancy.state().items():
        assert torch.equal(again.occupancy.state()[name], tensor), name


def test_a_snapshot_has_other_weights_and_all_else_alike(tmp_path: Path) -> None:
    early, late = student(0), student(1)
    save_student(tmp_path / "s", late, {"warm": early.field.state_dict()})
    assert torch.equal(image(load_student(tmp_path / "s")), image(late))
    assert torch.equal(image(load_student(tmp_path / "s", "warm")), image(early))
    assert not torch.equal(image(early), image(late))


def test_equal_students_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        trained = student()
        save_student(tmp_path / name, trained, {"warm": trained.field.state_dict()})
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["config.json", "model.safetensors", "warm.safetensors"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_grid_has_the_cells_of_the_networks() -> None:
    trained = student()
    points = trained.occupancy.sample(500, seeded())
    blend = trained.field.blend(points)
    cell = trained.grid.index(points)
    assert trained.grid.resolution == tuple(trained.field.config["resolution"])
    assert torch.equal(blend.network, trained.field.network_of_cell.view(-1)[cell])
    place = trained.grid.local(points)
    torch.testing.assert_close(place - place.floor(), (blend.local + 1) / 2, atol=1e-4, rtol=0)


def test_every_occupied_voxel_lies_in_a_cell_with_a_network() -> None:
    trained = student()
    blend = trained.field.blend(trained.occupancy.sample(5000, seeded()))
    assert torch.equal(blend.point, torch.arange(5000))


def test_extent_is_the_longest_side_and_steps_are_in_voxels() -> None:
    occupied = torch.zeros(10, 10, 10, dtype=torch.bool)
    occupied[2:4, 3:9, 5] = True
    occupancy = Occupancy(occupied, torch.zeros(3), torch.full((3,), 5.0))
    trained = build_student(
        occupancy, student_config(cells=3, density_scale=8.0, step=0.5), seeded()
    )
    assert trained.extent == pytest.approx(3.0, rel=1e-2)
    assert trained.step == pytest.approx(0.25)
    assert trained.grid.resolution == (1, 3, 1)
    assert trained.field.density_scale == pytest.approx(8.0, rel=1e-2)  # an edge is 1 scene unit
    low, high = torch.tensor(trained.grid.lower), torch.tensor(trained.grid.upper)
    assert (low <= torch.tensor([1.0, 1.5, 2.5])).all()
    assert (high >= torch.tensor([2.0, 4.5, 3.0])).all()


def test_images_are_composited_over_white() -> None:
    trained = student()
    images = trained.on_white(views(), [2, 0], evaluation_config(chunk=100, stop=0.01))
    rendered = trained.render(views(), 2, chunk=100, stop=0.01)
    assert images.shape == (2, 16, 16, 3)
    expected = rendered.rgb + (1 - rendered.alpha[..., None])
    torch.testing.assert_close(images[0], expected)


def test_parameters_are_all_trained_numbers() -> None:
    trained = student()
    assert trained.parameters == trained.field.weights.numel()
    assert (
        trained.parameters
        == trained.field.config["networks"] * trained.field.architecture.parameters
    )


def test_half_precision_halves_the_weights_and_keeps_the_picture() -> None:
    trained = student()
    with torch.no_grad():
        trained.field.weights.add_(0.05)
    small = halved(trained)
    assert torch.equal(small.field.weights, trained.field.weights.half().float())
    assert torch.equal(small.field.network_of_cell, trained.field.network_of_cell)
    saved = stored_bytes(trained) - stored_bytes(small, 2)
    assert saved == 2 * trained.parameters
    pictures = (one.render(views(), 0, chunk=100, stop=0.01).rgb for one in (trained, small))
    torch.testing.assert_close(*pictures, atol=0.01, rtol=0)


def test_no_occupied_voxel_is_no_student() -> None:
    empty = Occupancy(torch.zeros(4, 4, 4).bool(), torch.zeros(3), torch.ones(3))
    with pytest.raises(ValueError, match="no occupied voxel"):
        build_student(empty, student_config(), seeded())


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "warm.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[1]", b"{}"])
def test_a_missing_or_broken_file_is_named(
    tmp_path: Path, file: str, content: bytes | None
) -> None:
    trained = student()
    save_student(tmp_path / "s", trained, {"warm": trained.field.state_dict()})
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
