"""How trajectories through unseen mazes are evaluated: by walls, ends, length and distribution.

Keyframes are true ones of held-out trajectories at every level, or phase 1's, made from the ends
and the maze alone. Methods and rows:

    interpolated   linear between keyframes; `projected`: its points pushed out of walls
    paired, cold   one step of the regression, and cold diffusion with it from level to level
    refined        one step of the evaluated refiner; `unclamped`; `shuffled`: conditioned on the
                   maze of another sample; `permuted`: that of another sample, all conditions its
    planner        the shortest way, by graph search; `real`: the held-out trajectories

A trajectory collides if it touches a wall anywhere, between its points too; it succeeds if it does
not and its ends are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from braid.common.plotting import BLUE, GREEN, INK, ORANGE, PALE, save, styled
from braid.common.progress import progress
from braid.common.rng import generator
from braid.common.timing import timed
from braid.drifting.interpolation.interpolation import interpolate
from braid.drifting.interpolation.keyframes import (
    greedy_ranks,
    masks_of,
    nested_masks,
    optimal_mask,
)
from braid.drifting.maze.config import MazeEvaluationConfig
from braid.drifting.maze.network import MazeRefiner, Mazes, latents_of, points_of
from braid.drifting.maze.training import MazeSplit, propose
from braid.drifting.video.corruption import Corruption, as_proposals
from braid.drifting.video.refiner import cold_sample, refine
from braid.metrics.distances import PcaSpace, energy_distance, frechet_distance
from braid.metrics.obstacles import acceleration, collides, inside, length, project

KEPT = 1e-4  # blocks by which an end may be off
SUCCESS = 0.85  # with the fewest keyframes, that counts as ok
HALF = 0.5  # of the regression's collisions where there are two ways
CONDITIONED = 2.0  # times as many collisions with another sample's maze, that counts as ok
BOTH = 0.6  # of two-way cases, that counts as ok
SPREAD = (0.5, 2.0)  # of samples by one way, over that of real trajectories, that counts as ok

NO_TWO_WAYS = "no held-out case has two ways around"
NO_FIGURES = dict.fromkeys(("collision", "both_ways", "spread_ratio", "success", "length_ratio"))

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Networks:
    """What is evaluated."""

    refiner: MazeRefiner
    paired: MazeRefiner
    keyframes: MazeRefiner  # phase 1 before `refiner`
    paired_keyframes: MazeRefiner  # phase 1 before `paired`


@dataclass(frozen=True)
class Held:
    """Held-out trajectories."""

    truth: Tensor  # [n, 2, T, 1, 1]
    planned: Tensor  # [n, T, 2] blocks
    cases: Tensor  # [n]
    ways: Tensor  # [n]
    two_ways: Tensor  # [n] bool: the case has several
    mazes: Mazes

    def __getitem__(self, rows: Tensor) -> Held:
        """Some of them."""
        return Held(
            self.truth[rows],
            self.planned[rows],
            self.cases[rows],
            self.ways[rows],
            self.two_ways[rows],
            self.mazes,
        )


def held_out(split: MazeSplit, planned: Tensor, ways: Tensor, two_ways: Tensor) -> Held:
    """The trajectories of a split; tensors are of all trajectories, `two_ways` of all cases."""
    rows, cases = split.indices, split.classes
    return Held(split.clips, planned[rows], cases, ways[rows], two_ways[cases], split.mazes)


class Method(NamedTuple):
    """Clips of one method and what they cost."""

    clips: Tensor  # [n, 2, T, 1, 1]
    mask: Tensor  # [n, T] the points that were given
    calls: int  # of a network, a trajectory
    microseconds: float  # a trajectory


class Samples(NamedTuple):
    """Several samples of each of k cases."""

    cases: Held  # a trajectory a case
    clips: dict[str, Tensor]  # [S, k, 2, T, 1, 1] by pipeline


class MazeEvaluation:
    """Completes held-out trajectories by every method and scores them."""

    def __init__(
        self,
        networks: Networks,
        held: Held,  # all held-out trajectories
        tasks: Mapping[str, Corruption],
        count: int,  # keyframes that are read off phase 1
        train: Tensor,  # [N, 2, T, 1, 1] real training trajectories
        config: MazeEvaluationConfig,
        seed: int,
    ) -> None:
        self.networks, self.config, self.seed = networks, config, seed
        shown = min(config.trajectories, len(held.truth))
        self.everything = held
        self.held = held = held[torch.arange(shown) * len(held.truth) // shown]
        self.corruption, self.phase_one = tasks["refinement"], tasks["keyframes"]
        self.count = count
        self.space = PcaSpace(train, config.components)
        self.real = self.space.points(held.truth)
        self.train = train[torch.arange(len(held.truth)) * len(train) // len(held.truth)]
        self.clock: dict[str, float] = {}
        self.warm = False
        self.completed = {
            level: self.methods(level) for level in range(self.corruption.levels, 0, -1)
        }

    # ---- Methods ---------------------------------------------------------------------------------

    def methods(self, level: int) -> dict[str, Method]:
        """All methods with the true keyframes of a level, evenly placed."""
        held, alpha = self.held, self.config.alpha
        truth, cases, count = held.truth, held.cases, len(held.truth)
        masks = nested_masks(count, truth.shape[2], self.corruption.counts)
        mask = masks[level]
        start = self.corruption.impute(truth, mask, torch.arange(count), self._noise())
        other = cases.roll(count // 2)
        networks = self.networks

        def step(network: MazeRefiner, labels: Tensor, clamp: bool) -> Callable[[], Tensor]:
            return lambda: refine(network, start, labels, level, alpha, clamp)

        runs: dict[str, tuple[int, Callable[[], Tensor]]] = {
            "interpolated": (0, lambda: self.interpolated(mask)),
            "projected": (0, lambda: self.projected(mask)),
            "paired": (1, step(networks.paired, cases, True)),
            "cold": (
                level,
                lambda: cold_sample(
                    networks.paired,
                    self.corruption,
                    truth,
                    masks[: level + 1],
                    cases,
                    alpha,
                    self._noise(),
                ),
            ),
            "refined": (1, step(networks.refiner, cases, True)),
            "unclamped": (1, step(networks.refiner, cases, False)),
            "shuffled": (1, step(networks.refiner, other, True)),
        }
        made = {name: self._timed(mask, *run) for name, run in runs.items()}
        other_clips = made["refined"].clips.roll(count // 2, dims=0)
        return {**made, "permuted": Method(other_clips, mask, 0, 0.0)}

    def selected(self, level: int) -> dict[str, Method]:
        """Interpolation and refinement with keyframes where the selector puts them."""
        truth, count = self.held.truth, self.corruption.counts[level]
        greedy = masks_of(greedy_ranks(truth, count), [truth.shape[2], count])[1]
        methods = {}
        for name, mask in (("selected", greedy), ("optimal", optimal_mask(truth, count))):
            plain = partial(self.interpolated, mask)
            refined = partial(self.refined, mask, level)
            methods[f"interpolated_{name}"] = self._timed(mask, 0, plain)
            methods[f"refined_{name}"] = self._timed(mask, 1, refined)
        return methods

    def refined(self, mask: Tensor, level: int) -> Tensor:
        """One step of the evaluated refiner, from any keyframes."""
        truth, cases = self.held.truth, self.held.cases
        start = self.corruption.impute(truth, mask, torch.arange(len(truth)), self._noise())
        return refine(self.networks.refiner, start, cases, level, self.config.alpha, clamp=True)

    def interpolated(self, mask: Tensor) -> Tensor:
        """Without noise."""
        return interpolate(self.held.truth, mask, self.corruption.config)

    def projected(self, mask: Tensor) -> Tensor:
        """Interpolated points pushed out of walls."""
        maps, side = self.held.mazes.of(self.held.cases), self.held.mazes.blocks
        points = project(
            maps[1], points_of(self.interpolated(mask), side), mask, self.config.margin
        )
        return latents_of(points, side)

    def pipeline(
        self, held: Held, phase_one: MazeRefiner, refiner: MazeRefiner | None, number: int
    ) -> Method:
        """Phase 1, interpolation and refinement, from ends and mazes alone; None: phase 1 alone."""
        level = self.corruption.counts.index(self.count)
        frames = held.truth.shape[2]
        mask = nested_masks(len(held.truth), frames, self.corruption.counts)[level]

        def run() -> Tensor:
            alpha = self.config.alpha
            ids, parts = torch.arange(len(held.truth)), (phase_one, self.phase_one)
            draft = propose(*parts, held.truth, held.cases, ids, number, self.seed, alpha)
            if refiner is None:
                return draft
            start = self.corruption.impute(draft, mask, ids + number * len(ids), self._noise())
            if refiner is self.networks.refiner and self.corruption.config.student_replace_prob:
                start = as_proposals(start)  # which it has been trained to move
            return refine(refiner, start, held.cases, level, alpha, True)

        return self._timed(mask, 1 if refiner is None else 2, run)

    def pipelines(self) -> dict[str, tuple[MazeRefiner, MazeRefiner | None]]:
        """The pipelines by name: what makes keyframes, and what refines."""
        networks = self.networks
        return {
            "phase1_alone": (networks.keyframes, None),
            "phase1_paired": (networks.paired_keyframes, networks.paired),
            "phase1_refined": (networks.keyframes, networks.refiner),
        }

    def _noise(self) -> torch.Generator:
        return generator(self.seed, "test")

    def _timed(self, mask: Tensor, calls: int, run: Callable[[], Tensor]) -> Method:
        device = next(self.networks.refiner.parameters()).device
        if calls and not self.warm:
            run()  # the first call of a network takes longer
            self.warm = True
        clips, seconds = timed(run, device)
        return Method(clips, mask, calls, 1e6 * seconds / len(clips))

    # ---- Figures ---------------------------------------------------------------------------------

    def figures(self, method: Method, held: Held) -> dict[str, Any]:
        """Of the clips of a method in the place of held-out ones."""
        points = points_of(method.clips, held.mazes.blocks)
        truth = points_of(held.truth, held.mazes.blocks)
        occupied = held.mazes.of(held.cases)[0]
        hit = collides(occupied, points).any(1)
        given = (points - truth).norm(dim=-1)[:, [0, -1]].amax(1) <= KEPT
        inner = method.mask.clone()
        inner[:, [0, -1]] = False
        error = (points - truth).norm(dim=-1)
        several = held.two_ways
        return {
            "collision": float(hit.float().mean()),
            "collision_two_ways": float(hit[several].float().mean()) if several.any() else None,
            "collision_points": float(inside(occupied, points).float().mean()),
            "success": float((given & ~hit).float().mean()),
            "length_ratio": float((length(points) / length(held.planned)).median()),
            "acceleration_ratio": float(acceleration(points).mean() / acceleration(truth).mean()),
            "keyframe_error": float(error[inner].mean()) if inner.any() else None,
            "error": float(error.mean()),
        }

    def distances(self, clips: Tensor, completions: bool = True) -> dict[str, float]:
        """As a distribution, from the held-out trajectories, whose ends or more completions have.

        Other real trajectories, which share nothing with them, are no floor for completions.
        """
        points = self.space.points(clips)
        return {
            "frechet": frechet_distance(self.real, points),
            "energy": energy_distance(self.real, points, matched=completions),
        }

    def table(self) -> Rows:
        """A row for each method with true keyframes of each level, with phase 1's, and without."""
        rows: Rows = []

        def add(name: str, keyframes: int | None, method: Method) -> None:
            figures = self.figures(method, self.held) | self.distances(method.clips)
            first = {"method": name, "keyframes": keyframes, "calls": method.calls}
            rows.append({**first, **figures})
            if method.calls:
                self.clock[f"microseconds_{name}"] = round(method.microseconds, 1)

        counts = self.corruption.counts
        levels = progress(self.completed.items(), "evaluate", "level")
        for level, methods in levels:
            for name, method in {**methods, **self.selected(level)}.items():
                add(name, counts[level], method)
        for name, networks in self.pipelines().items():
            add(name, None, self.pipeline(self.held, *networks, number=0))
        nothing = torch.zeros_like(method.mask)
        planned = latents_of(self.held.planned, self.held.mazes.blocks)
        for name, clips in (("planner", planned), ("real", self.held.truth)):
            add(name, None, Method(clips, nothing, 0, 0.0))
        rows[-1] |= self.distances(self.train, completions=False)
        return rows

    def two_ways(self) -> tuple[Rows, Samples | None]:
        """Cases with two ways around, several samples each, from ends and mazes alone.

        Returns:
            A row a pipeline, and what was sampled; where there is no such case, the reason.
        """
        held = self.everything[self.everything.two_ways.nonzero().flatten()]
        if not len(held.cases):
            return [
                {"method": name, "cases": 0, "samples": 0, "reason": NO_TWO_WAYS, **NO_FIGURES}
                for name in self.pipelines()
            ], None
        first = first_of_each(held.cases)
        spread_out = torch.arange(min(self.config.cases, len(first))) * len(first)
        cases = held[first[spread_out // min(self.config.cases, len(first))]]
        rows: Rows = []
        clips: dict[str, Tensor] = {}
        for name, networks in self.pipelines().items():
            made = [
                self.pipeline(cases, *networks, number=1 + sample)
                for sample in range(self.config.samples)
            ]
            clips[name] = torch.stack([method.clips for method in made])
            figures = [self.figures(method, cases) for method in made]
            hit = torch.stack(
                [
                    collides(cases.mazes.of(cases.cases)[0], points_of(part, held.mazes.blocks))
                    for part in clips[name]
                ]
            ).any(2)
            rows.append(
                {
                    "method": name,
                    "cases": len(cases.cases),
                    "samples": self.config.samples,
                    "collision": float(hit.float().mean()),
                    "both_ways": both_ways(clips[name], hit, cases.cases, held),
                    "spread_ratio": spread_ratio(clips[name], cases.cases, held),
                    "success": sum(row["success"] for row in figures) / len(figures),
                    "length_ratio": sum(row["length_ratio"] for row in figures) / len(figures),
                }
            )
        return rows, Samples(cases, clips)


def first_of_each(cases: Tensor) -> Tensor:
    """The first place of each case, in their order, [k]."""
    order = torch.unique(cases)
    return torch.stack([(cases == case).nonzero()[0, 0] for case in order])


def ways_taken(
    clips: Tensor,  # [S, 2, T, 1, 1] samples of one case
    real: Held,  # trajectories of that case
) -> Tensor:
    """The way of the real trajectory that is nearest to each sample, [S]."""
    apart = (clips[:, None] - real.truth).flatten(2).norm(dim=2)  # [S, n]
    return real.ways[apart.argmin(1)]


def both_ways(
    clips: Tensor,  # [S, k, 2, T, 1, 1] samples of k cases
    hit: Tensor,  # [S, k] those that touch a wall
    cases: Tensor,  # [k]
    held: Held,  # all trajectories of those cases
) -> float:
    """The fraction of cases of which samples without collision go by two ways or more."""
    several = []
    for place, case in enumerate(cases):
        taken = ways_taken(clips[:, place], held[(held.cases == case).nonzero().flatten()])
        several.append(len(taken[~hit[:, place]].unique()) > 1)
    return sum(several) / len(several)


def spread_ratio(
    clips: Tensor,  # [S, k, 2, T, 1, 1] samples of k cases
    cases: Tensor,  # [k]
    held: Held,  # all trajectories of those cases
) -> float | None:
    """How far apart samples by one way of a case are, over how far real trajectories are.

    1 is right, 0 is one trajectory a way; None where no way has two of both.
    """
    apart: dict[str, list[Tensor]] = {"made": [], "real": []}
    for place, case in enumerate(cases):
        real = held[(held.cases == case).nonzero().flatten()]
        taken = ways_taken(clips[:, place], real)
        for way in real.ways.unique():
            apart["made"].append(torch.pdist(clips[taken == way, place].flatten(1)))
            apart["real"].append(torch.pdist(real.truth[real.ways == way].flatten(1)))
    made, real_apart = (torch.cat(distances) for distances in apart.values())
    return float(made.mean() / real_apart.mean()) if len(made) and len(real_apart) else None


def headline(rows: Rows, two_ways: Rows) -> dict[str, Any]:
    """The figures that a reader compares first; None where no level has so many keyframes.

    Ratios are refined to interpolated, collisions of whole trajectories; `two_ways` are from ends
    and mazes alone, regression in both phases against the evaluated networks in both.
    """
    table = {(row["method"], row["keyframes"]): row for row in rows}
    fewest = min(row["keyframes"] for row in rows if row["keyframes"])
    ways = {row["method"]: row for row in two_ways}
    figures: dict[str, Any] = {}
    for name, count in (("six", 6), ("three", 3)):
        refined, plain = table.get(("refined", count)), table.get(("interpolated", count))
        figures[f"collision_ratio_{name}"] = _ratio(refined, plain, "collision")
        figures[f"success_{name}"] = refined["success"] if refined else None
    figures |= {
        "length_ratio": table["refined", fewest]["length_ratio"],
        "collision_paired_two_ways": ways["phase1_paired"]["collision"],
        "collision_refined_two_ways": ways["phase1_refined"]["collision"],
        "both_ways": ways["phase1_refined"]["both_ways"],
    }
    if reason := ways["phase1_refined"].get("reason"):
        figures["two_ways_reason"] = reason
    return {**figures, "status": maze_status(table, ways, fewest)}


def _ratio(row: Mapping[str, Any] | None, to: Mapping[str, Any] | None, name: str) -> float | None:
    if row is None or to is None or not to[name]:
        return None
    return float(row[name] / to[name])


def maze_status(
    table: Mapping[tuple[str, int | None], Mapping[str, Any]],
    ways: Mapping[str, Mapping[str, Any]],
    fewest: int,
) -> str:
    """`ok`, or what is wrong with refined trajectories, worst first."""
    refined = {count: row for (name, count), row in table.items() if name == "refined"}
    for count, row in refined.items():
        if row["collision"] > table["interpolated", count]["collision"]:
            return "worse_than_interpolation"
    if refined[fewest]["success"] < SUCCESS:
        return "collides_with_few_keyframes"
    if table["shuffled", fewest]["collision"] < CONDITIONED * refined[fewest]["collision"]:
        return "ignores_the_maze"
    if "reason" in ways["phase1_refined"]:
        return "ok"
    if ways["phase1_refined"]["collision"] > HALF * ways["phase1_paired"]["collision"]:
        return "no_better_than_regression_at_two_ways"
    spread = ways["phase1_refined"]["spread_ratio"]
    if spread is not None and not SPREAD[0] <= spread <= SPREAD[1]:
        return "collapsed" if spread < SPREAD[0] else "scattered"
    return "ok" if ways["phase1_refined"]["both_ways"] >= BOTH else "one_way_only"


# ---- Pictures ------------------------------------------------------------------------------------

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
                axis.plot(*points[row].mT.numpy(), color=color, linewidth=1.1)
                keys = points[row][methods["refined"].mask[shown[row]]]
                axis.plot(*keys.mT.numpy(), "o", color=INK, markersize=2.5)
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
                        *points.mT.numpy(),
                        color=ORANGE if touches else BLUE,
                        linewidth=0.8,
                        alpha=0.6,
                    )
                axis.plot(*samples[0, [0, -1]].mT.numpy(), "o", color=GREEN, markersize=3.5)
                axis.set_title(f"{label}: {int((~hit).sum())} of {len(hit)} free")
        figure.suptitle(
            "From start, goal and maze alone, two ways around: samples of both pipelines"
        )
        save(figure, path)


def draw_maze(axis: Axes, occupied: Tensor) -> None:
    """Walls, without axes."""
    side = len(occupied)
    axis.imshow(
        1 - 0.35 * occupied.float().numpy(), extent=(0, side, side, 0), cmap="gray", vmin=0, vmax=1
    )
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_edgecolor(PALE)


def draw_evaluation(folder: Path, evaluation: MazeEvaluation, samples: Samples | None) -> None:
    """Each level: the first trajectories and the refined ones that collide; two ways around."""
    count, held = evaluation.config.pictures, evaluation.held
    for level, methods in evaluation.completed.items():
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
    if samples is not None:
        draw_two_ways(folder / "two_ways.png", samples, count)
