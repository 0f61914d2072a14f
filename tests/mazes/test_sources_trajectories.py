"""Built-in trajectories: free of walls, of their ends and ways, split by maze."""

from __future__ import annotations

import numpy as np
import torch

from braid.mazes.sources import built_in, middle_line, run, waver
from braid.metrics.obstacles import collides, distance_at, inside, length, signed_distance
from tests.drifting.maze.some_mazes import mazes

MADE = built_in(mazes(), 0)
MAZE = MADE.maze_of[MADE.case_of]


def test_no_trajectory_touches_a_wall_nor_comes_nearer_than_the_clearance() -> None:
    occupied = MADE.occupied[MAZE]
    for paths in (MADE.paths, MADE.planned):
        assert not collides(occupied, paths).any()
        assert not inside(occupied, paths).any()
    nearest = distance_at(signed_distance(MADE.occupied)[MAZE], MADE.paths)
    assert nearest.min() >= 0.15 - 1e-4


def test_mazes_of_different_splits_are_different() -> None:
    by_split: dict[str, set[bytes]] = {}
    for case, split in enumerate(MADE.splits):
        maze = MADE.occupied[MADE.maze_of[case]].numpy().tobytes()
        by_split.setdefault(split, set()).add(maze)
    assert set(by_split) == {"train", "val", "test"}
    assert not by_split["train"] & by_split["test"]
    assert not by_split["train"] & by_split["val"]


def test_trajectories_of_a_case_share_their_ends_and_differ_between() -> None:
    for case in range(8):
        paths = MADE.paths[MADE.case_of == case]
        assert torch.allclose(paths[:, 0], paths[:1, 0].expand(len(paths), 2), atol=1e-5)
        assert torch.allclose(paths[:, -1], paths[:1, -1].expand(len(paths), 2), atol=1e-5)
        assert (paths[0, 8] - paths[1, 8]).norm() > 1e-4


def test_the_second_way_is_no_long_detour_and_the_planner_takes_the_first() -> None:
    ratio = length(MADE.paths) / length(MADE.planned)
    assert ratio.max() < 1.6
    first = ratio[MADE.way == 0].median()
    assert 0.95 < first < 1.1
    assert ratio[MADE.way > 0].median() >= first


def test_same_seed_same_trajectories_another_seed_others() -> None:
    again, other = built_in(mazes(), 0), built_in(mazes(), 1)
    assert torch.equal(again.paths, MADE.paths)
    assert len(other.paths) != len(MADE.paths) or not torch.equal(other.paths, MADE.paths)


def test_rounding_cuts_corners_and_keeps_the_ends() -> None:
    blocks = np.array([[1, 1], [1, 2], [1, 3], [2, 3], [3, 3]])
    start, goal = np.array([1.4, 1.6]), np.array([3.6, 3.5])
    sharp, round_ = (middle_line(blocks, start, goal, size) for size in (0.05, 0.4))
    corner = np.array([3.5, 1.5])
    for line in (sharp, round_):
        assert np.allclose(line[[0, -1]], [start, goal])
    nearest = [np.linalg.norm(line - corner, axis=1).min() for line in (sharp, round_)]
    assert nearest[0] < 0.06 < nearest[1]
    length_ = [np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in (sharp, round_)]
    assert length_[1] < length_[0]


def test_a_run_accelerates_and_brakes_and_a_waver_vanishes_at_the_ends() -> None:
    line = np.stack([np.linspace(0, 5, 101), np.zeros(101)], axis=1)
    points = run(line, 21, (0.2, 0.4))
    speed = np.diff(points[:, 0])
    assert np.allclose(points[[0, -1]], line[[0, -1]])
    assert speed[0] < 0.5 * speed[8] > speed[-1]
    offset = waver(line, 0.3, np.random.default_rng(0))
    assert np.allclose(offset[[0, -1]], 0, atol=1e-9)
    assert np.allclose(offset[:, 0], 0)
    assert np.abs(offset[:, 1]).max() > 0.05
