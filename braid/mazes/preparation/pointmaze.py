"""Trajectories of D4RL's and Minari's pointmaze files (HDF5), with the map in their metadata.

    Minari    groups `episode_<n>` with `observations/observation` [T + 1, 4]: x, y, velocities; the
              map in the JSON `env_spec`, an attribute of the file or in `metadata.json` beside it
    D4RL      flat `observations` [N, 4] and `timeouts` [N], true where a trajectory ends; the map
              in the attribute or data set `maze_map`, codes 10 wall, 11 empty, 12 goal

Minari's origin is the middle of the map, y upwards; D4RL's first coordinate goes down the rows, and
its particle starts 1.2 off walls that are 1.0 off: a cell w reaches from w - 0.7 to w + 0.3. A case
is a pair of blocks that trajectories start and end in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from braid.data.splits import SPLITS, split_of
from braid.mazes.config import MazesConfig
from braid.mazes.data.maze_set import Trajectories
from braid.mazes.preparation.built_in import STEADY, BlockGraph, Line, Occupied, middle_line, run

WALLS = {"1", "10", "#"}  # of map entries, as text
FREE = {"0", "11", "12", "r", "g", "c", "R", "G", "O"}
D4RL_CORNER = 0.7


def read_pointmaze(path: Path, config: MazesConfig) -> Trajectories:
    """The trajectories of a file, split by case.

    Raises:
        ValueError: no pointmaze file, a map that cannot be read, or a fault where
            `mazes.faults` is fatal; the message names the file and the place in it.
    """
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path}: HDF5 is read with h5py: pip install -e '.[mazes]'") from None
    try:
        with h5py.File(path, "r") as file:
            occupied = _map(file, path)
            sources = list(_episodes(file, path, occupied.shape))
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: no readable HDF5 file of pointmaze ({error})") from None
    good: list[tuple[str, Line]] = []
    faults: list[str] = []
    for name, points in sources:
        fault = _fault(points, occupied)
        if fault is None:
            good.append((name, _resampled(points, config.points)))
        else:
            faults.append(f"{name}: {fault}")
    if faults and config.faults == "fatal":
        raise ValueError(f"{path}: {faults[0]}; {len(faults)} in all")
    if not good:
        raise ValueError(f"{path}: no whole trajectory, expected some; {faults[:1]}")
    return _cases(good, occupied, faults, config)


def _map(file: Any, path: Path) -> Occupied:
    """Which blocks are occupied, [H, W], from the file's metadata."""
    entries = None
    if "maze_map" in file.attrs:
        entries = file.attrs["maze_map"]
    elif "maze_map" in file:
        entries = file["maze_map"][()]
    else:
        beside = path.with_name("metadata.json")
        texts = [file.attrs["env_spec"]] if "env_spec" in file.attrs else []
        if beside.exists():
            texts.append(json.loads(beside.read_text(encoding="utf-8")).get("env_spec"))
        for text in texts:
            spec = json.loads(text) if isinstance(text, str | bytes) else text
            if isinstance(spec, Mapping):
                entries = spec.get("kwargs", {}).get("maze_map", entries)
    if isinstance(entries, str | bytes):
        entries = json.loads(entries)
    if entries is None:
        raise ValueError(
            f"{path}: no maze map, expected the attribute maze_map or env_spec (kwargs.maze_map), "
            "or metadata.json beside the file"
        )
    rows = [[_text(entry) for entry in row] for row in entries]
    unknown = {entry for row in rows for entry in row} - WALLS - FREE
    if unknown or len({len(row) for row in rows}) != 1:
        raise ValueError(
            f"{path}: maze_map: expected rows of one length of walls {sorted(WALLS)} and free "
            f"blocks {sorted(FREE)}, got {sorted(unknown) or 'rows of several lengths'}"
        )
    return np.array([[entry in WALLS for entry in row] for row in rows])


def _text(entry: Any) -> str:
    return entry.decode() if isinstance(entry, bytes) else str(entry)


