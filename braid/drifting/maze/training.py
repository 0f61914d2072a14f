"""What networks of trajectories are trained for, and how good they are by walls.

Two tasks share network, corruption, objectives and step loop. *Refinement* corrects trajectories
interpolated between keyframes. *Keyframes*, phase 1, starts from a random walk between the ends
alone, and of what it makes of it a few points are read off as keyframes.

A class of the drift is a case, which is a maze, a start and a goal: its real trajectories, by one
way around or by several, are the positives of what is made from its keyframes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from braid.common.rng import generator
from braid.drifting.config import DriftLossConfig, MazeCorruptionConfig
from braid.drifting.interpolation.interpolation import interpolate
from braid.drifting.interpolation.keyframes import nested_masks
from braid.drifting.loss.drift import DriftLoss
from braid.drifting.maze.config import MazeTrainingConfig, PhaseOneConfig
from braid.drifting.maze.network import (
    MazeRefiner,
    Mazes,
    latents_of,
    load_maze_refiner,
    points_of,
)
from braid.drifting.training.clips import KeepBest
from braid.drifting.training.objectives import (
    DriftObjective,
    PairedObjective,
    Refinement,
    distinct,
)
from braid.drifting.video.corruption import Corruption, as_proposals
from braid.drifting.video.features import vanilla
from braid.drifting.video.refiner import refine
from braid.metrics.distances import energy_score
from braid.metrics.obstacles import collides, inside
from braid.training.trainer import Run

OUTER_LAYERS = ("refiner.embed", "refiner.map_in", "refiner.out")  # of the objective
SLACK = 0.02  # by which a rate of some hundred trajectories wavers
REPEATS = 4  # samples of a validation trajectory's ends, from which a phase 1 is scored
PROPOSALS = {"paired": 8, "drift": 1}  # of phase 1, of which the nearest is the anchor
AT_MOST = 400  # validation trajectories
PROPOSED = "proposed"  # of keyframes: phase 1's


class Trajectories(Protocol):
    """A set of mazes and trajectories."""

    @property
    def occupied(self) -> Tensor:
        """Maps, [M, G, G] bool."""

    @property
    def distance(self) -> Tensor:
        """Signed distances, [M, R, R]."""

    @property
    def maze_of(self) -> Tensor:
        """The maze of each case, [K]."""

    @property
    def case_of(self) -> Tensor:
        """The case of each trajectory, [N]."""

    @property
    def paths(self) -> Tensor:
        """Trajectories, [N, T, 2] blocks."""

    def indices(self, split: str) -> NDArray[np.int64]:
        """The trajectories of a split."""


def mazes_of(maze_set: Trajectories) -> Mazes:
    """What networks look cases up in."""
    return Mazes(maze_set.occupied, maze_set.distance, maze_set.maze_of)


def corruptions(
    config: MazeCorruptionConfig, phase_one: PhaseOneConfig, points: int
) -> dict[str, Corruption]:
    """The forward process of each task, for trajectories of T points.

    Raises:
        ValueError: too few points for that many levels or keyframes, or no level has as many
            keyframes as are read off phase 1.
    """
    refinement = Corruption(points, config)
    if phase_one.count not in refinement.counts[1:]:
        raise ValueError(
            f"maze_drift.keyframes.count is {phase_one.count}, expected one of "
            f"{refinement.counts[1:]}, the keyframes of corruption's levels"
        )
    ends = {"levels": 1, "min_keyframes": 2, "placement": "even", "student_replace_prob": 0.0}
    walk = {"noise": phase_one.noise, "sigma": phase_one.sigma}
    return {
        "refinement": refinement,
        "keyframes": Corruption(points, config.model_copy(update=ends | walk)),
    }


class MazeSplit:
    """The trajectories of one split as clips, by their positions in it."""

    def __init__(self, maze_set: Trajectories, split: str) -> None:
        self.indices = torch.from_numpy(maze_set.indices(split))
        self.classes = maze_set.case_of[self.indices]  # [n]
        self.blocks = maze_set.occupied.shape[1]
        self.mazes = mazes_of(maze_set)
        self.clips = latents_of(maze_set.paths[self.indices], self.blocks)  # [n, 2, T, 1, 1]

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
    """A phase-1 network's points for trajectories: always the same ones for a trajectory.

    Phase 1 may take another way than the trajectory did. Regression, which pairs them, takes the
    nearest of a few proposals; drifting compares with all ways and takes any.
    """

    def __init__(
        self,
        split: MazeSplit,
        folder: Path,  # of the network
        corruption: Corruption,  # of keyframes
        proposals: int,  # of which the nearest counts
        seed: int,
    ) -> None:
        self.refiner = load_maze_refiner(folder, split.mazes)
        self.corruption, self.split, self.seed = corruption, split, seed
        self.proposals = proposals

    def __call__(self, positions: Tensor) -> Tensor:
        """Clips [B, 2, T, 1, 1] of which the keyframes count."""
        truth, cases = self.split.clips[positions], self.split.classes[positions]
        ids, part = distinct(positions, len(self.split)), (self.refiner, self.corruption)
        offered = torch.stack(
            [propose(*part, truth, cases, ids, n, self.seed) for n in range(self.proposals)]
        )
        nearest = (offered - truth).square().flatten(2).sum(2).argmin(0)
        return offered[nearest, torch.arange(len(truth))]


def anchors_of(split: MazeSplit, folder: Path | None, *others: Any) -> Anchors | None:
    """The anchors of a split; None where no network is named."""
    return Anchors(split, folder, *others) if folder else None


def propose(
    refiner: nn.Module,
    corruption: Corruption,  # of keyframes
    ends: Tensor,  # [B, 2, T, 1, 1], of which the first and the last point are read
    cases: Tensor,  # [B]
    ids: Tensor,  # [B] whose noise each one gets
    number: int,  # of the proposal, for other noise
    seed: int,
    alpha: float = 1.0,
) -> Tensor:
    """Trajectories from ends and mazes alone, [B, 2, T, 1, 1], to read keyframes off."""
    mask = torch.zeros(len(ends), ends.shape[2], dtype=torch.bool)
    mask[:, [0, -1]] = True
    start = corruption.impute(ends, mask, ids, generator(seed, "keyframes", number))
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
    if anchors is None:  # nothing to replace keyframes by
        update = {"student_replace_prob": 0.0}
        settled = corruption.config.model_copy(update=update)
        corruption = Corruption(corruption.frames, settled)
    base = refiner.to(run.device), corruption, split.latents, split.classes, settings.batches
    if settings.objective == "paired":
        return PairedObjective(*base, anchors, level_of="class")
    branches = {"vanilla": (1.0, vanilla(settings.features))}
    return DriftObjective(
        *base,
        anchors,
        branches=branches,
        loss=DriftLoss(loss),
        log_every=run.log_every,
        level_of="class",
    )


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

    Refinement by `collision`, the fraction of trajectories that touch a wall, its mean over levels
    and, where phase 1 replaces keyframes, its coarsest ones; keyframes by `energy_score`,
    E|x - y| - E|x - x'| / 2 of samples x and x' and the real keyframes y, which is least for the
    right distribution (Gneiting and Raftery 2007).
    """

    def __init__(
        self,
        split: MazeSplit,
        corruption: Corruption,
        settings: MazeTrainingConfig,
        anchors: Anchors | None,  # phase 1's points for the split, where it replaces keyframes
        run: Run,
    ) -> None:
        chosen = split.evenly(AT_MOST)
        self.truth, self.cases, self.blocks = (
            split.clips[chosen],
            split.classes[chosen],
            split.blocks,
        )
        self.occupied = split.mazes.of(self.cases)[0]
        self.task = settings.task
        draw, ids = generator(run.seed, "validation"), torch.arange(len(chosen))
        masks = nested_masks(len(chosen), self.truth.shape[2], corruption.counts)
        repeats = REPEATS if settings.task == "keyframes" else 1
        self.starts = {  # by name: their level and what is refined
            str(corruption.counts[level]): (
                level,
                [
                    corruption.impute(self.truth, masks[level], ids + repeat * len(ids), draw)
                    for repeat in range(repeats)
                ],
            )
            for level in range(1, corruption.levels + 1)
        }
        if anchors is not None:
            offered = corruption.impute(anchors(chosen), masks[-1], ids, draw)
            self.starts[PROPOSED] = corruption.levels, [as_proposals(offered)]
        score = "collision" if settings.task == "refinement" else "energy_score"
        straight = {
            name: [interpolate(p.latents, p.confidence > 0, corruption.config) for p in parts]
            for name, (_, parts) in self.starts.items()
        }
        every, steps = settings.validate_every, settings.steps
        super().__init__(every, steps, score, self.figures(straight), SLACK)

    def scores(self, refiner: nn.Module) -> dict[str, float]:
        """The figures of a network."""
        return self.figures(
            {
                name: [refine(refiner, part, self.cases, level, alpha=1.0) for part in parts]
                for name, (level, parts) in self.starts.items()
            }
        )

    def figures(self, clips: dict[str, list[Tensor]]) -> dict[str, float]:
        """Of clips [n, 2, T, 1, 1] by the keyframes that they were made from."""
        if self.task == "keyframes":
            samples = torch.stack(clips["2"])
            within = inside(self.occupied, points_of(samples[0], self.blocks))[:, 1:-1]
            return {
                "energy_score": energy_score(samples, self.truth),
                "wall": float(within.float().mean()),
            }
        hits = {
            f"collision_{name}": collides(self.occupied, points_of(part, self.blocks)).any(1)
            for name, (part,) in clips.items()
        }
        rates = {name: float(hit.float().mean()) for name, hit in hits.items()}
        error = [
            (clips[name][0] - self.truth).square().mean() for name in clips if name != PROPOSED
        ]
        return {
            "collision": sum(rates.values()) / len(rates),
            **rates,
            "mse": float(torch.stack(error).mean()),
        }
