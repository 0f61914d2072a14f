"""Smooth trajectories along ways: corners rounded, a wavering line, a velocity profile.

The middle line of a way is filtered by a Gaussian along its length (its ends stay), moved sideways
by a few slow waves, and sampled at T equal times of a run that accelerates, goes steadily and
brakes. What then comes too near to a wall is straightened until it does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from braid.data.splits import SPLITS, split_of
from braid.mazes.config import MazesConfig
from braid.mazes.data.maze_set import Trajectories
from braid.mazes.preparation.layouts import Blocks, cases, layouts
from braid.metrics.obstacles import collides, distance_at, signed_distance

SPACING = 0.05  # blocks between the points of a line
WAVES = 3
RAMPS = (0.1, 0.35)  # fractions of the time that a run accelerates and brakes for
STRAIGHTER = (1.0, 0.5, 0.25, 0.0)  # fractions of the waver that are tried
STEADY = (0.2, 0.2)  # ramps of the planner
JITTER = 0.2  # blocks that a start or goal lies off the middle of its block, at most

Line = NDArray[np.float64]  # [n, 2] x, y in blocks


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


def built_in(config: MazesConfig, seed: int) -> Trajectories:
    """Mazes, cases and trajectories by the params, split by maze; none of them collides."""
    settings, rng = config.layouts, np.random.default_rng([seed, 0])
    fractions = (config.val_fraction, config.test_fraction)
    named = [(split_of(maze.tobytes().hex(), *fractions), maze) for maze in layouts(settings, rng)]
    named.sort(key=lambda pair: SPLITS.index(pair[0]))
    occupied = torch.from_numpy(np.stack([maze for _, maze in named]))
    chosen = [case for n, (_, maze) in enumerate(named) for case in cases(n, maze, settings, rng)]
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
    case_of, way_of = torch.tensor(owners).T
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
