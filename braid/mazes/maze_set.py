"""Mazes and trajectories on disk: `manifest.json` and `mazes.safetensors`, of any origin.

A *case* is a maze, a start and a goal; its trajectories go from one to the other, perhaps by
several *ways*. Points are (x, y) in blocks from the grid's first corner.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from braid.data.splits import SPLITS
from braid.metrics.obstacles import signed_distance

TENSORS = ("occupied", "distance", "maze_of", "case_of", "way", "split", "paths", "planned")


@dataclass(frozen=True)
class Trajectories:
    """What a source of mazes gives; cases are in the order of `SPLITS`."""

    occupied: Tensor  # [M, G, G] bool
    maze_of: Tensor  # [K] int64, the maze of each case
    splits: Sequence[str]  # of each case
    case_of: Tensor  # [N] int64
    way: Tensor  # [N] int64, which of the case's ways, the shortest is 0
    paths: Tensor  # [N, T, 2] blocks
    planned: Tensor  # [N, T, 2] the planner's shortest way between the same ends
    faults: Sequence[str] = ()  # a line each: where, and what was expected


@dataclass(frozen=True)
class MazeSet:
    """Mazes, cases and trajectories."""

    occupied: Tensor  # [M, G, G] bool
    distance: Tensor  # [M, R, R] signed, blocks, see braid/metrics/obstacles.py
    maze_of: Tensor  # [K] int64, the maze of each case
    case_of: Tensor  # [N] int64, the case of each trajectory
    way: Tensor  # [N] int64
    split: Tensor  # [K] int64, of each case, a place in `SPLITS`
    paths: Tensor  # [N, T, 2] blocks
    planned: Tensor  # [N, T, 2] blocks

    def indices(self, split: str) -> NDArray[np.int64]:
        """The trajectories of a split."""
        return (self.split[self.case_of] == SPLITS.index(split)).nonzero().flatten().numpy()

    def two_ways(self) -> Tensor:
        """Which cases [K] have trajectories by more than one way."""
        least = torch.full((len(self.maze_of),), torch.iinfo(torch.int64).max)
        most = torch.full_like(least, -1)
        least.scatter_reduce_(0, self.case_of, self.way, "amin")
        most.scatter_reduce_(0, self.case_of, self.way, "amax")
        return most > least


def write_maze_set(folder: Path, made: Trajectories, source: str) -> dict[str, int]:
    """Write a set; how many trajectories each split has, and how many were faults.

    Raises:
        ValueError: a split without a trajectory.
    """
    split = torch.tensor([SPLITS.index(name) for name in made.splits])
    counts = torch.bincount(split[made.case_of], minlength=len(SPLITS)).tolist()
    named = dict(zip(SPLITS, counts, strict=True))
    if not all(counts):
        raise ValueError(
            f"mazes: {named} trajectories, expected some in each split: more mazes or cases, or "
            "larger mazes.val_fraction and mazes.test_fraction"
        )
    tensors = {
        "occupied": made.occupied,
        "distance": signed_distance(made.occupied),
        "split": split,
        **{name: getattr(made, name) for name in ("maze_of", "case_of", "way", "paths", "planned")},
    }
    contiguous = {name: values.contiguous() for name, values in tensors.items()}
    (folder / "mazes.safetensors").write_bytes(save(contiguous))
    manifest = {
        "source": source,
        "mazes": len(made.occupied),
        "blocks": made.occupied.shape[1],
        "cases": len(made.maze_of),
        "points": made.paths.shape[1],
        "trajectories": named,
        "faults": list(made.faults),
    }
    text = json.dumps(manifest, indent=2)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return {**named, "faults": len(made.faults)}


def open_maze_set(folder: Path) -> MazeSet:
    """Read a set.

    Raises:
        ValueError: a file is missing or broken; the message names it.
    """
    path = folder / "mazes.safetensors"
    try:
        tensors = load(path.read_bytes())
        return MazeSet(**{name: tensors[name] for name in TENSORS})
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path}: expected a set of mazes ({error})") from None


def properties(maze_set: MazeSet) -> list[dict[str, Any]]:
    """A row a split: mazes, cases, those with two ways, trajectories, a planned way in blocks."""
    several = maze_set.two_ways()
    steps = maze_set.planned.diff(dim=1).norm(dim=-1).sum(1)
    rows: list[Mapping[str, Any]] = []
    for place, name in enumerate(SPLITS):
        cases, chosen = maze_set.split == place, torch.from_numpy(maze_set.indices(name))
        rows.append(
            {
                "split": name,
                "mazes": len(maze_set.maze_of[cases].unique()),
                "cases": int(cases.sum()),
                "two_ways": int(several[cases].sum()),
                "trajectories": len(chosen),
                "planned_length": float(steps[chosen].mean()),
            }
        )
    return [dict(row) for row in rows]
