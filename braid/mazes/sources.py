"""Where mazes and trajectories come from: made here, or read from a pointmaze file.

*Built in.* A layout is a random spanning tree of a grid of cells with some of the other walls taken
out, so that there is often more than one way around. Its free blocks are the nodes of a graph;
corridors are one block wide, so each simple path in it is a way of its own. Ways are the shortest
paths by Yen's algorithm (scipy), as long as the second is not much longer than the first.

The middle line of a way is filtered by a Gaussian along its length (its ends stay), moved sideways
by a few slow waves, and sampled at T equal times of a run that accelerates, goes steadily and
brakes. What then comes too near to a wall is straightened until it does not.

*D4RL's and Minari's pointmaze* (HDF5), with the map in their metadata:

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
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, label
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import shortest_path, yen
from torch import Tensor

from braid.common.config import BUILT_IN
from braid.common.progress import progress
from braid.data.splits import SPLITS, split_of
from braid.mazes.config import LayoutsConfig, MazesConfig
from braid.mazes.maze_set import Trajectories
from braid.metrics.obstacles import collides, distance_at, signed_distance

WAYS = 3  # of a case, at most

SPACING = 0.05  # blocks between the points of a line
WAVES = 3
RAMPS = (0.1, 0.35)  # fractions of the time that a run accelerates and brakes for
STRAIGHTER = (1.0, 0.5, 0.25, 0.0)  # fractions of the waver that are tried
STEADY = (0.2, 0.2)  # ramps of the planner
JITTER = 0.2  # blocks that a start or goal lies off the middle of its block, at most


Occupied = NDArray[np.bool_]  # [H, W]
Blocks = NDArray[np.int64]  # [n, 2] row and column
Line = NDArray[np.float64]  # [n, 2] x, y in blocks


class Case(NamedTuple):
    """A start and a goal in a maze, and the ways from one to the other, the shortest first."""

    maze: int
    ways: list[Blocks]


def layout(cells: int, loops: float, rng: np.random.Generator) -> Occupied:
    """A random maze of cells x cells cells, [2 cells + 1, 2 cells + 1]."""
    occupied = np.ones((2 * cells + 1, 2 * cells + 1), dtype=bool)
    occupied[1::2, 1::2] = False
    group = np.arange(cells * cells)  # of each cell: what it is connected with
    across = [(i * cells + j, i * cells + j + 1) for i in range(cells) for j in range(cells - 1)]
    down = [(i * cells + j, (i + 1) * cells + j) for i in range(cells - 1) for j in range(cells)]
    walls = np.array(across + down)
    for one, other in rng.permutation(walls):
        joins = group[one] != group[other]
        if joins or rng.random() < loops:
            rows, columns = np.divmod(np.array([one, other]), cells)
            occupied[rows.sum() + 1, columns.sum() + 1] = False
        if joins:
            group[group == group[other]] = group[one]
    return occupied


def layouts(config: LayoutsConfig, rng: np.random.Generator) -> list[Occupied]:
    """Layouts of which no two are alike.

    Raises:
        ValueError: there are not that many of that size.
    """
    chosen: dict[bytes, Occupied] = {}
    for _ in range(20 * config.mazes):
        maze = layout(config.cells, config.loops, rng)
        chosen[maze.tobytes()] = maze
        if len(chosen) == config.mazes:
            return list(chosen.values())
    raise ValueError(
        f"mazes.layouts.mazes is {config.mazes}, expected fewer: with {config.cells} cells a side "
        f"there were {len(chosen)} different ones"
    )


class BlockGraph:
    """The free blocks of a maze, each tied to its four neighbors."""

    def __init__(self, occupied: Occupied) -> None:
        self.blocks: Blocks = np.argwhere(~occupied)  # [n, 2]
        self.index = np.full(occupied.shape, -1)
        self.index[tuple(self.blocks.T)] = np.arange(len(self.blocks))
        ties = []
        for here, there in (
            (self.index[:, :-1], self.index[:, 1:]),
            (self.index[:-1], self.index[1:]),
        ):
            both = (here >= 0) & (there >= 0)
            ties.append(np.stack([here[both], there[both]]))
        one, other = np.concatenate(ties, axis=1)
        ends = np.concatenate([one, other]), np.concatenate([other, one])
        size = len(self.blocks)
        self.ties = csr_matrix((np.ones(2 * len(one)), ends), shape=(size, size))
        self.steps = shortest_path(self.ties, unweighted=True)  # [n, n]

    def ways(self, start: int, goal: int, detour: float) -> list[Blocks]:
        """Paths of blocks from one to the other, shortest first; none if there is no way."""
        if not np.isfinite(self.steps[start, goal]):
            return []
        if start == goal:
            return [self.blocks[[start]]]
        lengths, before = yen(self.ties, start, goal, WAYS, return_predecessors=True)
        return [
            self.blocks[_trace(row, start, goal)]
            for steps, row in zip(lengths, before, strict=True)
            if steps <= detour * lengths[0]
        ]


def _trace(before: NDArray[np.int32], start: int, goal: int) -> list[int]:
    """The nodes of a path from its predecessors."""
    nodes = [goal]
    while nodes[-1] != start:
        nodes.append(int(before[nodes[-1]]))
    return nodes[::-1]


def cases(
    number: int,  # of the maze
    occupied: Occupied,
    config: LayoutsConfig,
    rng: np.random.Generator,
) -> list[Case]:
    """Starts and goals of a maze in a random order, as many with two ways around as are wanted.

    A maze that has too few of either kind gives fewer.
    """
    graph = BlockGraph(occupied)
    apart = (graph.steps >= config.shortest) & (graph.steps <= config.longest)
    pairs = rng.permutation(np.argwhere(apart))
    wanted = {True: round(config.two_ways * config.cases)}
    wanted[False] = config.cases - wanted[True]
    chosen: list[Case] = []
    for start, goal in pairs:
        ways = graph.ways(int(start), int(goal), config.detour)
        several = len(ways) > 1
        if wanted[several]:
            wanted[several] -= 1
            chosen.append(Case(number, ways))
        if not any(wanted.values()):
            break
    return chosen


# ---- Trajectories along ways --------------------------------------------------------------------


def middle_line(
    blocks: Blocks,  # [n, 2]
    start: Line,  # [2]
    goal: Line,  # [2]
    rounding: float,  # blocks
) -> Line:
    """The rounded line from start to goal through the middles of the blocks between."""
    inner = blocks[1:-1, ::-1] + 0.5
    line = _respaced(np.concatenate([start[None], inner, goal[None]]))
    # Reflected in its ends, so that they stay.
    margin = min(len(line) - 1, round(4 * rounding / SPACING))
    before = 2 * line[0] - line[margin:0:-1]
    after = 2 * line[-1] - line[-2 : -2 - margin : -1]
    smooth = gaussian_filter1d(
        np.concatenate([before, line, after]), rounding / SPACING, axis=0, mode="nearest"
    )
    return _respaced(np.concatenate([start[None], smooth[margin + 1 : -margin - 1], goal[None]]))


def _respaced(line: Line) -> Line:
    """The same line with points at equal distances."""
    along = _along(line)
    places = np.linspace(0, along[-1], max(2, round(along[-1] / SPACING) + 1))
    return np.stack([np.interp(places, along, axis) for axis in line.T], axis=1)


def _along(line: Line) -> NDArray[np.float64]:
    """The length of a line up to each of its points."""
    return np.concatenate([[0.0], np.linalg.norm(np.diff(line, axis=0), axis=1).cumsum()])


def waver(line: Line, size: float, rng: np.random.Generator) -> Line:
    """Offsets to the side, [n, 2]: slow waves that vanish at both ends."""
    place = np.linspace(0, 1, len(line))
    height = rng.standard_normal(WAVES) / np.arange(1, WAVES + 1)
    offset = size * (height @ np.sin(np.pi * np.arange(1, WAVES + 1)[:, None] * place))
    along = np.gradient(line, axis=0)
    side = np.stack([-along[:, 1], along[:, 0]], axis=1)
    return offset[:, None] * side / np.linalg.norm(side, axis=1, keepdims=True).clip(1e-9)


def run(line: Line, points: int, ramps: Sequence[float] | NDArray[np.float64]) -> Line:
    """A line at equal times: speed rises in the first fraction of the time, falls in the last."""
    time = np.linspace(0, 1, points)
    speed = np.minimum(1, np.minimum(time / ramps[0], (1 - time) / ramps[1]))
    covered = np.concatenate([[0.0], ((speed[1:] + speed[:-1]) / 2).cumsum()])
    along = _along(line)
    places = covered / covered[-1] * along[-1]
    return np.stack([np.interp(places, along, axis) for axis in line.T], axis=1)


# ---- Mazes made here ---------------------------------------------------------------------------


def built_in(config: MazesConfig, seed: int) -> Trajectories:
    """Mazes, cases and trajectories by the params, split by maze; none of them collides."""
    settings, rng = config.layouts, np.random.default_rng([seed, 0])
    fractions = (config.val_fraction, config.test_fraction)
    named = [(split_of(maze.tobytes().hex(), *fractions), maze) for maze in layouts(settings, rng)]
    named.sort(key=lambda pair: SPLITS.index(pair[0]))
    occupied = torch.from_numpy(np.stack([maze for _, maze in named]))
    numbered = progress(list(enumerate(named)), "ways", "maze")
    chosen = [case for n, (_, maze) in numbered for case in cases(n, maze, settings, rng)]
    owners: list[tuple[int, int]] = []  # case and way of each trajectory
    drawn: list[tuple[Line, Line]] = []  # its line and its waver
    plans: list[Line] = []
    for number, case in enumerate(chosen):
        offsets = rng.uniform(-JITTER, JITTER, (2, 2))
        start, goal = case.ways[0][[0, -1], ::-1] + 0.5 + offsets
        lines = [middle_line(blocks, start, goal, settings.rounding) for blocks in case.ways]
        planned = run(lines[0], config.points, STEADY)
        for way, line in enumerate(lines):
            for _ in range(settings.variants):
                owners.append((number, way))
                drawn.append((line, waver(line, settings.wiggle, rng)))
                plans.append(planned)
    if not owners:
        raise ValueError(
            f"mazes.layouts.shortest is {settings.shortest} and longest {settings.longest}, "
            "expected steps that some way in these mazes has"
        )
    case_of, way_of = torch.tensor(owners).mT
    maze_of = torch.tensor([case.maze for case in chosen])
    ramps = rng.uniform(*RAMPS, (len(drawn), 2))
    paths, clear = _clear(drawn, ramps, config, occupied[maze_of[case_of]])
    return Trajectories(
        occupied=occupied,
        maze_of=maze_of,
        splits=[named[case.maze][0] for case in chosen],
        case_of=case_of[clear],
        way=way_of[clear],
        paths=paths[clear],
        planned=torch.from_numpy(np.stack(plans)).float()[clear],
    )


def _clear(
    rows: Sequence[tuple[Line, Line]],  # lines and wavers
    ramps: NDArray[np.float64],  # [N, 2]
    config: MazesConfig,
    occupied: Tensor,  # [N, H, W]
) -> tuple[Tensor, Tensor]:
    """Paths [N, T, 2], each with as much of its waver as walls leave, and which are clear [N]."""
    mazes, of = occupied.unique(dim=0, return_inverse=True)
    distance = signed_distance(mazes)
    paths = torch.zeros(len(rows), config.points, 2)
    clear = torch.zeros(len(rows), dtype=torch.bool)
    for fraction in STRAIGHTER:
        left = (~clear).nonzero().flatten()
        if not len(left):
            break
        made = [
            run(rows[n][0] + fraction * rows[n][1], config.points, ramps[n]) for n in left.tolist()
        ]
        paths[left] = torch.from_numpy(np.stack(made)).float()
        nearest = distance_at(distance[of[left]], paths[left]).amin(1)
        free = (nearest >= config.layouts.clearance) & ~collides(occupied[left], paths[left]).any(1)
        clear[left] = free
    return paths, clear


# ---- Pointmaze files ---------------------------------------------------------------------------

WALLS = {"1", "10", "#"}  # of map entries, as text
FREE = {"0", "11", "12", "r", "g", "c", "R", "G", "O"}
D4RL_CORNER = 0.7


def read_pointmaze(path: Path, config: MazesConfig) -> Trajectories:
    """The trajectories of a file, split by case.

    Raises:
        ValueError: no file, no pointmaze file, a map that cannot be read, or a fault where
            `mazes.faults` is fatal; the message names the file and the place in it.
    """
    if not path.is_file():
        raise ValueError(
            f"mazes.source: {path}: no such file, expected a pointmaze file (HDF5), or {BUILT_IN}"
        )
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
        (name for name in file if re.fullmatch(r"episode_\d+", name)),
        key=lambda name: int(name[8:]),
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
    if not ends.any():
        raise ValueError(f"{path}: timeouts: none is true, expected the ends of trajectories")
    stops = np.union1d(np.flatnonzero(ends) + 1, len(ends))  # the last run may have been cut off
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
    parts = label(~occupied)[0][row, column]
    if len(np.unique(parts)) > 1:
        return f"point {int(np.flatnonzero(parts.astype(int) - parts[0])[0])} lies beyond a wall"
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