def _episodes(file: Any, path: Path, shape: tuple[int, ...]) -> Iterator[tuple[str, Line]]:
    """Names and points [n, 2] in blocks, from the map's upper left corner."""
    names = sorted(
        (name for name in file if name.startswith("episode_")), key=lambda name: int(name[8:])
    )
    for name in names:
        group = file[f"{name}/observations"]
        observed = group["observation"] if "observation" in group else group["achieved_goal"]
        x, y = np.asarray(observed, dtype=np.float64)[:, :2].T
        yield name, np.stack([x + shape[1] / 2, shape[0] / 2 - y], axis=1)
    if names:
        return
    if "observations" not in file or "timeouts" not in file:
        raise ValueError(
            f"{path}: expected groups episode_<n> or data sets observations and timeouts"
        )
    observed, ends = (
        np.asarray(file["observations"], dtype=np.float64),
        np.asarray(file["timeouts"]),
    )
    if len(observed) != len(ends) or observed.ndim != 2 or observed.shape[1] < 2:
        raise ValueError(
            f"{path}: observations {observed.shape} and timeouts {ends.shape}, expected [N, 4] "
            "and [N]"
        )
    stops = np.flatnonzero(ends) + 1
    for start, stop in zip([0, *stops[:-1]], stops, strict=True):
        yield f"observations[{start}:{stop}]", observed[start:stop, 1::-1] + D4RL_CORNER


def _fault(points: Line, occupied: Occupied) -> str | None:
    """What is wrong with a trajectory; None: nothing."""
    if len(points) < 2:
        return f"{len(points)} points, expected 2 or more"
    if not np.isfinite(points).all():
        return f"point {int(np.flatnonzero(~np.isfinite(points).all(1))[0])} is not finite"
    column, row = np.floor(points).astype(int).T
    beyond = (row < 0) | (row >= len(occupied)) | (column < 0) | (column >= occupied.shape[1])
    row, column = row.clip(0, len(occupied) - 1), column.clip(0, occupied.shape[1] - 1)
    walled = beyond | occupied[row, column]
    if walled.any():
        return f"point {int(np.flatnonzero(walled)[0])} lies in a wall"
    if not np.ptp(points, axis=0).any():
        return "does not move"
    return None


def _resampled(points: Line, count: int) -> Line:
    """The same run at `count` equal times."""
    times = np.linspace(0, len(points) - 1, count)
    return np.stack([np.interp(times, np.arange(len(points)), axis) for axis in points.T], axis=1)


def _cases(
    good: list[tuple[str, Line]], occupied: Occupied, faults: list[str], config: MazesConfig
) -> Trajectories:
    """Cases in the order of splits, with the planner's path between the ends of each trajectory."""
    graph, settings = BlockGraph(occupied), config.layouts
    fractions = (config.val_fraction, config.test_fraction)
    ends: dict[str, tuple[int, int]] = {}
    for name, points in good:
        blocks = np.floor(points[[0, -1], ::-1]).astype(int)
        start, goal = (int(graph.index[tuple(block)]) for block in blocks)
        ends[name] = start, goal
    split = {pair: split_of(f"{pair[0]}-{pair[1]}", *fractions) for pair in set(ends.values())}
    order = sorted(split, key=lambda pair: (SPLITS.index(split[pair]), pair))
    number = {pair: place for place, pair in enumerate(order)}
    rows = []
    for name, points in sorted(good, key=lambda pair: number[ends[pair[0]]]):
        ways = graph.ways(*ends[name], settings.detour)
        lines = [middle_line(way, points[0], points[-1], settings.rounding) for way in ways]
        planned = [run(line, config.points, STEADY) for line in lines]
        rows.append((number[ends[name]], _nearest(points, lines), points, planned[0]))
    side = max(occupied.shape)
    square: NDArray[np.bool_] = np.ones((side, side), dtype=bool)
    square[: occupied.shape[0], : occupied.shape[1]] = occupied
    paths, planner = (torch.from_numpy(np.stack([row[k] for row in rows])).float() for k in (2, 3))
    return Trajectories(
        occupied=torch.from_numpy(square)[None],
        maze_of=torch.zeros(len(order), dtype=torch.int64),
        splits=[split[pair] for pair in order],
        case_of=torch.tensor([row[0] for row in rows]),
        way=torch.tensor([row[1] for row in rows]),
        paths=paths,
        planned=planner,
        faults=faults,
    )


def _nearest(points: Line, lines: list[Line]) -> int:
    """Which line a trajectory follows: the one that its points are nearest to, in the mean."""
    apart = [
        np.linalg.norm(points[:, None] - line[None, ::4], axis=2).min(1).mean() for line in lines
    ]
    return int(np.argmin(apart))
