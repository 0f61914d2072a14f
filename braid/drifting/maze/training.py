"""What networks of trajectories are trained for, and how good they are by walls.

Two tasks share network, corruption, objectives and step loop. *Refinement* corrects interpolated
trajectories. *Keyframes*, phase 1, makes a few points from the ends and the maze alone: a
trajectory of that many points of which two are given, the others start from a random walk.

A class of the drift is a case, which is a maze, a start and a goal: its real trajectories, by one
way around or by several, are the positives of what is made from its keyframes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from braid.common.rng import generator
from braid.drifting.config import (
    DriftLossConfig,
    MazeCorruptionConfig,
    MazeRefinerConfig,
    MazeTrainingConfig,
    PhaseOneConfig,
)
from braid.drifting.interpolation.interpolation import interpolate
from braid.drifting.interpolation.keyframes import even_ranks, nested_masks
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.maze.network import (
    MazeRefiner,
    Mazes,
    latents_of,
    load_maze_refiner,
    points_of,
)
from braid.drifting.training.objectives import DriftObjective, PairedObjective, Refinement
from braid.drifting.training.selection import KeepBest
from braid.drifting.video.corruption import Corruption
from braid.drifting.video.features import vanilla
from braid.drifting.video.refiner import refine
from braid.metrics.obstacles import collides, inside
from braid.training.trainer import Run

OUTER_LAYERS = ("refiner.embed", "refiner.map_in", "refiner.out")  # of the objective
SLACK = 0.02  # by which a rate of some hundred trajectories wavers
REPEATS = 4  # samples of a validation trajectory's ends, from which a phase 1 is scored
PROPOSALS = 8  # of phase 1, of which the one nearest to a trajectory is its anchor
AT_MOST = 400  # validation trajectories


class Trajectories(Protocol):
    """A set of mazes and trajectories."""

    occupied: Tensor
    distance: Tensor
    maze_of: Tensor
    case_of: Tensor
    paths: Tensor

    def indices(self, split: str) -> NDArray[np.int64]:
        """The trajectories of a split."""


def mazes_of(maze_set: Trajectories) -> Mazes:
    """What networks look cases up in."""
    return Mazes(maze_set.occupied, maze_set.distance, maze_set.maze_of)


def corruption_of(
    config: MazeCorruptionConfig, phase_one: PhaseOneConfig, task: str, points: int
) -> Corruption:
    """The forward process of a task, for trajectories of T points.

    Raises:
        ValueError: too few points for that many levels or keyframes, or no level has as many
            keyframes as phase 1 makes.
    """
    whole = Corruption(points, config)
    if phase_one.count not in whole.counts[1:]:
        raise ValueError(
            f"maze_drift.keyframes.count is {phase_one.count}, expected one of "
            f"{whole.counts[1:]}, the keyframes of corruption's levels"
        )
    if task == "refinement":
        return whole
    settings = MazeCorruptionConfig(
        levels=1,
        min_keyframes=2,
        schedule="doubling",
        placement="even",
        interpolator="linear",
        noise="bridge",
        sigma=phase_one.sigma,
        keyframe_noise=0.0,
        student_replace_prob=0.0,
    )
    return Corruption(phase_one.count, settings)


def key_places(points: int, count: int) -> Tensor:
    """Which of T points are the evenly placed keyframes, [count]."""
    return (even_ranks(points, [points, count]) < count).nonzero().flatten()


def network(
    config: MazeRefinerConfig, task: str, mazes: Mazes, points: int, levels: int
) -> MazeRefiner:
    """A fresh network for a task; of keyframes each is a token."""
    if task == "keyframes":
        config = config.model_copy(update={"patch": 1})
    return MazeRefiner(mazes, points, levels, config)


class MazeSplit:
    """The trajectories of one split as clips, by their positions in it."""

    def __init__(self, maze_set: Trajectories, split: str, task: str, count: int) -> None:
        self.indices = torch.from_numpy(maze_set.indices(split))
        self.classes = maze_set.case_of[self.indices]  # [n]
        self.blocks = maze_set.occupied.shape[1]
        self.mazes = mazes_of(maze_set)
        paths = maze_set.paths[self.indices]
        if task == "keyframes":
            paths = paths[:, key_places(paths.shape[1], count)]
        self.clips = latents_of(paths, self.blocks)  # [n, 2, T, 1, 1]

    def __len__(self) -> int:
        return len(self.indices)

    def latents(self, positions: Tensor) -> Tensor:
        """Clips [B, 2, T, 1, 1] of trajectories [B]."""
        return self.clips[positions]

    def evenly(self, at_most: int) -> Tensor:
        """Positions of so many trajectories, evenly spread over the split."""
        count = min(at_most, len(self))
        return (torch.arange(count) * len(self)) // count


class Anchors:
    """A phase-1 network's keyframes for training trajectories, with lines between them.

    Phase 1 may take another way than the trajectory did; of a few proposals the nearest counts.
    """

    def __init__(
        self, folder: Path, corruption: Corruption, split: MazeSplit, seed: int
    ) -> None:
        self.refiner = load_maze_refiner(folder, split.mazes)
        self.corruption, self.split, self.seed = corruption, split, seed

    def __call__(self, positions: Tensor) -> Tensor:
        """Clips [B, 2, T, 1, 1] of which the keyframes count."""
        truth, cases = self.split.clips[positions], self.split.classes[positions]
        places = key_places(truth.shape[2], self.corruption.frames)
        wanted = truth[:, :, places]
        offered = torch.stack(
            [
                propose(self.refiner, self.corruption, wanted, cases, number, self.seed)
                for number in range(PROPOSALS)
            ]
        )
        nearest = (offered - wanted).square().flatten(2).sum(2).argmin(0)
        return spread(offered[nearest, torch.arange(len(truth))], places, truth)


def spread(
    keyframes: Tensor,  # [B, 2, K, 1, 1]
    places: Tensor,  # [K] of T
    like: Tensor,  # [B, 2, T, 1, 1]
) -> Tensor:
    """Keyframes at their places and lines between them, [B, 2, T, 1, 1]."""
    frames = torch.arange(like.shape[2])
    right = torch.searchsorted(places, frames).clamp(min=1)
    start, end = places[right - 1], places[right]
    fraction = ((frames - start) / (end - start))[None, None, :, None, None]
    return torch.lerp(keyframes[:, :, right - 1], keyframes[:, :, right], fraction)


def propose(
    refiner: nn.Module,
    corruption: Corruption,  # of keyframes
    ends: Tensor,  # [B, 2, K, 1, 1], of which the first and the last are read
    cases: Tensor,  # [B]
    number: int,  # of the proposal, for other noise
    seed: int,
    alpha: float = 1.0,
) -> Tensor:
    """Keyframes from ends and mazes alone, [B, 2, K, 1, 1]."""
    mask = torch.zeros(len(ends), ends.shape[2], dtype=torch.bool)
    mask[:, [0, -1]] = True
    draw = generator(seed, "keyframes", number)
    start = corruption.impute(ends, mask, torch.arange(len(ends)), draw)
    return refine(refiner, start, cases, 1, alpha)


def maze_objective(
    settings: MazeTrainingConfig,
    loss: DriftLossConfig,
    refiner: MazeRefiner,
    corruption: Corruption,
    split: MazeSplit,  # what is trained on
    start: Path | None,  # folder of a network to go on from
    anchors: Anchors | None,  # what replaces keyframes
    run: Run,
) -> Refinement:
    """Regression, or drifting on the trajectories themselves, one level a case in a step.

    Raises:
        ValueError: a folder cannot be read, or a start of other shapes.
    """
    if start is not None:
        start_from(refiner, start)
    base = (
        refiner.to(run.device),
        corruption,
        split.latents,
        split.classes,
        settings.batches,
        anchors,
        "class",
    )
    if settings.objective == "paired":
        return PairedObjective(*base)
    branches = {"vanilla": (1.0, vanilla(settings.features))}
    return DriftObjective(*base, branches=branches, loss=DriftLoss(loss), log_every=run.log_every)


def start_from(refiner: MazeRefiner, folder: Path) -> None:
    """Take over the weights of a saved network.

    Raises:
        ValueError: it cannot be read, or is of other shapes; the message names the folder.
    """
    other = load_maze_refiner(folder, refiner.mazes)
    has, wanted = (
        {**network.sizes, **network.config.model_dump(exclude={"heads", "clamp", "map_rounds"})}
        for network in (other, refiner)
    )
    if has != wanted:
        raise ValueError(f"{folder}: a network of {has} to start from, expected {wanted}")
    refiner.load_state_dict(other.state_dict())


class MazeValidation(KeepBest):
    """Scores validation trajectories through unseen mazes.

    Refinement by `collision`, the mean over levels of the fraction of trajectories that touch a
    wall; keyframes by `energy_score`, E|x - y| - E|x - x'| / 2 of samples x and x' and the real
    keyframes y, which is least for the right distribution (Gneiting and Raftery 2007).
    """

    def __init__(
        self,
        split: MazeSplit,
        corruption: Corruption,
        settings: MazeTrainingConfig,
        run: Run,
    ) -> None:
        chosen = split.evenly(AT_MOST)
        self.truth, self.cases, self.blocks = split.clips[chosen], split.classes[chosen], split.blocks
        self.occupied = split.mazes.of(self.cases)[0]
        self.corruption, self.task = corruption, settings.task
        draw, ids = generator(run.seed, "validation"), torch.arange(len(chosen))
        masks = nested_masks(len(chosen), self.truth.shape[2], corruption.counts, None)
        repeats = REPEATS if settings.task == "keyframes" else 1
        self.corrupted = {
            level: [
                corruption.impute(self.truth, masks[level], ids + repeat * len(ids), draw)
                for repeat in range(repeats)
            ]
            for level in range(1, corruption.levels + 1)
        }
        score = "collision" if settings.task == "refinement" else "energy_score"
        every = min(settings.validate_every, settings.steps)
        straight = {
            level: [interpolate(self.truth, masks[level], corruption.config)] * repeats
            for level in self.corrupted
        }
        super().__init__(every, score, self.figures(straight), SLACK)

    def scores(self, refiner: nn.Module) -> dict[str, float]:
        """The figures of a network."""
        return self.figures(
            {
                level: [refine(refiner, part, self.cases, level, alpha=1.0) for part in parts]
                for level, parts in self.corrupted.items()
            }
        )

    def figures(self, clips: dict[int, list[Tensor]]) -> dict[str, float]:
        """Of clips [n, 2, T, 1, 1] of each level."""
        if self.task == "keyframes":
            samples = torch.stack(clips[1])
            within = inside(self.occupied, points_of(samples[0], self.blocks))[:, 1:-1]
            return {
                "energy_score": energy_score(samples, self.truth),
                "wall": float(within.float().mean()),
            }
        rates = {
            level: float(
                collides(self.occupied, points_of(parts[0], self.blocks)).any(1).float().mean()
            )
            for level, parts in clips.items()
        }
        error = torch.stack([(parts[0] - self.truth).square().mean() for parts in clips.values()])
        named = {f"collision_{self.corruption.counts[k]}": rate for k, rate in rates.items()}
        return {
            "collision": sum(rates.values()) / len(rates),
            **named,
            "mse": float(error.mean()),
        }


def energy_score(
    samples: Tensor,  # [S, n, ...] of each of n conditions
    truth: Tensor,  # [n, ...]
) -> float:
    """E|x - y| - E|x - x'| / 2 over pairs of different samples, the mean over conditions."""
    count = len(samples)
    error = (samples - truth).flatten(2).norm(dim=2).mean()
    apart = (samples[:, None] - samples[None]).flatten(3).norm(dim=3).sum((0, 1)).mean()
    return float(error - apart / (2 * count * (count - 1)))
