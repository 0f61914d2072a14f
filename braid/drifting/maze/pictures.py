"""Pictures of trajectories: methods beside one another, failures, two ways around."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from braid.common.plotting import BLUE, GREEN, INK, ORANGE, PALE, save, styled
from braid.drifting.maze.evaluation import Held, MazeEvaluation, Method, Samples
from braid.drifting.maze.network import points_of
from braid.metrics.obstacles import collides

COLUMNS = ("interpolated", "projected", "paired", "refined")
INCH = 1.5  # of a maze


def draw_methods(
    path: Path,
    held: Held,
    methods: Mapping[str, Method],
    rows: Sequence[int],
    title: str,
) -> None:
    """A row a trajectory, a column a method; dots are keyframes, orange is what touches a wall."""
    shown = torch.tensor(rows)
    part = held[shown]
    clips = {name: methods[name].clips[shown] for name in COLUMNS} | {"real": part.truth}
    occupied = part.mazes.of(part.cases)[0]
    with styled():
        figure = Figure(figsize=(INCH * len(clips), INCH * len(rows) + 0.5), layout="constrained")
        axes = figure.subplots(len(rows), len(clips), squeeze=False)
        for column, (name, made) in enumerate(clips.items()):
            points = points_of(made, part.mazes.blocks)
            hit = collides(occupied, points).any(1)
            for row in range(len(rows)):
                axis = axes[row][column]
                draw_maze(axis, occupied[row])
                color = ORANGE if hit[row] else BLUE
                axis.plot(*points[row].T, color=color, linewidth=1.1)
                keys = points[row][methods["refined"].mask[shown[row]]]
                axis.plot(*keys.T, "o", color=INK, markersize=2.5)
            axes[0][column].set_title(name)
        figure.suptitle(title)
        save(figure, path)


def draw_two_ways(
    path: Path,
    sampled: Samples,
    count: int,  # of the cases
) -> None:
    """Cases with two ways around, all samples of each pipeline; the real trajectories beside."""
    held, clips = sampled
    rows = [place * len(held.cases) // count for place in range(min(count, len(held.cases)))]
    names = {"phase1_paired": "regression", "phase1_refined": "drifting"}
    with styled():
        size = (INCH * 1.4 * len(rows), INCH * 1.4 * len(names) + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(names), len(rows), squeeze=False)
        for line, (name, label) in enumerate(names.items()):
            for column, row in enumerate(rows):
                occupied = held.mazes.of(held.cases[row : row + 1])[0]
                samples = points_of(clips[name][:, row], held.mazes.blocks)
                hit = collides(occupied.expand(len(samples), -1, -1), samples).any(1)
                axis = axes[line][column]
                draw_maze(axis, occupied[0])
                for points, touches in zip(samples, hit.tolist(), strict=True):
                    axis.plot(
                        *points.T, color=ORANGE if touches else BLUE, linewidth=0.8, alpha=0.6
                    )
                axis.plot(*samples[0, [0, -1]].T, "o", color=GREEN, markersize=3.5)
                axis.set_title(f"{label}: {int((~hit).sum())} of {len(hit)} free")
        figure.suptitle(
            "From start, goal and maze alone, two ways around: samples of both pipelines"
        )
        save(figure, path)


def draw_maze(axis: Axes, occupied: Tensor) -> None:
    """Walls, without axes."""
    side = len(occupied)
    axis.imshow(1 - 0.35 * occupied.float(), extent=(0, side, side, 0), cmap="gray", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_edgecolor(PALE)


def draw_evaluation(folder: Path, evaluation: MazeEvaluation, samples: Samples) -> None:
    """Each level: the first trajectories and the refined ones that collide; two ways around."""
    count, held = evaluation.config.pictures, evaluation.held
    for level in range(1, evaluation.corruption.levels + 1):
        methods = evaluation.methods(level)
        given = evaluation.corruption.counts[level]
        points = points_of(methods["refined"].clips, held.mazes.blocks)
        hit = collides(held.mazes.of(held.cases)[0], points).any(1).nonzero().flatten()
        rows = [place * len(held.cases) // count for place in range(count)]
        draw_methods(
            folder / f"keyframes_{given}.png", held, methods, rows, f"{given} keyframes of each"
        )
        if len(hit):
            title = f"{given} keyframes: refined trajectories that touch a wall, {len(hit)} in all"
            draw_methods(
                folder / f"failures_{given}.png", held, methods, hit[:count].tolist(), title
            )
    draw_two_ways(folder / "two_ways.png", samples, count)
