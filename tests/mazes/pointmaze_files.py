"""Small pointmaze files in the layouts of Minari and of D4RL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

MAP = [
    [1, 1, 1, 1, 1, 1],
    [1, 0, 0, 0, 0, 1],
    [1, 0, 1, 1, 0, 1],
    [1, 0, 0, 0, 0, 1],
    [1, 1, 1, 1, 1, 1],
]
Points = NDArray[np.float64]


def runs(count: int = 40) -> list[Points]:
    """Trajectories [n, 2] in blocks along the upper and the left corridor, and back."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        corners = [[1.5, 3.5], [1.5, 1.5], [1.5 + number % 4, 1.5]]
        corners = corners[:: 1 if number % 2 else -1]
        times = np.linspace(0, 2, 20 + number)
        line = np.stack([np.interp(times, range(3), axis) for axis in np.array(corners).T], axis=1)
        made.append(line + rng.uniform(-0.2, 0.2, 2))
    return made


def to_minari(points: Points) -> Points:
    return np.stack([points[:, 0] - 3, 2.5 - points[:, 1]], axis=1)


def write_minari(path: Path, made: list[Points], maze_map: Any = MAP, beside: bool = False) -> Path:
    """Episodes; the map in an attribute, or in `metadata.json` beside the file."""
    spec = json.dumps({"id": "PointMaze", "kwargs": {"maze_map": maze_map}})
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for number, points in enumerate(made):
            velocity = np.zeros_like(points)
            group = file.create_group(f"episode_{number}/observations")
            group["observation"] = np.concatenate([to_minari(points), velocity], axis=1)
        if not beside:
            file.attrs["env_spec"] = spec
    if beside:
        path.with_name("metadata.json").write_text(json.dumps({"env_spec": spec}))
    return path


def write_d4rl(path: Path, made: list[Points]) -> Path:
    """Flat observations, the particle's 1.2 off walls that are 1.0 off."""
    codes = np.where(np.array(MAP) == 1, 10, 11)
    with h5py.File(path, "w") as file:
        flat = np.concatenate([points[:, ::-1] - 0.7 for points in made])
        file["observations"] = np.concatenate([flat, np.zeros_like(flat)], axis=1)
        ends = np.zeros(len(flat), dtype=bool)
        ends[np.cumsum([len(points) for points in made]) - 1] = True
        file["timeouts"] = ends
        file.attrs["maze_map"] = codes
    return path
