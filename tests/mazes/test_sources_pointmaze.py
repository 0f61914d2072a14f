"""Pointmaze files of both layouts, and what is wrong with broken ones."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from braid.mazes.maze_set import Trajectories
from braid.mazes.sources import read_pointmaze
from braid.metrics.obstacles import collides, inside
from tests.drifting.maze.some_mazes import mazes
from tests.mazes.pointmaze_files import MAP, runs, write_d4rl, write_minari

POINTS = 12
DOWN = np.array([0, 1])
CONFIG = mazes(points=POINTS)


def sorted_paths(made: Trajectories) -> torch.Tensor:
    order = made.paths.flatten(1).double() @ torch.arange(1.0, 2 * POINTS + 1).double()
    return made.paths[order.argsort()]


def test_both_layouts_give_the_same_trajectories_in_the_same_maze(tmp_path: Path) -> None:
    minari = read_pointmaze(write_minari(tmp_path / "a.hdf5", runs()), CONFIG)
    d4rl = read_pointmaze(write_d4rl(tmp_path / "b.hdf5", runs()), CONFIG)
    beside = read_pointmaze(write_minari(tmp_path / "c/d.hdf5", runs(), beside=True), CONFIG)
    for made in (minari, d4rl, beside):
        assert made.faults == []
        assert made.occupied[0, :5].tolist() == (np.array(MAP) == 1).tolist()
        assert made.occupied[0, 5:].all()  # square: what is beyond the map is a wall
        assert torch.allclose(sorted_paths(made), sorted_paths(minari), atol=1e-5)
        occupied = made.occupied[made.maze_of[made.case_of]]
        assert not collides(occupied, made.paths).any()


def test_trajectories_are_resampled_and_keep_their_ends(tmp_path: Path) -> None:
    made = read_pointmaze(write_minari(tmp_path / "a.hdf5", runs(1)), CONFIG)
    expected = torch.tensor(runs(1)[0][[0, -1]]).float()
    assert made.paths.shape == (1, POINTS, 2)
    assert torch.allclose(made.paths[0, [0, -1]], expected, atol=1e-5)
    assert torch.allclose(made.planned[0, [0, -1]], expected, atol=1e-5)


def test_cases_are_pairs_of_blocks_in_the_order_of_splits(tmp_path: Path) -> None:
    made = read_pointmaze(write_minari(tmp_path / "a.hdf5", runs()), CONFIG)
    blocks = made.paths[:, [0, -1]].floor().flatten(1)
    for case in range(len(made.maze_of)):
        assert len(blocks[made.case_of == case].unique(dim=0)) == 1
    assert len({tuple(row.tolist()) for row in blocks}) == len(made.maze_of)
    order = [("train", "val", "test").index(split) for split in made.splits]
    assert order == sorted(order)
    assert (made.case_of.diff() >= 0).all()


def test_the_way_of_a_trajectory_is_the_one_it_follows(tmp_path: Path) -> None:
    upper = np.array([[1.5, 1.5], [4.5, 1.5], [4.5, 3.5]])
    lower = np.array([[1.5, 1.5], [1.5, 3.5], [4.5, 3.5]])
    times = np.linspace(0, 2, 30)
    made = read_pointmaze(
        write_minari(
            tmp_path / "a.hdf5",
            [
                np.stack([np.interp(times, range(3), axis) for axis in corners.T], axis=1)
                for corners in (upper, lower, upper)
            ],
        ),
        CONFIG,
    )
    assert len(made.maze_of) == 1
    assert made.way[0] == made.way[2] != made.way[1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda points: np.full_like(points, np.nan), "is not finite"),
        (lambda points: points + DOWN, "lies in a wall"),
        (lambda points: points + 20 * DOWN, "lies in a wall"),
        (lambda points: points[:1], "1 points, expected 2 or more"),
        (lambda points: np.repeat(points[:1], 9, axis=0), "does not move"),
    ],
)
def test_a_broken_trajectory_is_counted_or_refused(spoil, message, tmp_path: Path) -> None:
    made = runs(12)
    made[4] = spoil(made[4])
    path = write_minari(tmp_path / "a.hdf5", made)
    read = read_pointmaze(path, CONFIG)
    assert len(read.paths) == 11
    (fault,) = read.faults
    assert fault.startswith("episode_4: ")
    assert message in fault
    with pytest.raises(ValueError, match=rf"a\.hdf5: episode_4: .*{message}.*1 in all"):
        read_pointmaze(path, mazes(points=POINTS, faults="fatal"))


def test_the_last_run_of_a_file_may_be_cut_off_and_other_groups_are_left_out(
    tmp_path: Path,
) -> None:
    whole = read_pointmaze(write_d4rl(tmp_path / "a.hdf5", runs(4)), CONFIG)
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["timeouts"][-1] = False
    assert torch.equal(read_pointmaze(tmp_path / "a.hdf5", CONFIG).paths, whole.paths)
    with h5py.File(write_minari(tmp_path / "b.hdf5", runs(4)), "a") as file:
        file.create_group("episode_notes")
    assert len(read_pointmaze(tmp_path / "b.hdf5", CONFIG).paths) == 4


def test_a_trajectory_that_jumps_to_where_no_way_leads_is_a_fault(tmp_path: Path) -> None:
    islands = [[1] * 6, [1, 0, 1, 0, 0, 1], [1] * 6]
    walks, jumps = (
        np.stack([x, np.full(9, 2.5)], 1) for x in np.linspace([3.3, 1.5], [4.7, 3.5], 9).T
    )
    jumps = jumps[[0, -1]]
    path = write_minari(tmp_path / "a.hdf5", [walks, jumps, walks], islands)
    read = read_pointmaze(path, CONFIG)
    assert len(read.paths) == 2
    assert read.faults == ["episode_1: point 1 lies beyond a wall"]


def test_files_that_are_no_pointmaze_are_refused_in_one_line(tmp_path: Path) -> None:
    whole = write_minari(tmp_path / "whole.hdf5", runs(4)).read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.hdf5").write_text("x, y")
    write_minari(tmp_path / "letters.hdf5", runs(4), [["x", 1], [1, 1]])
    write_minari(tmp_path / "ragged.hdf5", runs(4), [[1, 1], [1]])
    write_minari(tmp_path / "walls.hdf5", [points + DOWN for points in runs(2)])
    with h5py.File(write_minari(tmp_path / "mapless.hdf5", runs(4)), "a") as file:
        del file.attrs["env_spec"]
    with h5py.File(tmp_path / "empty.hdf5", "w") as file:
        file.attrs["maze_map"] = np.array(MAP)
    with h5py.File(write_d4rl(tmp_path / "unequal.hdf5", runs(4)), "a") as file:
        del file["timeouts"]
        file["timeouts"] = np.ones(3, dtype=bool)
    with h5py.File(write_d4rl(tmp_path / "endless.hdf5", runs(4)), "a") as file:
        file["timeouts"][:] = False
    messages = {
        "cut": "no readable HDF5 file",
        "text": "no readable HDF5 file",
        "letters": r"maze_map: expected .* got \['x'\]",
        "ragged": "rows of several lengths",
        "walls": "no whole trajectory",
        "mapless": "no maze map",
        "empty": "expected groups episode_<n> or data sets observations and timeouts",
        "endless": "timeouts: none is true, expected the ends of trajectories",
        "unequal": r"expected \[N, 4\] and \[N\]",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=message) as error:
            read_pointmaze(tmp_path / f"{name}.hdf5", CONFIG)
        assert str(error.value).startswith(f"{tmp_path / name}.hdf5: ")
        assert "\n" not in str(error.value)


def test_points_lie_in_free_blocks_of_an_uneven_map(tmp_path: Path) -> None:
    made = read_pointmaze(write_minari(tmp_path / "a.hdf5", runs()), CONFIG)
    assert not inside(made.occupied[made.maze_of[made.case_of]], made.paths).any()
