"""Sets of mazes on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from braid.mazes.maze_set import open_maze_set, properties, write_maze_set
from braid.mazes.sources import built_in
from braid.metrics.obstacles import signed_distance
from tests.drifting.maze.some_mazes import mazes

MADE = built_in(mazes(), 0)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    counts = write_maze_set(tmp_path, MADE, "built_in")
    maze_set = open_maze_set(tmp_path)
    for name in ("occupied", "maze_of", "case_of", "way", "paths", "planned"):
        assert torch.equal(getattr(maze_set, name), getattr(MADE, name))
    assert torch.equal(maze_set.distance, signed_distance(MADE.occupied))
    assert counts["faults"] == 0
    for split in ("train", "val", "test"):
        chosen = torch.from_numpy(maze_set.indices(split))
        assert len(chosen) == counts[split]
        assert {MADE.splits[case] for case in MADE.case_of[chosen]} == {split}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["trajectories"] == {name: counts[name] for name in ("train", "val", "test")}
    assert (manifest["points"], manifest["blocks"]) == (16, 7)


def test_two_ways_are_those_of_the_trajectories(tmp_path: Path) -> None:
    write_maze_set(tmp_path, MADE, "built_in")
    several = open_maze_set(tmp_path).two_ways()
    plain = [len(set(MADE.way[MADE.case_of == case].tolist())) > 1 for case in range(len(several))]
    assert several.tolist() == plain
    assert 0 < sum(plain) < len(plain)
    rows = properties(open_maze_set(tmp_path))
    assert sum(row["two_ways"] for row in rows) == sum(plain)
    assert sum(row["cases"] for row in rows) == len(plain)


def test_a_split_without_trajectories_is_refused(tmp_path: Path) -> None:
    lonely = replace(MADE, splits=["train"] * len(MADE.splits))
    with pytest.raises(ValueError, match="expected some in each split"):
        write_maze_set(tmp_path, lonely, "built_in")


def test_a_broken_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mazes\.safetensors: expected a set of mazes"):
        open_maze_set(tmp_path)
    write_maze_set(tmp_path, MADE, "built_in")
    path = tmp_path / "mazes.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"mazes\.safetensors: expected a set of mazes"):
        open_maze_set(tmp_path)
